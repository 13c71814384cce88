"""The verifiers of a run's tasks: each task has child processes of its own.

A verdict must not depend on which other tasks are in the run, so no child ever loads two of them.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from data.registry import file_digest, judging, open_hint, open_task
from pipeline.config.sections import Config
from pipeline.files.durable import digest_of
from pipeline.stage.contract import Progress, silent
from pipeline.task import Judging, Verifier
from pipeline.verification.pool import VerifierPool

if TYPE_CHECKING:
    from flows.workers.worker_pool import WorkerPool


def code_digest(config: Config) -> str:
    """Return the SHA-256 of the source of the task, or of those of a mixture by name.

    Raises:
        DataError: hints are asked for, and a task has none.
    """
    feedback = config.verify.feedback
    tasks = {name: entry.task for name, entry in config.data.sources.items()}
    for task in tasks.values() if feedback == "hint" else ():
        open_hint(task)
    digests = {name: file_digest(task, feedback) for name, task in tasks.items()}
    return digest_of(digests) if config.data.mixed else next(iter(digests.values()))


class TaskVerifiers:
    """The verifiers of a run. No task's code runs before they are asked for.

    Attributes:
        worker_pool: workers that judge responses; None: this process's children judge all.
    """

    def __init__(self, config: Config) -> None:
        self.worker_pool: WorkerPool | None = None
        self._config = config
        verify = config.verify
        judge, prepare = judging(verify.feedback)
        self._pools = {
            name: VerifierPool(
                judge,
                entry.task,
                verify.workers,
                verify.timeout_seconds,
                verify.memory_mb,
                prepare=prepare,
            )
            for name, entry in config.data.sources.items()
        }

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of their code as it was when it was first asked for."""
        return code_digest(self._config)

    def verifiers(self, parts: Path, progress: Progress = silent) -> dict[str, Verifier]:
        """Return each task's verifier by the task's name.

        Args:
            parts: folder in which other workers leave what they have judged.
            progress: told of pieces that other workers have done.
        """
        return {
            name: Verifier(open_task(entry.task).VERIFIER, self._judging(name, parts, progress))
            for name, entry in self._config.data.sources.items()
        }

    def _judging(self, name: str, parts: Path, progress: Progress) -> Judging:
        if self.worker_pool is None:
            return self._pools[name]
        from flows.workers.verdict_shards import Bench, ShardedPool

        bench = Bench.of(self._config.data.sources[name].task, self._config.verify)
        return ShardedPool(self.worker_pool, bench, parts, progress)

    def close(self) -> None:
        """End all child processes."""
        for pool in self._pools.values():
            pool.close()
