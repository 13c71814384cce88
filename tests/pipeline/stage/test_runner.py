"""The one runner: skips what is done, refuses what was made otherwise, commits all or nothing."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config.sections import Config
from pipeline.errors import PolicyError, StoreError
from pipeline.policy.policy import Policy
from pipeline.run.run import Run
from pipeline.stage.contract import (
    Handles,
    Output,
    ProgressCounter,
    Stage,
    StageResult,
    silent,
)
from pipeline.stage.runner import next_version, run_stage
from pipeline.task import Message, Question
from tests.builders.tables import COST, STEP, config, origin, tables, with_value
from tests.conftest import OpenPolicy

QUESTIONS = (Question("q0", (Message("user", "2 + 2?"),), "4"),)
START = f"{STEP:06d}-abc"


class Recorder:
    """A stage's `run` that returns given tables and notes what it was given."""

    def __init__(self, *names: str, **changed: pa.Table) -> None:
        self.output = {name: tables()[name] for name in names} | changed
        self.calls: list[tuple[Mapping[str, pa.Table], Config, Handles]] = []

    def __call__(self, given: Mapping[str, pa.Table], settings: Config, handles: Handles) -> Output:
        self.calls.append((given, settings, handles))
        return Output(self.output, {"fact": 1}, tokens=10)


def make_verdicts(work: Any, **changes: Any) -> Stage:
    """Return a stage that makes verdicts of rollouts."""
    stage = Stage(
        name="judge",
        version=1,
        sections=("verify",),
        reads=("rollouts",),
        writes=("verdicts",),
        uses=frozenset(),
        run=work,
    )
    return replace(stage, **changes)


