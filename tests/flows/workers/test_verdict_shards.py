"""Responses cut into shards: parts that fit are taken, others are judged again."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from flows.workers.runner_spec import RunnerSpec
from flows.workers.verdict_shards import Bench, ShardedPool, judge_part
from pipeline.config.sections import VerifySection
from pipeline.errors import StoreError
from pipeline.stage.contract import Progress
from pipeline.task import Feedback, Verdict

if TYPE_CHECKING:
    from flows.workers.worker_pool import WorkerPool

Item = dict[str, Any]
TASK = Path(__file__).with_name("waiting_task.py")
PAIRS = [("x" * n, "0") for n in range(40)]
EXPECTED = [Verdict(n % 5 / 4, n % 3 > 0, ("x" * n)[:9]) for n in range(40)]


class Here:
    """A pool that does the work in this process, and counts it."""

    def __init__(self, workers: int = 2, fail_after: int = 1000) -> None:
        self.spec = RunnerSpec("processes", workers)
        self.fail_after = fail_after
        self.items: list[Item] = []

    def map(
        self, name: str, function: str, items: Sequence[Item], progress: Progress | None
    ) -> list[Any]:
        assert (name, function) == ("verify", "flows.workers.verdict_shards:judge_part")
        found = []
        for item in items:
            if len(self.items) == self.fail_after:
                raise KeyboardInterrupt
            self.items.append(item)
            found.append(judge_part(**item))
        return found


def bench(timeout_seconds: float = 10.0, task: Path = TASK, feedback: Feedback = "full") -> Bench:
    settings = VerifySection(
        workers=1, timeout_seconds=timeout_seconds, memory_mb=1024, feedback=feedback
    )
    return Bench.of(str(task), settings)


def pool(worker_pool: Here, folder: Path, of: Bench | None = None) -> ShardedPool:
    return ShardedPool(cast("WorkerPool", worker_pool), of or bench(), folder)


def test_verdicts_come_in_the_order_of_the_responses(tmp_path: Path) -> None:
    worker_pool = Here()
    assert pool(worker_pool, tmp_path / "parts").verify(PAIRS) == EXPECTED
    assert len(worker_pool.items) == 5  # 40 rows, at least 8 in each


@pytest.mark.parametrize("rows", [0, 1, 7, 9])
def test_few_responses_make_one_shard_or_none(rows: int, tmp_path: Path) -> None:
    worker_pool = Here(workers=64)
    assert pool(worker_pool, tmp_path).verify(PAIRS[:rows]) == EXPECTED[:rows]
    assert len(worker_pool.items) == min(rows, 1)


def test_what_was_judged_before_an_end_is_not_judged_again(tmp_path: Path) -> None:
    first = Here(fail_after=3)
    with pytest.raises(KeyboardInterrupt):
        pool(first, tmp_path).verify(PAIRS)
    second = Here(workers=7)  # another number of workers: the same shards
    assert pool(second, tmp_path).verify(PAIRS) == EXPECTED
    assert [i["key"] for i in first.items + second.items] == list(
        dict.fromkeys(i["key"] for i in first.items + second.items)
    )
    assert (len(first.items), len(second.items)) == (3, 2)


def test_other_limits_texts_or_code_are_other_shards(tmp_path: Path) -> None:
    pool(Here(), tmp_path).verify(PAIRS)
    limits, texts, code, hints = Here(), Here(), Here(), Here()
    pool(limits, tmp_path, bench(timeout_seconds=9.0)).verify(PAIRS)
    pool(texts, tmp_path).verify([("y", "0"), *PAIRS[1:]])
    other = tmp_path / "other.py"
    other.write_text(TASK.read_text() + "\n")
    pool(code, tmp_path, bench(task=other)).verify(PAIRS)
    other.write_text(TASK.read_text() + "def hint(response, reference):\n    return response[:2]\n")
    hinting = bench(task=other, feedback="hint")
    hinted = pool(hints, tmp_path, hinting).verify(PAIRS)
    assert [len(pool.items) for pool in (limits, texts, code, hints)] == [5, 1, 5, 5]
    full = [v.reward == 1 for v in EXPECTED]
    assert [v.feedback for v in hinted] == [
        None if right else response[:2] for right, (response, _) in zip(full, PAIRS, strict=True)
    ]
    again = Here()
    assert pool(again, tmp_path, bench(task=other)).verify(PAIRS) == EXPECTED
    assert len(again.items) == 5  # the same file, another level


def test_a_damaged_part_is_judged_again(tmp_path: Path) -> None:
    pool(Here(), tmp_path).verify(PAIRS)
    part = sorted(tmp_path.glob("*.verdicts.json"))[0]
    part.write_text(part.read_text().replace("0.25", "0.75"))
    worker_pool = Here()
    assert pool(worker_pool, tmp_path).verify(PAIRS) == EXPECTED
    assert len(worker_pool.items) == 1


def test_a_worker_with_other_code_refuses(tmp_path: Path) -> None:
    worker_pool = Here(fail_after=0)
    with pytest.raises(KeyboardInterrupt):
        pool(worker_pool, tmp_path).verify(PAIRS)
    key = sorted(tmp_path.glob("*.pairs.json"))[0].name.partition(".")[0]
    settings = {"task": str(TASK), "code": "0" * 64, "workers": 1, "feedback": "full"}
    limits = {"timeout_seconds": 1.0, "memory_mb": 512}
    with pytest.raises(StoreError, match="all workers need the same code"):
        judge_part(key, str(tmp_path), {**settings, **limits})


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    from dataclasses import asdict

    with pytest.raises(StoreError, match="workers must see the run's folder under the same path"):
        judge_part("ab" * 32, str(tmp_path / "elsewhere"), asdict(bench()))
