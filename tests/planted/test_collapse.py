"""Planted collapses are flagged within five steps of their onset; healthy runs raise nothing."""

import json
import shlex
import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest

from flows.cli import main
from pipeline.run.run import Run
from pipeline.run.step_records import Records
from tests.planted.collapse import Collapse, make

ONSET, STEPS, WITHIN = 7, 12, 5
SEEDS = (0, 1, 2)

pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Run]:
    """Return a run of each collapse and seed."""
    folder = tmp_path_factory.mktemp("planted")
    kinds: tuple[tuple[Collapse, int], ...] = (
        ("none", 0),
        *(("format", seed) for seed in SEEDS),
        *(("shrink", seed) for seed in SEEDS),
    )
    return {
        (kind, seed): make(folder / f"{kind}-{seed}", kind, seed, ONSET, STEPS)
        for kind, seed in kinds
    }


def alarms(run: Run) -> dict[str, tuple[int, dict[str, object]]]:
    """Return the alarms by rule, with the step whose record raises them."""
    return {
        alarm["rule"]: (step, alarm)
        for step in range(run.steps_done())
        for alarm in run.metrics(step)["alarms"]
    }


def test_without_a_collapse_there_is_no_alarm(made: dict[tuple[str, int], Run]) -> None:
    assert alarms(made["none", 0]) == {}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_format_that_breaks_at_low_temperature_is_flagged(
    made: dict[tuple[str, int], Run], seed: int
) -> None:
    run = made["format", seed]
    found = alarms(run)
    # A teacher would not have written what the engine makes up: it is off its path, too.
    both = {"evaluated_format_falls", "accuracy_falls"}
    assert both <= set(found) <= both | {"evaluated_off_path"}
    step, alarm = found["evaluated_format_falls"]
    assert ONSET <= step <= ONSET + WITHIN
    assert (alarm["step"], alarm["healthy"]) == (ONSET + 1, ONSET - 1)  # evaluated every 2 steps
    assert alarm["severe"]
    table = run.read("evaluations", ONSET + 1)
    formless = table.filter(pc.invert(table["format_ok"]))["rollout_id"].to_pylist()
    evidence = alarm["evidence"]
    assert isinstance(evidence, list) and len(evidence) == 5
    assert set(evidence) <= set(formless)
    assert len({name[:12] for name in evidence}) == 5, "of five questions"
    training = [run.metrics(n) for n in range(STEPS)]
    assert min(record["format_rate"] for record in training) > 0.85
    early, late = training[:ONSET], training[ONSET:]
    assert abs(mean(early, "reward_mean") - mean(late, "reward_mean")) < 0.1
    assert ONSET <= found["accuracy_falls"][0] <= ONSET + WITHIN


@pytest.mark.parametrize("seed", SEEDS)
def test_demonstrations_that_shrink_are_flagged(
    made: dict[tuple[str, int], Run], seed: int
) -> None:
    run = made["shrink", seed]
    found = alarms(run)
    step, alarm = found["demonstrations_shrink"]
    assert set(found) == {"demonstrations_shrink"}
    assert ONSET <= step <= ONSET + WITHIN
    assert alarm["step"] in range(ONSET, step + 1)
    assert alarm["healthy"] in range(ONSET - 1, step)
    evidence = alarm["evidence"]
    assert isinstance(evidence, list) and 0 < len(evidence) <= 5
    routes = run.read("routes", step)
    assert set(evidence) <= set(routes["teacher_rollout_id"].to_pylist())
    rollouts = run.read("rollouts", step)
    ids, responses = rollouts["rollout_id"].to_pylist(), rollouts["response_ids"].to_pylist()
    lengths = dict(zip(ids, map(len, responses), strict=True))
    assert max(lengths[name] for name in evidence) < sum(lengths.values()) / len(lengths)


def mean(records: list[dict[str, float]], key: str) -> float:
    """Return the mean of a number over records."""
    return sum(record[key] for record in records) / len(records)


@pytest.mark.parametrize("kind", ["format", "shrink"])
def test_the_command_of_an_alarm_shows_its_evidence(
    made: dict[tuple[str, int], Run],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _, alarm in alarms(made[kind, 0]).values():
        command, evidence = alarm["command"], alarm["evidence"]
        assert isinstance(command, str) and isinstance(evidence, list)
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        assert evidence[0] in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["format", "shrink"])
def test_records_computed_again_hold_the_same_alarms(
    made: dict[tuple[str, int], Run], kind: str
) -> None:
    run = made[kind, 1]
    before = [path.read_bytes() for path in metrics_files(run)]
    for path in metrics_files(run):
        path.unlink()
    records = Records(run)
    for step in range(STEPS):
        records.finish(step)
        if step == ONSET:
            records = Records(run)  # resumed
    assert [path.read_bytes() for path in metrics_files(run)] == before
    assert any(json.loads(text)["alarms"] for text in before)


def metrics_files(run: Run) -> list[Path]:
    """Return the files of all steps' records."""
    return sorted(run.root.glob("steps/*/metrics.json"))
