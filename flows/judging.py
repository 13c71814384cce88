"""The verifiers of a run's tasks: each task has child processes of its own.

A verdict must not depend on which other tasks are in the run, so no child ever loads two of them.
"""

from functools import cached_property

from data.registry import file_digest, judge, open_task
from pipeline.config import Config
from pipeline.data_settings import DataSection
from pipeline.files import digest_of
from pipeline.task import Verifier
from pipeline.verification import VerifierPool


def code_digest(data: DataSection) -> str:
    """Return the SHA-256 of the source of the task, or of those of a mixture by name."""
    digests = {name: file_digest(entry.task) for name, entry in data.sources.items()}
    return digest_of(digests) if data.mixed else next(iter(digests.values()))


class Judges:
    """The verifiers of a run. No task's code runs before they are asked for."""

    def __init__(self, config: Config) -> None:
        self._data, verify = config.data, config.verify
        self._pools = {
            name: VerifierPool(
                judge,
                entry.task,
                verify.workers,
                verify.timeout_seconds,
                verify.memory_mb,
                prepare=open_task,
            )
            for name, entry in config.data.sources.items()
        }

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of their code as it was when it was first asked for."""
        return code_digest(self._data)

    @cached_property
    def verifiers(self) -> dict[str, Verifier]:
        """Return each task's verifier by the task's name."""
        return {
            name: Verifier(open_task(entry.task).VERIFIER, self._pools[name])
            for name, entry in self._data.sources.items()
        }

    def close(self) -> None:
        """End all child processes."""
        for pool in self._pools.values():
            pool.close()
