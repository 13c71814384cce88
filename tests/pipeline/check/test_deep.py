"""The float64 twin against whole runs: methods, several updates, forks; and planted mistakes."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.reruns.deep_check import check_step
from flows.reruns.replay import Plan, replay
from flows.session.session import Session
from pipeline.check.deep import DeepReport
from pipeline.config.sections import ModelSection
from pipeline.errors import ConfigError, StoreError
from pipeline.policy.adapters import AdaptedLinear, adapt
from pipeline.policy.policy import Policy
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES
from tests.golden.golden_run import golden_config
from tests.pipeline.check.damage import edit_json, set_value

Overrides = Mapping[str, Mapping[str, object]]
SMALL = {"questions": 4, "rollouts": 4, "temperature": 0.8, "max_response_length": 24}
VARIANTS: dict[str, Overrides] = {
    "srpo": {},
    "srpo, two updates": {"route": {"mini_batch": 2}},
    "grpo": {"route": {"method": "grpo"}},
    "sdpo, feedback, trust region": {
        "route": {"method": "sdpo", "teacher": "trust_region", "feedback": True}
    },
    "mix, K = V": {"route": {"method": "advantage_mix", "top_k": 500, "mini_batch": 2}},
    "rlsd, two updates, periodic": {
        "route": {"method": "rlsd", "mini_batch": 2, "teacher": "periodic", "teacher_period": 1},
    },
    "reverse_kl, frozen": {"route": {"teacher": "frozen"}, "update": {"divergence": "reverse_kl"}},
    "sampled_token, live": {
        "route": {"teacher": "live"},
        "update": {"divergence": "sampled_token"},
    },
    "short teacher prompts": {"route": {"max_teacher_prompt_length": 75}},
    "adapters": {"model": {"lora": {"rank": 4}}},
    "adapters, bfloat16 base, two updates, trust region": {
        "model": {"lora": {"rank": 4}, "base_dtype": "bfloat16"},
        "route": {"mini_batch": 2, "teacher": "trust_region"},
    },
}


def make_run(folder: Path, overrides: Overrides, steps: int = 2, *, kept: bool = False) -> Path:
    """Make a run of two steps with the settings of the golden runs, but fewer rollouts.

    Args:
        kept: whether it has a snapshot after every step, so that no check replays updates.
    """
    folder.mkdir(exist_ok=True)
    wanted = {**overrides, "generate": {**SMALL, **overrides.get("generate", {})}}
    session = Session.create(folder / "run", golden_config(folder, wanted))
    for step in range(steps):
        for name in STEP_STAGES:
            session.run_stage(name, step)
        session.finish_step(step)
        if kept:
            session.snapshot(step + 1)
    session.close()
    return session.run.root


@pytest.fixture(scope="module")
def srpo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield make_run(tmp_path_factory.mktemp("srpo"), VARIANTS["srpo, two updates"])


def agreed(report: DeepReport) -> bool:
    return report.lines == [] and 0 < report.worst < 1 and report.numbers > 500


def test_a_run_agrees_with_its_twin(srpo: Path) -> None:
    told: list[tuple[int, int]] = []
    report = check_step(srpo, 1, lambda done, total: told.append((done, total)))
    assert agreed(report), report
    assert report.tables == ["rollouts", "routes", "teacher", "weights", "updates", "scores"]
    assert told[-1] == (32, 32)
    assert not any("not compared" in note for note in report.notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "srpo, two updates"])
def test_every_method_agrees_with_its_twin(name: str, tmp_path: Path) -> None:
    report = check_step(make_run(tmp_path, VARIANTS[name]), 1)
    assert agreed(report), report
    over = any("teacher prompts over 75 tokens" in note for note in report.notes)
    assert over == (name == "short teacher prompts")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        ("weigh", "weigh.beta=2"),
        ("update", "update.divergence=forward_kl"),
        ("route", "route.method=sdpo"),
    ],
)
def test_an_off_policy_step_of_a_fork(srpo: Path, tmp_path: Path, stage: str, setting: str) -> None:
    plan = Plan.of(Run.open(srpo), stage, "update", None)
    replay(Run.open(srpo), tmp_path / "fork", plan, [setting]).close()
    report = check_step(tmp_path / "fork", 1)
    assert agreed(report), report
    assert any("off-policy" in note for note in report.notes)


PERIODIC = {"route": {"method": "rlsd", "teacher": "periodic", "teacher_period": 2}}


def test_a_periodic_teacher_that_was_not_renewed_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version says that it was, and the snapshot agrees with the tables."""
    with monkeypatch.context() as broken:
        broken.setattr(Policy, "advance_teacher", lambda *_: None)
        run = make_run(tmp_path, PERIODIC, 4, kept=True)
    for step in (2, 3):
        assert any("teacher.teacher_logprob" in line for line in check_step(run, step).lines), step


