"""Ten seeded kills of a demo run, resumed each time; `python -m benchmarks.kills` makes 200."""

import contextlib
from pathlib import Path

import pytest

from tests.faults.train_kills import Campaign, Kill

KILLS, SEED = 10, 4
SNAPSHOT_EVERY = 2
LORA = ("model.lora.rank=8", "run.snapshot_every=1")


@pytest.mark.campaign
def test_ten_kills_leave_the_tables_and_the_policy_of_an_undisturbed_run(tmp_path: Path) -> None:
    with contextlib.closing(Campaign(tmp_path, SEED)) as campaign:
        kills = list(campaign.kills(0, KILLS))
    assert len(kills) == KILLS
    for kill in kills:
        assert len(kill.lost) <= 2, f"more than a running and an unwritten stage: {kill}"
        assert kill.replayed <= SNAPSHOT_EVERY, kill


@pytest.mark.campaign
def test_kills_of_a_run_with_adapters_replay_nothing(tmp_path: Path) -> None:
    """A snapshot follows every update; at most one update can be on the disk without its own."""
    with contextlib.closing(Campaign(tmp_path, SEED, LORA)) as campaign:
        kills = list(campaign.kills(0, KILLS))
    assert len(kills) == KILLS
    assert max(kill.replayed for kill in kills) <= 1


def test_a_kill_is_drawn_from_its_seed_and_number_alone() -> None:
    drawn = [Kill.drawn(0, number) for number in range(200)]
    assert drawn[57] == Kill.drawn(0, 57) != Kill.drawn(1, 57)
    assert {kill.kind for kill in drawn} == {"command", "server", "verifier", "everything"}
    assert 0 <= min(k.share for k in drawn) < 0.05 and 0.85 < max(k.share for k in drawn) <= 0.9
