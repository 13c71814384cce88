"""`srpo replay` over methods, and `srpo compare --gradients`: exact norms, cosines, refusals."""

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from flows.cli import main
from flows.reruns.gradients import side_by_side
from flows.reruns.replay import Plan, replay
from flows.session.session import Session
from pipeline.config.sections import Config, Method
from pipeline.errors import ConfigError, StoreError
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES
from tests.golden.golden_run import golden_config

METHODS = get_args(Method)
STEP = 1
Srpo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def srpo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Srpo:
    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["srpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return called


def trained(folder: Path, config: Config) -> Run:
    session = Session.create(folder, config)
    for step in range(config.run.steps):
        for name in STEP_STAGES:
            session.run_stage(name, step)
        session.finish_step(step)
        session.snapshot(step + 1)
    session.close()
    return Run.open(folder)


def small(folder: Path, **sections: dict[str, Any]) -> Config:
    folder.mkdir()
    overrides = {
        "run": {"steps": 3, "snapshot_every": 1, "keep_snapshots": 9},
        "generate": {"questions": 3, "rollouts": 4},
        **sections,
    }
    return golden_config(folder, overrides)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of srpo with a beta that is not its own; never write to it."""
    folder = tmp_path_factory.mktemp("runs")
    return trained(folder / "parent", small(folder / "input", weigh={"beta": 2.0}))


@pytest.fixture(scope="module")
def forks(parent: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Run]]:
    """A fork of one step for each method, by the command; never write to them."""
    root = tmp_path_factory.mktemp("forks") / "methods"
    arguments = ["replay", parent.root, "--from", "route", "--steps", f"{STEP}:{STEP + 1}"]
    arguments += ["--set", f"route.method={','.join(METHODS)}", "--fork", root]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["srpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    yield [Run.open(root / f"route.method={method}") for method in METHODS]


def digests(root: Path) -> dict[str, str]:
    return {
        f"{path}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def fork_of(parent: Run, root: Path, *settings: str, last: str = "update", steps: str = "1") -> Run:
    replay(parent, root, Plan.of(parent, "route", last, steps), settings).close()
    return Run.open(root)


def test_each_method_has_a_fork_with_its_own_settings(parent: Run, forks: list[Run]) -> None:
    for method, run in zip(METHODS, forks, strict=True):
        assert run.config.route.method == method
        assert run.config.weigh.beta == (2.0 if method == "srpo" else 0.0)
        assert run.steps_done() == STEP + 1 and run.fork is not None
        assert set(run.fork.changed) <= {"route.method", "weigh.beta"}
        version = run.manifest("updates", STEP).origin.policy_version
        assert version == parent.manifest("updates", STEP).origin.policy_version


def test_a_sweep_that_was_cut_short_is_completed(parent: Run, tmp_path: Path, srpo: Srpo) -> None:
    command = ["replay", parent.root, "--from", "route", "--steps", 1, "--fork", tmp_path / "new"]
    command += ["--set", "route.method=grpo,sdpo", "--until", "weigh"]
    assert srpo(*command)[0] == 0
    kept = digests(tmp_path / "new" / "route.method=grpo")
    shutil.rmtree(tmp_path / "new" / "route.method=sdpo")
    code, out, _ = srpo(*command)
    assert code == 0 and "route.method=sdpo: first difference" in out
    assert f"srpo compare --gradients {tmp_path / 'new' / 'route.method=grpo'}" in out
    table = out[out.index("rows that differ") :].splitlines()
    assert [line.split()[0] for line in table[1:4]] == ["route.method", "grpo", "sdpo"]
    assert digests(tmp_path / "new" / "route.method=grpo") == kept


def test_a_sweep_goes_into_no_run(parent: Run, srpo: Srpo) -> None:
    command = ["replay", parent.root, "--from", "route", "--set", "route.method=grpo,sdpo"]
    code, _, error = srpo(*command, "--fork", parent.root)
    assert code == 2 and "a run; a sweep's forks go below a folder that is none" in error
    assert not list(parent.root.glob("route.method*"))


def test_gradients_are_those_that_the_updates_used(parent: Run, forks: list[Run]) -> None:
    """Every method's norm and loss are the recorded ones, to the bit and to rounding."""
    before = digests(parent.root.parent) | digests(forks[0].root.parent)
    found = side_by_side([parent, *forks])
    assert before == digests(parent.root.parent) | digests(forks[0].root.parent)
    assert found.step == STEP and found.warnings == []
    assert len(found.samples) == 12 and len(found.methods) == len(METHODS) + 1
    for run, method in zip([parent, *forks], found.methods, strict=True):
        facts = run.manifest("updates", STEP).facts
        assert [method.norm] == facts["grad_norm"] == [method.recorded_norm]
        assert [method.tokens] == facts["tokens"]
        assert [method.loss] == pytest.approx(facts["loss"], rel=1e-5, abs=1e-9)
        routes = run.read("routes", STEP)["route"].to_pylist()
        assert [effect.route for effect in method.effects] == routes
        for effect, sample in zip(method.effects, found.samples, strict=True):
            assert len(effect.loss_T) == len(effect.push_T) == len(sample.token_ids)


def test_cosines_are_a_matrix_of_them(parent: Run, forks: list[Run]) -> None:
    found = side_by_side([parent, *forks])
    same = 1 + METHODS.index("srpo")
    assert found.cosines[0][same] == pytest.approx(1.0, abs=1e-12)
    assert found.methods[same].label == "srpo (route.method=srpo)"
    assert found.methods[0].label == "srpo (parent)"
    for i, row in enumerate(found.cosines):
        assert row[i] in (None, 1.0) and row == [other[i] for other in found.cosines]
        assert all(value is None or -1 <= value <= 1 for value in row)
    grpo, sdpo = 1 + METHODS.index("grpo"), 1 + METHODS.index("sdpo")
    assert abs(found.cosines[grpo][sdpo] or 0) < 0.999
    assert side_by_side([forks[0], parent]).cosines[0][1] == found.cosines[1][0]


def test_equal_advantages_are_one_direction(parent: Run, tmp_path: Path) -> None:
    """A half of the same loss: lambda 0.5 of a mix in which nobody is taught is grpo's half."""
    scaled = ["route.method=advantage_mix", "update.mix_lambda=0.5"]
    tight = [*scaled, "route.max_teacher_prompt_length=1"]
    mix = fork_of(parent, tmp_path / "mix", *tight, last="weigh")
    grpo = fork_of(parent, tmp_path / "grpo", "route.method=grpo", last="weigh")
    found = side_by_side([grpo, mix])
    assert found.cosines[0][1] == pytest.approx(1, abs=1e-6)
    assert found.methods[1].norm == pytest.approx(found.methods[0].norm / 2, rel=1e-5)
    assert [own.recorded_norm for own in found.methods] == [None, None]


def test_adapters_alone_have_a_gradient(tmp_path: Path) -> None:
    lora = {"rank": 2, "alpha": 4.0}
    run = trained(tmp_path / "run", small(tmp_path / "input", model={"lora": lora}))
    forks = [fork_of(run, tmp_path / name, f"route.method={name}") for name in ("grpo", "sdpo")]
    found = side_by_side([run, *forks])
    for own, method in zip([run, *forks], found.methods, strict=True):
        assert own.manifest("updates", STEP).facts["grad_norm"] == [method.norm]
    assert found.cosines[1][2] is not None and abs(found.cosines[1][2]) < 1


def test_several_updates_are_compared_at_the_first(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", small(tmp_path / "input", route={"mini_batch": 2}))
    found = side_by_side([run, fork_of(run, tmp_path / "grpo", "route.method=grpo")])
    assert len(found.samples) == 8  # two of three questions
    first = run.manifest("updates", STEP).facts["grad_norm"][0]
    assert found.methods[0].norm == first and found.warnings == []
    whole = fork_of(run, tmp_path / "whole", "route.mini_batch=none")
    with pytest.raises(ConfigError, match="give them one route"):
        side_by_side([run, whole])


def test_what_has_no_common_sample_is_refused(parent: Run, tmp_path: Path) -> None:
    long = [
        fork_of(parent, tmp_path / name, f"route.method={name}", steps="0:3")
        for name in ("grpo", "sdpo")
    ]
    assert side_by_side(long).step == 0  # the last that both start from one policy
    with pytest.raises(ConfigError, match="step 1 starts from policy 000001-"):
        side_by_side(long, 1)
    with pytest.raises(StoreError, match="step 7 has no table rollouts"):
        side_by_side([parent], 7)
    with pytest.raises(ValueError, match="given twice"):
        side_by_side([parent, parent])
    other = trained(tmp_path / "other", small(tmp_path / "input", run={"seed": 8, "steps": 1}))
    with pytest.raises(ConfigError, match="rollouts of step 0 differ"):
        side_by_side([parent, other], 0)


def test_a_norm_that_the_update_did_not_record_is_told(
    parent: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.reruns.gradients._recorded_norm", lambda run, step: 1e6)
    (warning,) = side_by_side([parent]).warnings
    assert "its update recorded 1e+06" in warning


def test_pruned_tables_are_said_to_be_so(parent: Run, tmp_path: Path, srpo: Srpo) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(parent.root, copy)
    assert srpo("prune", copy, "--keep-last", "1")[0] == 0
    code, _, error = srpo("compare", "--gradients", copy, "--step", STEP)
    assert code == 2 and "teacher of step 1 was pruned on purpose" in error
    assert "srpo restore" in error


def test_gradients_beyond_the_memory_are_refused(
    parent: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 10)
    with pytest.raises(StoreError, match="compare fewer runs at a time"):
        side_by_side([parent])


def test_the_command_prints_tables_json_and_a_page(
    parent: Run, forks: list[Run], tmp_path: Path, srpo: Srpo
) -> None:
    roots = [run.root for run in forks[:3]]
    out = tmp_path / "page"
    code, printed, error = srpo("compare", "--gradients", *roots, "--step", STEP, "--out", out)
    assert code == 0 and f"open {out / 'index.html'}" in error
    assert f"step {STEP}, policy 000001-" in printed and "1.000" in printed
    assert all(method in printed for method in METHODS[:3])
    assert (out / "index.html").stat().st_size > 1000 and (out / "static" / "base.css").exists()
    code, printed, _ = srpo("compare", "--gradients", *roots, "--format", "json")
    record = json.loads(printed)
    assert [own["method"] for own in record["methods"]] == list(METHODS[:3])
    for own in record["methods"]:
        assert math.fsum(r["loss"] for r in own["rollouts"]) == pytest.approx(own["loss"])


def test_options_that_make_no_sense(parent: Run, tmp_path: Path, srpo: Srpo) -> None:
    (tmp_path / "full" / "x").mkdir(parents=True)
    for arguments, message in [
        (["--step", "1"], "--step is for --gradients"),
        (["--gradients", "--steps", "3"], "--steps is a budget"),
        (["--gradients", "--out", tmp_path / "full"], "there is something already"),
    ]:
        code, _, error = srpo("compare", parent.root, *arguments)
        assert code == 2 and message in error and error.count("\n") == 1