@pytest.mark.slow
def test_a_periodic_teacher_without_its_policy_is_noted(tmp_path: Path) -> None:
    run = make_run(tmp_path, PERIODIC, 4, kept=True)
    assert agreed(check_step(run, 3))
    shutil.rmtree(run / "policy" / "000002")
    report = check_step(run, 3)
    assert agreed(report) and any("the copy that was kept" in note for note in report.notes)


@pytest.mark.slow
def test_routing_decisions_without_a_policy(srpo: Path, tmp_path: Path) -> None:
    plan = Plan.of(Run.open(srpo), "route", "decisions", None)
    replay(Run.open(srpo), tmp_path / "fork", plan, ["route.advantage_scale=group_std"]).close()
    report = check_step(tmp_path / "fork", 1)
    assert report.lines == [] and report.tables == ["rollouts", "routes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "column", "factor", "named"),
    [
        ("rollouts", "sampled_logprobs", None, "rollouts.sampled_logprobs"),
        ("routes", "advantage", 1.001, "routes.advantage"),
        ("scores", "old_logprobs", None, "scores.old_logprobs"),
        ("teacher", "entropy", 1.001, "teacher.entropy"),
        ("weights", "weight", 1.001, "weight "),
        ("updates", "mean_divergence", 1.01, "updates.mean_divergence"),
    ],
)
def test_a_planted_mistake_is_named(
    tmp_path: Path, table: str, column: str, factor: float | None, named: str
) -> None:
    """The first value that is not null or empty; what follows from it may be named after it."""
    run = make_run(tmp_path, {})
    path = run / "steps" / "000001" / f"{table}.arrow"
    values = Run.open(run).read(table, 1).column(column).to_pylist()
    row = next(i for i, value in enumerate(values) if value)
    old = values[row]
    value = [old[0] - 0.01, *old[1:]] if factor is None else old * factor
    set_value(path, column, row, value)
    lines = check_step(run, 1).lines
    assert lines and lines[0].startswith(named), lines


@pytest.mark.slow
def test_a_wrong_gradient_norm_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, {})
    edit_json(
        run / "steps/000001/updates.json", lambda m: m["facts"].update(grad_norm=[0.123], loss=[1])
    )
    lines = check_step(run, 1).lines
    assert [line.split()[0] for line in lines] == ["loss", "grad_norm"]


@pytest.mark.slow
def test_adapters_that_were_scaled_wrongly_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run made with a/r of another rank than its settings say."""
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.policy.snapshots.adapt", scaled_by(1.1))
        run = make_run(tmp_path, VARIANTS["adapters"], kept=True)
    lines = check_step(run, 1).lines
    assert lines and lines[0].startswith("rollouts.sampled_logprobs"), lines[:3]


def scaled_by(factor: float) -> Callable[[Any, ModelSection], None]:
    def adapt_wrongly(model: Any, settings: ModelSection) -> None:
        adapt(model, settings)
        for module in model.modules():
            if isinstance(module, AdaptedLinear):
                module.lora_scale *= factor

    return adapt_wrongly


def test_what_deep_does_not_know_is_said(srpo: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="never committed"):
        check_step(srpo, 7)
    run = make_run(tmp_path, {"model": {"precision": "bfloat16"}}, steps=0)
    with pytest.raises(ConfigError, match="--deep knows what float32 may"):
        check_step(run, 0)
