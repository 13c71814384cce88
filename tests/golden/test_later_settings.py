"""A program with more settings makes the same tables at their defaults, and resumes old runs."""

import contextlib
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import Field

import pipeline.config.load
from flows.session.new_run import teacher_settings
from flows.session.open_run import resumed_config
from flows.session.session import Session
from flows.session.stage_runner import STAGES
from pipeline.check.check_run import check_run
from pipeline.config.field_types import Later, PositiveInt, Section
from pipeline.config.load import validate_config
from pipeline.config.sections import Config, ModelSection, RouteSection, UpdateSection
from pipeline.errors import ConfigError
from pipeline.policy.policy import TeacherSettings
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES
from tests.golden.golden_run import golden_config


class LaterModel(ModelSection):
    base_dtype: Later[str] = "float32"


class LaterRoute(RouteSection):
    period: Later[PositiveInt] = Field(20)


class LaterUpdate(UpdateSection):
    cap: Later[float | None] = None


class Adapters(Section):
    rank: PositiveInt = 8


class LaterConfig(Config):
    model: LaterModel
    route: LaterRoute = LaterRoute()
    update: LaterUpdate = LaterUpdate()
    adapters: Later[Adapters] = Adapters()


class LaterTeacher(TeacherSettings):
    pace: Later[int] = 20


def later_teacher(config: Config) -> LaterTeacher:
    """Return the teacher of a configuration that may have been read before there was `period`."""
    return LaterTeacher(
        **teacher_settings(config).model_dump(), pace=getattr(config.route, "period", 20)
    )


def add_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this a program with one more section, and more settings in three that there are."""
    monkeypatch.setattr(pipeline.config.load, "Config", LaterConfig)
    for module in ("flows.session.new_run", "flows.session.resident_policy"):
        monkeypatch.setattr(f"{module}.teacher_settings", later_teacher)
    for name, stage in STAGES.items():
        more = replace(stage, sections=(*stage.sections, "adapters"))
        monkeypatch.setitem(STAGES, name, more)


def train(session: Session, steps: range) -> None:
    for step in steps:
        if session.evaluation_due(step):
            session.run_stage("evaluate", step)
        for name in STEP_STAGES:
            session.run_stage(name, step)
        session.finish_step(step)
        session.snapshot(step + 1)
    if session.evaluation_due(steps.stop):
        session.run_stage("evaluate", steps.stop)


def digests(run: Run) -> dict[str, str]:
    """Return the SHA-256 of tables and snapshots; records of time and costs are not among them."""
    found = [*run.root.glob("steps/*/*.arrow"), *run.root.glob("evaluations/*.arrow")]
    found += [p for p in run.root.glob("policy/*/*") if p.is_file()]
    return {
        p.relative_to(run.root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in found
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    sizes = {"generate": {"questions": 2, "rollouts": 3, "max_response_length": 12}}
    return golden_config(tmp_path_factory.mktemp("task"), {"run": {"steps": 2}, **sizes})


@pytest.fixture(scope="module")
def before(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("before") / "run"
    with contextlib.closing(Session.create(root, config)) as session:
        train(session, range(2))
        return digests(session.run)


def test_tables_versions_and_snapshots_are_what_they_were(
    config: Config, before: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_settings(monkeypatch)
    more = validate_config(config.recorded(), "more settings")
    assert isinstance(more, LaterConfig)
    with contextlib.closing(Session.create(tmp_path / "run", more)) as session:
        train(session, range(2))
        assert digests(session.run) == before
        assert not check_run(session.run).findings


def test_an_old_run_goes_on(
    config: Config, before: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(Session.create(tmp_path / "run", config)) as session:
        train(session, range(1))
    add_settings(monkeypatch)
    with contextlib.closing(Session.resume(tmp_path / "run")) as session:
        train(session, range(1, 2))
        assert digests(session.run) == before
        assert not check_run(session.run).findings


@pytest.mark.parametrize("key", ["update.cap", "adapters.rank", "route.period"])
def test_another_value_is_recorded_and_refused_in_place(
    key: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later setting with another value than its default is a setting like all others."""
    add_settings(monkeypatch)
    section, name = key.split(".")
    values = config.recorded()
    values[section] = {**values.get(section, {}), name: 3}
    changed = validate_config(values, "changed")
    with contextlib.closing(Session.create(tmp_path / "run", changed)) as session:
        session.run_stage("generate", 0)
        assert session.run.record["config"][section][name] == 3
    with pytest.raises(ConfigError, match=f"{key} is 3"):
        resumed_config(Run.open(tmp_path / "run"), None, [f"{key}=5"])
