"""Verdicts made elsewhere: responses cut into shards, each judged by some worker of a pool.

    here                                      a worker
    KEY.pairs.json into the parts' folder
    pool.map(judge_part, KEY, …)     ──────▶  reads the pairs, judges them in child processes,
                                              leaves KEY.verdicts.json
    all verdicts, in order         ◀────────  how many

KEY is the SHA-256 of all on which the verdicts may depend: texts, the task's code, limits. So what
was judged before, by a command that was killed perhaps, is found and used, and nothing else can be.
Workers see the folder under the same path. Readers of runs don't look at it, and it is removed
once the table that it was for is committed.
"""

import functools
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.registry import SHIPPED, file_digest, judging
from flows.workers.runner_spec import PIECES_OF_A_WORKER, cut
from pipeline.config.sections import VerifySection
from pipeline.errors import StoreError
from pipeline.files.durable import digest_of, make_folder
from pipeline.files.sealed_json import is_sealed, read_sealed, write_sealed
from pipeline.task import Feedback, Verdict
from pipeline.verification.pool import VerifierPool, timed_out

if TYPE_CHECKING:
    from flows.workers.worker_pool import WorkerPool
    from pipeline.stage.contract import Progress

_SHARDS = 32
"""Of a table, whatever the number of workers, so that a command with others finds them again."""
_ROWS = 8
"""A shard has at least so many: placing one costs a tenth of a second."""


@dataclass(frozen=True)
class Bench:
    """How a task's responses are judged, in plain values.

    Attributes:
        task: a shipped task's name, or the path of its file, the same on every worker.
        code: SHA-256 of the task's source.
        workers: child processes of each worker.
        feedback: the verifier's own or the task's hints, whose source `code` covers too.
    """

    task: str
    code: str
    workers: int
    timeout_seconds: float
    memory_mb: int
    feedback: Feedback

    @classmethod
    def of(cls, task: str, settings: VerifySection) -> "Bench":
        """Return the bench of a task as its code is now."""
        return cls(
            task=task if task in SHIPPED else str(Path(task).expanduser().resolve()),
            code=file_digest(task, settings.feedback),
            workers=settings.workers,
            timeout_seconds=settings.timeout_seconds,
            memory_mb=settings.memory_mb,
            feedback=settings.feedback,
        )


class ShardedPool:
    """Judges as a `VerifierPool` does, on a pool's workers.

    Args:
        folder: for the parts.
    """

    def __init__(
        self,
        worker_pool: "WorkerPool",
        bench: Bench,
        folder: Path,
        progress: "Progress | None" = None,
    ) -> None:
        self._worker_pool, self._bench = worker_pool, bench
        self._folder, self._progress = folder.resolve(), progress

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return the verdicts on pairs of response and reference, in order.

        Raises:
            SrpoError: from a worker, with its shard, host and process.
        """
        workers = self._worker_pool.spec.workers
        shards = [pairs[first:last] for first, last in _shards(len(pairs), workers)]
        keys = [_key(self._bench, shard) for shard in shards]
        make_folder(self._folder)
        missing = dict[str, None]()  # a set in order: equal shards are judged once
        for key, shard in zip(keys, shards, strict=True):
            if not _is_judged(self._folder, key):
                write_sealed(_pairs_path(self._folder, key), {"pairs": [list(p) for p in shard]})
                missing[key] = None
        common = {"folder": str(self._folder), "bench": asdict(self._bench)}
        items = [{"key": key, **common} for key in missing]
        self._worker_pool.map("verify", f"{__name__}:judge_part", items, self._progress)
        return [verdict for key in keys for verdict in _verdicts(self._folder, key)]


def judge_part(key: str, folder: str, bench: dict[str, Any]) -> int:
    """Judge one shard, on a worker, and leave its verdicts in the folder; return how many.

    One that is there stays: Dask asks again for results that a lost worker had delivered.

    Raises:
        StoreError: the worker has other code, or doesn't see the folder.
    """
    shards, settings = Path(folder), Bench(**bench)
    if _is_judged(shards, key):
        return len(_verdicts(shards, key))
    found = file_digest(settings.task, settings.feedback)
    if found != settings.code:
        raise StoreError(
            f"task {settings.task}: its code here has SHA-256 {found[:12]}…, expected "
            f"{settings.code[:12]}…; all workers need the same code"
        )
    try:
        pairs = read_sealed(_pairs_path(shards, key))["pairs"]
    except FileNotFoundError:
        raise StoreError(
            f"{shards}: no shard {key[:12]}… there: workers must see the run's folder under the "
            "same path"
        ) from None
    verdicts = _pool(settings).verify([(response, reference) for response, reference in pairs])
    record = {"worker": os.getpid(), "verdicts": [asdict(verdict) for verdict in verdicts]}
    write_sealed(_verdicts_path(shards, key), record)
    return len(verdicts)


@functools.lru_cache(maxsize=8)
def _pool(bench: Bench) -> VerifierPool:
    """Return this process's verifiers; their child processes end with it."""
    judge, prepare = judging(bench.feedback)
    return VerifierPool(
        judge,
        bench.task,
        bench.workers,
        bench.timeout_seconds,
        bench.memory_mb,
        prepare=prepare,
    )


def _shards(rows: int, workers: int) -> list[tuple[int, int]]:
    """Return the shards [first, last) of so many rows."""
    return cut(rows, max(1, min(rows // _ROWS, max(_SHARDS, PIECES_OF_A_WORKER * workers))))


def _key(bench: Bench, pairs: Sequence[tuple[str, str]]) -> str:
    judged_by = [bench.code, bench.timeout_seconds, bench.memory_mb, bench.feedback]
    return digest_of([judged_by, [list(pair) for pair in pairs]])


def _verdicts(folder: Path, key: str) -> list[Verdict]:
    return [Verdict(**verdict) for verdict in read_sealed(_verdicts_path(folder, key))["verdicts"]]


def _is_judged(folder: Path, key: str) -> bool:
    """Tell whether a shard's verdicts are there; one response that timed out is judged again."""
    if not is_sealed(_verdicts_path(folder, key)):
        return False
    found = _verdicts(folder, key)
    return len(found) != 1 or not timed_out(found[0])


def _pairs_path(folder: Path, key: str) -> Path:
    return folder / f"{key}.pairs.json"


def _verdicts_path(folder: Path, key: str) -> Path:
    return folder / f"{key}.verdicts.json"
