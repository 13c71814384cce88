"""The errors a user can meet: one line that says what was found, what was expected, and where."""


class SrpoError(ValueError):
    """Base of all errors that end a command with one clear line and exit code 2."""


class ConfigError(SrpoError):
    """A setting is unknown, of the wrong type, or contradicts another one."""


class DataError(SrpoError):
    """A dataset, row or gold answer can't be used; the message names file and row."""


class RowError(DataError):
    """One row of a dataset can't be used, and the others may be: `data.on_bad_row` decides.

    A task's `load` raises it for a row whose question or gold answer it can't read; the message
    names file, row and reason.
    """


class StoreError(SrpoError):
    """A table, manifest or snapshot is missing, broken, or would be overwritten."""


class PolicyError(SrpoError):
    """A model folder or policy can't be used, or has another version than the step needs."""


class MemoryShortage(SrpoError):
    """The machine has too little memory for the settings; the message names those to lower."""


class NumericalError(SrpoError):
    """A log-probability, loss or gradient is not finite; the message names the rollouts."""
