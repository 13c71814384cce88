"""Runs made anew from their rows: equal, unequal, refused, and the seconds of quiet ones."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.study import remakes
from flows.study.remakes import difference, share_of
from pipeline.run.run import Run
from pipeline.study.study_row import Row, row_of
from tests.builders.study_plans import small_row as row
from tests.conftest import Srpo
from tests.flows.study.conftest import MADE, StandIn


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"made": {"commit": "d"}}, None),
        ({"config": "c2"}, "differs: settings, or their defaults, (was c1, is c2)"),
        ({"questions": "q2"}, "differs: questions (was q1, is q2)"),
        ({"start": "000000-b"}, "differs: the policy at the start (was 000000-a, is 000000-b)"),
        ({"steps": ["aaaaaaaa", "cccccccc"]}, "differs: step 1 (was bbbbbbbb, is cccccccc)"),
        ({"steps": ["aaaaaaaa"]}, "differs: step 1 (was bbbbbbbb, is None)"),
        ({"evaluations": []}, "differs: the evaluation after 0 steps (was 00000000, is None)"),
    ],
)
def test_the_first_difference(changes: dict[str, object], said: str | None) -> None:
    assert difference(row(), row(**changes)) == said


def test_an_evaluation_comes_before_the_step_after_it() -> None:
    other = row().evaluations[1].model_copy(update={"digest": "f" * 64})
    changed = {"evaluations": [row().evaluations[0], other], "steps": ["aaaaaaaa", "bbbbbbbb"]}
    assert difference(row(), row(**changed)) == (
        "differs: the evaluation after 2 steps (was 22222222, is ffffffff)"
    )
    changed["steps"] = ["aaaaaaaa", "cccccccc"]
    assert difference(row(), row(**changed)) == "differs: step 1 (was bbbbbbbb, is cccccccc)"


def test_a_share_is_of_each_world_and_the_same_in_any_order() -> None:
    rows = [row(f"main/{world}/srpo/{seed}") for world in ("a", "b") for seed in range(10)]
    share = share_of(rows, 4)
    assert [found.world for found in share] == ["a"] * 3 + ["b"] * 3
    assert share_of(rows[::-1], 4) == share
    assert {found.seed for found in share[:3]} != {found.seed for found in share[3:]}
    assert len(share_of(rows, 100)) == 2
    assert sorted(found.name for found in share_of(rows, 1)) == [found.name for found in rows]


@pytest.mark.slow
def test_a_run_made_anew_is_equal(
    made: SimpleNamespace,
    study: Srpo,
    rows_with_one: Path,
    stand_in: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A real child, in another folder than the run that the row is of; its seconds are kept."""
    stand_in("real")
    loads = iter([0.2, 1.1, 1.1])
    monkeypatch.setattr(remakes.os, "getloadavg", lambda: (next(loads), 0.0, 0.0))
    quiet = tmp_path / "quiet"
    code, out, _ = study("remake", made.plan, MADE, "--rows", rows_with_one,
                         "--runs", tmp_path / "runs", "--quiet-out", quiet)  # fmt: skip
    assert code == 0
    assert "equal: 2 steps, 3 evaluations; seconds kept" in out
    record = json.loads((quiet / f"{MADE}.json").read_text())
    assert {*record} == {"name", "commit", "processor", "seconds", "load"}
    assert (record["name"], record["load"]) == (MADE, 1.1)
    assert {*record["seconds"]} == {*("generate", "verify", "bank", "route", "weigh", "update")}
    assert len(record["seconds"]["generate"]) == 1  # one window holds two steps
    assert record["seconds"]["generate"][0] > 0
    code, _, errors = study("remake", made.plan, MADE, "--rows", rows_with_one,
                            "--runs", tmp_path / "runs")  # fmt: skip
    assert code == 2
    assert f"remade/{MADE}: made anew before; remove it, or choose another --runs" in errors


def test_a_run_made_anew_may_differ(
    made: SimpleNamespace, study: Srpo, rows_with_one: Path, tmp_path: Path
) -> None:
    path = rows_with_one / f"{MADE}.json"
    before = Row.read(path)
    steps = [before.steps[0], "00000000"]
    changed = {"steps": steps, "made": {**before.made, "commit": "an older one"}}
    before.model_copy(update=changed).write(rows_with_one)
    code, out, _ = study("remake", made.plan, "--share", 3, "--rows", rows_with_one,
                         "--runs", tmp_path / "runs")  # fmt: skip
    assert code == 1
    assert f"differs: step 1 (was 00000000, is {before.steps[1]})" in out
    torch, processor = before.made["torch"], before.made["processor"]
    assert f"made by an older one with torch {torch} on {processor}, 1 threads, now " in out


def test_seconds_are_taken_on_a_quiet_machine_only(
    made: SimpleNamespace,
    study: Srpo,
    rows_with_one: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("remake", made.plan, MADE, "--rows", rows_with_one, "--quiet-out", tmp_path / "q")
    monkeypatch.setattr(remakes.os, "getloadavg", lambda: (1.6, 1.0, 1.0))
    code, _, errors = study(*arguments, "--runs", tmp_path / "busy")
    assert code == 2
    assert "the load average of the last minute is 1.60: others compute" in errors
    assert not (tmp_path / "busy").exists()
    loads = iter([0.2, 2.5])
    monkeypatch.setattr(remakes.os, "getloadavg", lambda: (next(loads), 0.0, 0.0))
    code, out, _ = study(*arguments, "--runs", tmp_path / "then-busy")
    assert code == 2
    assert f"{MADE} failed: the load average of the last minute is 2.50" in out
    assert not (tmp_path / "q").exists()


def test_which_rows(made: SimpleNamespace, study: Srpo, tmp_path: Path) -> None:
    command = ("remake", made.plan, "--rows", tmp_path / "rows", "--runs", tmp_path / "runs")
    assert "which rows?" in study(*command)[2]
    assert "which rows?" in study(*command, MADE, "--share", 2)[2]
    assert f"{MADE}.json: no row here" in study(*command, MADE)[2]
    assert "no rows of" in study(*command, "--share", 2)[2]


def test_a_steps_digest_is_of_the_bytes_of_its_tables(made: SimpleNamespace) -> None:
    run = Run.open(made.run)
    found = row_of(run, MADE, [], {})
    expected = []
    for step in (0, 1):
        folder = made.run / f"steps/{step:06d}"
        names = ("rollouts", "verdicts", "routes", "scores", "teacher", "weights", "updates")
        digests = [hashlib.sha256((folder / f"{n}.arrow").read_bytes()).hexdigest() for n in names]
        lines = "\n".join(f"{name} {sha}" for name, sha in zip(names, digests, strict=True))
        expected.append(hashlib.sha256(lines.encode()).hexdigest()[:8])
    assert found.steps == expected and len({*expected}) == 2
    for evaluation in found.evaluations:
        table = made.run / f"evaluations/{evaluation.step:06d}.arrow"
        assert evaluation.digest == hashlib.sha256(table.read_bytes()).hexdigest()