def make_updates(work: Any) -> Stage:
    """Return a stage that advances the policy."""
    return make_verdicts(
        work,
        name="improve",
        sections=("update",),
        reads=("rollouts", "routes"),
        writes=("updates",),
        uses=frozenset({"policy"}),
        advances_policy=True,
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run.create(tmp_path / "run", config(), {})
    for name in ("rollouts", "routes"):
        made.commit(origin(name), tables()[name], {}, COST)
    return made


@pytest.fixture
def policy(tiny_policy: OpenPolicy) -> Policy:
    opened = tiny_policy()
    opened.version = START
    return opened


def with_config(made: Run, **sections: dict[str, Any]) -> Run:
    """Return the run as if it had been configured otherwise."""
    changed = Run.open(made.root)
    changed.config = config(**sections)
    return changed


def judge(run: Run, **changes: Any) -> StageResult:
    return run_stage(run, make_verdicts(Recorder("verdicts"), **changes), Handles(0, STEP))


# --- running and skipping --------------------------------------------------------------------


def test_a_stage_gets_its_tables_and_settings(run: Run) -> None:
    work = Recorder("verdicts")
    handles = Handles(0, STEP)
    result = run_stage(run, make_verdicts(work), handles)
    given, settings, seen = work.calls[0]
    assert given.keys() == {"rollouts"}
    assert given["rollouts"].equals(tables()["rollouts"])
    assert settings.verify == run.config.verify
    assert seen is handles
    assert not result.skipped
    assert run.read("verdicts", STEP).equals(tables()["verdicts"])


def test_the_manifest_records_where_the_table_comes_from(run: Run) -> None:
    manifest = judge(run, version=7).manifests["verdicts"]
    assert manifest == run.manifest("verdicts", STEP)
    found = manifest.origin
    assert (found.stage, found.stage_version, found.step) == ("judge", 7, STEP)
    assert found.inputs == {"rollouts": run.manifest("rollouts", STEP).sha256}
    assert found.settings == {"verify": run.config.recorded()["verify"]}
    assert (found.policy_version, found.teacher_version) == (None, None)
    assert (manifest.facts, manifest.cost.tokens) == ({"fact": 1}, 10)
    assert manifest.cost.seconds >= 0
    assert manifest.cost.peak_memory_mb > 1


def test_what_is_done_is_skipped(run: Run) -> None:
    first = judge(run)
    work = Recorder("verdicts")
    again = run_stage(Run.open(run.root), make_verdicts(work), Handles(0, STEP))
    assert again.skipped
    assert again.manifests == first.manifests
    assert not work.calls


def test_settings_of_other_sections_do_not_matter(run: Run) -> None:
    judge(run)
    assert judge(with_config(run, run={"seed": 9}, update={"clip_low": 0.1})).skipped


def test_another_seed_matters_to_stages_that_sample(run: Run) -> None:
    sampler = make_verdicts(Recorder("verdicts"), uses=frozenset({"seed"}))
    run_stage(run, sampler, Handles(0, STEP))
    assert run_stage(run, sampler, Handles(0, STEP)).skipped
    with pytest.raises(StoreError, match=r"inputs\.seed: 0, not 1"):
        run_stage(run, sampler, Handles(1, STEP))


def test_other_settings_are_refused_by_name(run: Run) -> None:
    judge(run)
    with pytest.raises(StoreError) as caught:
        judge(with_config(run, verify={"success_threshold": 0.75}))
    assert "verdicts.arrow was made otherwise" in str(caught.value)
    assert "settings.verify.success_threshold: 0.5, not 0.75" in str(caught.value)


def test_another_stage_version_is_refused(run: Run) -> None:
    judge(run)
    with pytest.raises(StoreError, match="stage_version: 1, not 2"):
        judge(run, version=2)


def test_other_inputs_are_refused(run: Run) -> None:
    judge(run)
    path = run.table_path("rollouts", STEP)
    path.unlink()
    path.with_suffix(".json").unlink()
    other = with_value(tables()["rollouts"], "response_text", 0, "other")
    run.commit(origin("rollouts"), other, {}, COST)
    with pytest.raises(StoreError, match=r"inputs\.rollouts: \w{64}, not \w{64}"):
        judge(run)


def test_other_questions_and_verifiers_are_refused(run: Run) -> None:
    stage = make_verdicts(Recorder("verdicts"), uses=frozenset({"questions", "verifier"}))
    handles = Handles(0, STEP, questions=QUESTIONS, verifier_digest="aa")
    run_stage(run, stage, handles)
    assert run_stage(run, stage, handles).skipped
    with pytest.raises(StoreError, match=r"inputs\.verifier: aa, not bb"):
        run_stage(run, stage, replace(handles, verifier_digest="bb"))
    changed = (replace(QUESTIONS[0], reference="5"),)
    with pytest.raises(StoreError, match=r"inputs\.questions"):
        run_stage(run, stage, replace(handles, questions=changed))


def test_missing_inputs_are_named(run: Run) -> None:
    with pytest.raises(StoreError, match=r"scores\.json: this table was never committed"):
        judge(run, reads=("scores",))


def test_damaged_inputs_are_noticed_before_the_work(run: Run) -> None:
    path = run.table_path("rollouts", STEP)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.unlink()
    path.write_bytes(data)
    work = Recorder("verdicts")
    with pytest.raises(StoreError, match="bytes differ"):
        run_stage(Run.open(run.root), make_verdicts(work), Handles(0, STEP))
    assert not work.calls


# --- what a stage may not do -----------------------------------------------------------------


def test_reading_an_undeclared_section_fails(run: Run) -> None:
    def peek(_: object, settings: Config, __: object) -> Output:
        return Output({"verdicts": tables()["verdicts"]}, {"lr": settings.update.learning_rate})

    with pytest.raises(AttributeError, match="stage judge does not declare section update"):
        run_stage(run, make_verdicts(peek), Handles(0, STEP))
    assert not run.has("verdicts", STEP)


@pytest.mark.parametrize("names", [(), ("verdicts", "scores"), ("scores",)])
def test_a_missing_or_surplus_table_is_refused(run: Run, names: tuple[str, ...]) -> None:
    with pytest.raises(StoreError, match="stage judge made"):
        run_stage(run, make_verdicts(Recorder(*names)), Handles(0, STEP))
    assert not any(run.has(name, STEP) for name in ("verdicts", "scores"))


def test_a_broken_invariant_commits_nothing(run: Run) -> None:
    """Two tables, the second one wrong: the first isn't committed either."""
    wrong = with_value(tables()["verdicts"], "reward", 1, 1.5)
    work = Recorder("scores", verdicts=wrong)
    stage = make_verdicts(work, writes=("scores", "verdicts"))
    with pytest.raises(StoreError, match=r"rewards in \[0, 1\]"):
        run_stage(run, stage, Handles(0, STEP))
    assert sorted(p.name for p in (run.root / "steps/000003").glob("*.json")) == [
        "rollouts.json",
        "routes.json",
    ]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table.append_column("more", pa.array([1] * 4)),
        lambda table: table.drop_columns(["reward"]),
        lambda table: with_value(table, "format_ok", 0, None),
    ],
)
def test_a_broken_schema_commits_nothing(run: Run, spoil: Callable[[pa.Table], pa.Table]) -> None:
    """Two tables, the second one wrong: the first isn't committed either."""
    work = Recorder("scores", verdicts=spoil(tables()["verdicts"]))
    stage = make_verdicts(work, writes=("scores", "verdicts"))
    with pytest.raises(StoreError, match="judge made verdicts with"):
        run_stage(run, stage, Handles(0, STEP))
    assert not run.has("scores", STEP)
    assert not run.has("verdicts", STEP)


