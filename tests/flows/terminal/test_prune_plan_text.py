"""What `srpo prune` says of runs that make banks from a run's tables."""

from pathlib import Path

from flows.reruns.replay import Plan, replay
from flows.terminal.prune_plan_text import stays
from pipeline.housekeeping.pruning import plan_pruning
from tests.builders.bank_runs import bank_run

WITH_BANK = 'route.sources=["sibling", "bank"]'
NEVER = (
    "rollouts and verdicts of all steps, which never go: banks of later steps are made from them,"
    " by "
)


def test_it_says_what_banks_are_made_from(tmp_path: Path) -> None:
    """The run's own, and those of a fork."""
    plain = bank_run(tmp_path, 3, route={"sources": ["sibling"]})
    assert not [line for line in stays(plan_pruning(plain)) if line.startswith(NEVER)]
    fork = tmp_path / "fork"
    replay(plain, fork, Plan.of(plain, "route", "decisions", "1:3"), [WITH_BANK]).close()
    (line,) = [line for line in stays(plan_pruning(plain)) if line.startswith(NEVER)]
    assert line.startswith(f"{NEVER}the fork ") and line.endswith("fork")
    banked = bank_run(tmp_path / "other", 3)
    (line,) = [line for line in stays(plan_pruning(banked)) if line.startswith(NEVER)]
    assert line == f"{NEVER}this run"
    assert {piece.table for piece in plan_pruning(banked).pieces} == {"teacher"}
