"""What a run needs on its disk: numbers worked out by hand, and how settings move them."""

from typing import Any

import pytest

from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.housekeeping.space_forecast import (
    Facts,
    evaluation_bytes,
    needed,
    snapshot_bytes,
    step_bytes,
)

FACTS = Facts(parameters=1000, vocabulary=100, answers=6)
SETTINGS = [
    "data.path=none",
    "data.max_prompt_length=20",
    "generate.questions=2",
    "generate.rollouts=4",
    "generate.max_response_length=10",
    "route.top_k=5",
    "route.max_teacher_prompt_length=40",
    "evaluate.max_response_length=10",
    "evaluate.every=10",
    "run.steps=12",
    "run.snapshot_every=4",
    "run.keep_snapshots=3",
]


def config(*overrides: str) -> Config:
    return load_config("smoke-science-qa", [*SETTINGS, *overrides])


def test_a_step_by_hand() -> None:
    # 8 rollouts of 10 tokens; at most 3 of 4 are taught: 60 tokens of 6 rollouts. A row of
    # teacher: id 18, position 4, six floats 24, K = 5 times an id 4 and two log-probabilities 8.
    teacher, others = step_bytes(config(), FACTS)
    assert teacher.most == 60 * (18 + 4 + 24 + 5 * 12) + 6 * 45 + 12_000
    # A quarter of the tokens, half of them taught.
    assert teacher.likely == 7.5 * (18 + 4 + 24 + 5 * 12) + 3 * 45 + 12_000
    rollouts = 8 * 218 + 80 * (8 + 8) + 160 * (4 + 8)
    routes = 8 * 218 + 6 * 40 * (4 + 8)
    scores, weights = 8 * 18 + 80 * 8, 60 * (18 + 4 + 12) + 6 * 45
    assert others.most == rollouts + routes + scores + weights + 2 * 8 * 218 + 6 * 12_000


@pytest.mark.parametrize(
    ("overrides", "row", "tokens", "rollouts"),
    [
        (["route.kept_dtype=float16"], 46 + 5 * 8, 60, 6),
        (["route.keep_student_logprobs=false"], 46 + 5 * 8, 60, 6),
        (["route.top_k=500"], 46 + 100 * 12, 60, 6),
        (["route.method=sdpo"], 46 + 5 * 12, 80, 8),
        (["route.method=grpo"], 46 + 5 * 12, 0, 0),
        (['route.sources=["sibling", "bank"]'], 46 + 5 * 12, 80, 8),  # all-wrong groups, too
    ],
)
def test_what_is_kept_of_a_token(
    overrides: list[str], row: int, tokens: int, rollouts: int
) -> None:
    teacher, _ = step_bytes(config(*overrides), FACTS)
    assert teacher.most == tokens * row + rollouts * 45 + 12_000


def test_a_bank_by_hand() -> None:
    # At most as many answers as the step has, each with its text; likely half, a quarter as long.
    banked = config('route.sources=["sibling", "bank"]')
    plain = config('route.sources=["sibling", "gold"]')
    more = [b - p for b, p in zip(*(_others(c) for c in (banked, plain)), strict=True)]
    assert more == [8 * 218 + 80 * 8 + 12_000, 0.5 * (8 * 218 + 20 * 4 + 12_000)]


def _others(of: Config) -> tuple[float, float]:
    _, others = step_bytes(of, FACTS)
    return others.most, others.likely


def test_snapshots_and_evaluations_by_hand() -> None:
    # Weights, EMA teacher and two moments; the first has no moments; a live teacher is the policy.
    assert snapshot_bytes(config(), FACTS) == (4 * 4000 + 20_000, 2 * 4000 + 20_000)
    assert snapshot_bytes(config("route.teacher=live"), FACTS) == (3 * 4000 + 20_000, 24_000)
    assert evaluation_bytes(config(), FACTS).most == 6 * (418 + 30 * 12) + 12_000


def test_a_whole_run_by_hand() -> None:
    need = needed(config(), FACTS)
    teacher, others = step_bytes(config(), FACTS)
    assert need.teacher == teacher.times(12)
    assert need.tables == others.times(12)
    assert need.evaluations == evaluation_bytes(config(), FACTS).times(3)  # after 0, 10, 12
    # States 0, 4, 8, 10 (the best, perhaps) and 12: five, fewer than three kept and three more.
    assert need.snapshots.most == need.snapshots.likely == 28_000 + 4 * 36_000
    total = need.teacher + need.tables + need.evaluations + need.snapshots
    assert need.total == total


@pytest.mark.parametrize(("keep", "held"), [(None, 12), (1, 5), (2, 6), (20, 12)])
def test_teacher_tables_kept(keep: Any, held: int) -> None:
    """Those kept, and those made since the last snapshot, which is taken every four steps."""
    overrides = [] if keep is None else [f"run.keep_teacher_tables={keep}"]
    assert needed(config(*overrides), FACTS).teacher_steps == held


def test_adapters_of_every_step() -> None:
    """Snapshots of what is trained after each of 12 steps: start, best, kept ones, a new one."""
    overrides = [s for s in SETTINGS if not s.startswith("run.snapshot_every")]
    adapted = load_config("smoke-science-qa", [*overrides, "model.path=x", "model.lora.rank=4"])
    assert adapted.run.snapshot_every == 1
    assert needed(adapted, FACTS).snapshots.most == 28_000 + 5 * 36_000


def test_few_snapshots_kept() -> None:
    one = needed(config("run.keep_snapshots=1", "run.snapshot_every=1"), FACTS)
    assert one.snapshots.most == 28_000 + 3 * 36_000  # start; best, newest, one being written
