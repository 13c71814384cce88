"""The errors a user can meet: one line that says what was found, what was expected, and where."""


class SrpoError(ValueError):
    """Base of all errors that end a command with one clear line and exit code 2."""


class ConfigError(SrpoError):
    """A setting is unknown, of the wrong type, or contradicts another one."""


class DataError(SrpoError):
    """A dataset, row or gold answer can't be used; the message names file and row."""


class StoreError(SrpoError):
    """A table, manifest or snapshot is missing, broken, or would be overwritten."""


class PolicyError(SrpoError):
    """A model folder or policy can't be used, or has another version than the step needs."""


class MemoryShortage(SrpoError):
    """The machine has too little memory for the settings; the message names those to lower."""


class NumericalError(SrpoError):
    """A log-probability, loss or gradient is not finite; the message names the rollouts."""
