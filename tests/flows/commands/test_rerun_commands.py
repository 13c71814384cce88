"""`srpo stage`, `srpo policy` and `srpo replay`, as typed."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from flows.cli import main
from flows.session.session import Session
from pipeline.config.sections import Config
from pipeline.run.metrics import evaluation_metrics
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES
from tests.golden.golden_run import golden_config


def srpo(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["srpo", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code if isinstance(end.value.code, int) else 0


def trained(folder: Path, config: Config) -> Path:
    session = Session.create(folder, config)
    for step in range(config.run.steps):
        for name in STEP_STAGES:
            session.run_stage(name, step)
        session.finish_step(step)
        if session.snapshot_due(step + 1):
            session.snapshot(step + 1)
    session.close()
    return folder


def tiny(folder: Path, steps: int, snapshot_every: int) -> Config:
    folder.mkdir()
    run = {"steps": steps, "snapshot_every": snapshot_every, "keep_snapshots": 99}
    return golden_config(folder, {"run": run, "generate": {"questions": 2, "rollouts": 4}})


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return trained(folder / "parent", tiny(folder / "input", steps=3, snapshot_every=2))


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.slow
def test_the_policy_of_any_step_is_rebuilt_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Policy, EMA teacher, optimizer and state after 37 steps, with snapshots every 20 steps."""
    config = tiny(tmp_path / "input", steps=38, snapshot_every=20)
    every = config.run.model_copy(update={"snapshot_every": 1})
    sparse = trained(tmp_path / "sparse", config)
    dense = trained(tmp_path / "dense", config.model_copy(update={"run": every}))
    assert Run.open(sparse).snapshots() == [0, 20, 38]
    assert srpo(monkeypatch, "policy", f"{sparse}@37", tmp_path / "out") == 0
    assert "17 updates replayed from 20" in capsys.readouterr().out
    kept = Run.open(dense).snapshot_path(37)
    assert digests(tmp_path / "out") == digests(kept)
    assert {"model.safetensors", "teacher.safetensors", "optimizer.safetensors"} <= set(
        digests(kept)
    )


def test_policy_says_what_it_needs(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, message in [
        ([run_dir, tmp_path / "new"], "which state?"),
        ([f"{run_dir}@9", tmp_path / "new"], "3 complete steps: no state after 9"),
        ([f"{run_dir}@1", run_dir], "there is something already"),
    ]:
        assert srpo(monkeypatch, "policy", *arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_stage_that_is_done_does_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert srpo(monkeypatch, "stage", "weigh", "--run", run_dir, "--step", 1) == 0
    assert "there already, nothing done" in capsys.readouterr().out


def test_other_settings_make_a_fork_that_says_what_differs(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fork = tmp_path / "fork"
    arguments = ["stage", "weigh", "--run", run_dir, "--step", 1, "--set", "weigh.beta=3"]
    assert srpo(monkeypatch, *arguments, "--fork", fork) == 0
    out = capsys.readouterr().out
    assert "weigh.beta: 1.0 → 3.0" in out
    rows = Run.open(fork).manifest("weights", 1).rows
    assert f"weights: {rows} of {rows} rows differ, in raw_weight, weight" in out
    assert f"srpo stage update --run {fork} --step 1" in out
    assert srpo(monkeypatch, "stage", "update", "--run", fork, "--step", 1) == 0
    assert "updates: " in capsys.readouterr().out


def test_a_fork_without_a_name_gets_one_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path / "run", tiny(tmp_path / "input", steps=1, snapshot_every=1))
    for number in (1, 2):
        arguments = ["stage", "weigh", "--run", run, "--step", 0, "--set", f"weigh.beta={number}.5"]
        assert srpo(monkeypatch, *arguments) == 0
        assert Run.open(tmp_path / f"run-fork-{number}").config.weigh.beta == number + 0.5


def test_a_changed_verifier_makes_a_fork_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path / "input", steps=1, snapshot_every=1)
    run = trained(tmp_path / "run", config)
    task = Path(config.data.task)
    task.write_text(task.read_text().replace("reward=float(even)", "reward=float(not even)"))
    assert srpo(monkeypatch, "stage", "verify", "--run", run, "--step", 0) == 0
    out = capsys.readouterr().out
    assert "changed code: code of the task: " in out
    assert "verdicts: 8 of 8 rows differ, in reward, correct" in out
    fork = Run.open(tmp_path / "run-fork-1")
    was, now = (r.read("verdicts", 0)["correct"].to_pylist() for r in (Run.open(run), fork))
    assert now == [not correct for correct in was]
    assert srpo(monkeypatch, "stage", "weigh", "--run", run, "--step", 0) == 0  # needs no verifier


def test_only_decisions(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["stage", "route", "--run", run_dir, "--step", 1, "--set", "route.method=sdpo"]
    assert srpo(monkeypatch, *arguments, "--fork", tmp_path / "f", "--decisions") == 0
    fork = Run.open(tmp_path / "f")
    assert fork.steps_of("routes") == [0, 1] and fork.steps_of("scores") == [0]
    assert set(fork.read("routes", 1)["route"].to_pylist()) <= {"sdpo", "none"}
    assert srpo(monkeypatch, "stage", "route", "--run", tmp_path / "f", "--step", 1) == 0
    assert fork.steps_of("scores") == [0, 1]


def test_stages_refuse_what_makes_no_sense(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra, message in [
        (["stage", "wigh", "--step", 0], "no stage wigh"),
        (["stage", "weigh", "--step", 0, "--decisions"], "route has"),
        (["stage", "evaluate", "--step", 0, "--set", "evaluate.rollouts=1"], "srpo evaluate"),
        (["stage", "weigh", "--step", 0, "--set", "route.top_k=1"], "fork from route"),
    ]:
        assert srpo(monkeypatch, *extra, "--run", run_dir) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_sweep_is_a_fork_for_each_value_and_one_table(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--from", "weigh", "--set", "weigh.beta=0,1,2", "--fork", tmp_path / "sweep"]
    assert srpo(monkeypatch, "replay", run_dir, *arguments) == 0
    out = capsys.readouterr().out
    runs = {beta: Run.open(tmp_path / "sweep" / f"weigh.beta={beta}") for beta in (0, 1, 2)}
    assert [run.config.weigh.beta for run in runs.values()] == [0, 1, 2]
    assert all(run.steps_done() == 3 for run in runs.values())
    assert "weigh.beta=1: no difference" in out
    assert "weigh.beta=2: first difference: step 0, table weights" in out
    assert "Off-policy: rollouts of steps 1 to 2" in out
    parent = Run.open(run_dir)
    same = runs[1].manifest("updates", 2).facts["next_policy_version"]
    assert same == parent.manifest("updates", 2).facts["next_policy_version"]
    note = json.loads((runs[2].root / "run.json").read_text())["fork"]["note"]
    assert note in " ".join(out.split())


def test_an_evaluation_is_printed_with_pass_at_each_k(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(run_dir, tmp_path / "run"))
    assert srpo(monkeypatch, "evaluate", f"{folder}@0") == 0
    found = evaluation_metrics(Run.open(folder).read("evaluations", 0))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for k in (1, 2):
        mean, low, high = (f"{found[f'pass_at_{k}{end}']:.1%}" for end in ("", "_low", "_high"))
        assert [f"{k}", mean, low, "to", high] in lines
    assert [f"{found['distinct_answers']:.2f}", "distinct", "answers"] in [ln[:3] for ln in lines]
    assert srpo(monkeypatch, "evaluate", f"{folder}@0", "--format", "json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record == {"run": f"{folder}", "steps_done": 0, **found, "alarms": record["alarms"]}