def test_an_exception_in_a_stage_commits_nothing(run: Run) -> None:
    def fail(*_: object) -> Output:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_stage(run, make_verdicts(fail), Handles(0, STEP))
    assert not run.has("verdicts", STEP)


def test_one_of_two_tables_missing_is_recomputed(run: Run) -> None:
    work = Recorder("scores", "verdicts")
    stage = make_verdicts(work, writes=("scores", "verdicts"))
    run_stage(run, stage, Handles(0, STEP))
    run.table_path("verdicts", STEP).with_suffix(".json").unlink()
    result = run_stage(run, stage, Handles(0, STEP))
    assert not result.skipped
    assert len(work.calls) == 2
    assert run.has("verdicts", STEP)


# --- stages with a policy --------------------------------------------------------------------


def test_a_stage_that_uses_a_policy_needs_one(run: Run) -> None:
    stage = make_verdicts(Recorder("verdicts"), uses=frozenset({"policy"}))
    with pytest.raises(PolicyError, match="needs a policy and got none"):
        run_stage(run, stage, Handles(0, STEP))


def test_policy_and_teacher_versions_are_recorded(run: Run, policy: Policy) -> None:
    stage = make_verdicts(Recorder("verdicts"), uses=frozenset({"policy"}))
    found = run_stage(run, stage, Handles(0, STEP, policy=policy)).manifests["verdicts"].origin
    assert found.policy_version == START
    assert found.teacher_version == f"ema@{START}"
    policy.version = f"{STEP:06d}-other"
    with pytest.raises(StoreError, match="policy_version"):
        run_stage(run, stage, Handles(0, STEP, policy=policy))


def updating(policy: Policy, *names: str) -> Recorder:
    """Return a recorder that marks the policy as an update does."""
    work = Recorder(*names)

    class Updating(Recorder):
        def __call__(self, *given: Any) -> Output:
            policy.begin_update()
            return work(*given)

    found = Updating(*names)
    found.calls = work.calls
    return found


def test_an_update_gives_the_policy_its_next_version(run: Run, policy: Policy) -> None:
    stage = make_updates(updating(policy, "updates"))
    manifest = run_stage(run, stage, Handles(0, STEP, policy=policy)).manifests["updates"]
    assert manifest.origin.policy_version == START
    assert policy.version == manifest.facts["next_policy_version"]
    assert policy.version == next_version(manifest.origin)
    assert policy.version.startswith(f"{STEP + 1:06d}-")


def test_an_update_is_never_applied_twice(run: Run, policy: Policy) -> None:
    work = updating(policy, "updates")
    run_stage(run, make_updates(work), Handles(0, STEP, policy=policy))
    with pytest.raises(PolicyError, match="step 3 updates a policy after 3 steps"):
        run_stage(run, make_updates(work), Handles(0, STEP, policy=policy))
    assert len(work.calls) == 1


@pytest.mark.parametrize("version", ["000002-abc", "000004-abc", "in flux", "0000030-abc"])
def test_another_steps_policy_is_refused(run: Run, policy: Policy, version: str) -> None:
    policy.version = version
    work = updating(policy, "updates")
    with pytest.raises(PolicyError, match=version):
        run_stage(run, make_updates(work), Handles(0, STEP, policy=policy))
    assert not work.calls


def test_a_failed_update_leaves_a_policy_that_nothing_accepts(run: Run, policy: Policy) -> None:
    work = updating(policy)  # makes no table
    with pytest.raises(StoreError, match="stage improve made"):
        run_stage(run, make_updates(work), Handles(0, STEP, policy=policy))
    assert not run.has("updates", STEP)
    with pytest.raises(PolicyError):
        run_stage(run, make_updates(updating(policy, "updates")), Handles(0, STEP, policy=policy))


def test_replaying_an_update_gives_the_recorded_version(run: Run, policy: Policy) -> None:
    """The table is there already: the work is done again, its bytes must be the committed ones."""
    run_stage(run, make_updates(updating(policy, "updates")), Handles(0, STEP, policy=policy))
    recorded = policy.version
    policy.version = START
    work = updating(policy, "updates")
    result = run_stage(Run.open(run.root), make_updates(work), Handles(0, STEP, policy=policy))
    assert not result.skipped
    assert len(work.calls) == 1
    assert policy.version == recorded


def test_a_replay_that_gives_other_bytes_is_refused(run: Run, policy: Policy) -> None:
    run_stage(run, make_updates(updating(policy, "updates")), Handles(0, STEP, policy=policy))
    policy.version = START
    work = updating(policy, "updates")
    work_output = with_value(tables()["updates"], "loss_sum", 0, -1.25)

    def other(given: Any, settings: Any, handles: Any) -> Output:
        work(given, settings, handles)
        return Output({"updates": work_output})

    with pytest.raises(StoreError, match="recomputing gave another file"):
        run_stage(run, make_updates(other), Handles(0, STEP, policy=policy))
    assert not policy.version.startswith(f"{STEP:06d}")
    assert not policy.version.startswith(f"{STEP + 1:06d}")


@pytest.mark.parametrize(
    "change",
    [
        {"table": "routes"},
        {"step": 4},
        {"stage": "other"},
        {"stage_version": 2},
        {"schema_version": 3},
        {"inputs": {"questions": "bb"}},
        {"inputs": {"questions": "aa", "more": "cc"}},
        {"settings": {"generate": {"rollouts": 4}}},
        {"settings": {}},
        {"policy_version": "000003-abd"},
        {"teacher_version": "ema@000003-abc"},
    ],
)
def test_the_next_version_depends_on_every_part(change: dict[str, Any]) -> None:
    base = origin("updates")
    other = base.model_copy(update=change)
    assert next_version(base) == next_version(origin("updates"))
    assert next_version(other).partition("-")[2] != next_version(base).partition("-")[2]


def test_no_part_of_an_origin_was_forgotten_here() -> None:
    parts = {"table", "step", "stage", "stage_version", "schema_version", "inputs", "settings"}
    assert parts | {"policy_version", "teacher_version"} == set(origin("updates").model_dump())


# --- progress --------------------------------------------------------------------------------


def test_progress_adds_up() -> None:
    calls: list[tuple[int, int]] = []
    counter = ProgressCounter(Handles(0, 0, progress=lambda *call: calls.append(call)), 10)
    counter(3)
    counter(7)
    assert calls == [(3, 10), (10, 10)]
    assert silent(1, 2) is None
