"""Forks: what they take from the parent, what they recompute, what they refuse."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from flows.reruns.replay import Plan, combinations, fork_folders, replay, split_steps
from flows.session.fork_run import fork_run
from flows.session.session import Session
from pipeline.check.check_run import check_run
from pipeline.compare.run_diff import diff_runs
from pipeline.config.sections import Config
from pipeline.errors import ConfigError, StoreError
from pipeline.files.sealed_json import write_sealed
from pipeline.run.fork import Fork
from pipeline.run.run import Run
from pipeline.run.step_layout import ALL_STAGES, STEP_STAGES, STEP_TABLES, TABLES_OF_STAGE
from tests.golden.golden_run import golden_config

STEPS = 4
Replay = Callable[..., Run]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    overrides = {
        "run": {"steps": STEPS, "snapshot_every": 2},
        "generate": {"questions": 3, "rollouts": 4},
    }
    return golden_config(tmp_path_factory.mktemp("input"), overrides)


@pytest.fixture(scope="module")
def parent(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four steps with snapshots 0, 2 and 4 and evaluation 0; never write to it."""
    session = Session.create(tmp_path_factory.mktemp("runs") / "parent", config)
    session.run_stage("evaluate", 0)
    train_on(session)
    return session.run


def train_on(session: Session) -> None:
    """Go on to the end, as the flow does, without evaluations."""
    for step in range(session.next_step(), STEPS):
        for name in STEP_STAGES:
            session.run_stage(name, step)
        session.finish_step(step)
        if session.snapshot_due(step + 1):
            session.snapshot(step + 1)
    session.close()


@pytest.fixture
def replayed(parent: Run, tmp_path: Path) -> Replay:
    """Replay the parent into a new fork and return it."""

    def make(stage: str, *settings: str, last: str = "update", steps: str | None = None) -> Run:
        root = tmp_path / f"fork-{len(list(tmp_path.iterdir()))}"
        session = replay(parent, root, Plan.of(parent, stage, last, steps), settings)
        session.close()
        return Run.open(root)

    return make


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def own_tables(run: Run) -> set[tuple[str, int]]:
    return {(p.stem, int(p.parent.name)) for p in run.root.glob("steps/*/*.arrow")}


def test_tables_of_stages_are_those_that_they_declare() -> None:
    from flows.session.stage_runner import STAGES

    assert {name: STAGES[name].writes for name in ALL_STAGES} == TABLES_OF_STAGE


def test_a_fork_takes_what_is_upstream_and_copies_nothing(parent: Run, replayed: Replay) -> None:
    before = digests(parent.root)
    fork = replayed("weigh", "weigh.beta=2", last="weigh")
    assert own_tables(fork) == {("weights", step) for step in range(STEPS)}
    for step in range(STEPS):
        for table in ("rollouts", "verdicts", "routes", "scores", "teacher"):
            assert fork.table_path(table, step).samefile(parent.table_path(table, step))
        assert not fork.has("updates", step)
    assert digests(parent.root) == before
    assert {p.name for p in fork.root.iterdir()} == {"run.json", "steps"}


def test_the_first_difference_is_where_the_fork_begins(parent: Run, replayed: Replay) -> None:
    found = diff_runs(parent, replayed("weigh", "weigh.beta=2", last="weigh"))
    assert found.first is not None
    assert (found.first.step, found.first.table) == (0, "weights")
    assert set(found.first.columns) == {"raw_weight", "weight"}
    assert not found.verdicts and not found.routes


@pytest.mark.parametrize("stage", STEP_STAGES[1:])
def test_a_replay_without_changes_gives_the_same_data(
    parent: Run, replayed: Replay, stage: str
) -> None:
    """Nothing changed, so every update is on-policy as before: equal tables, equal policies."""
    fork = replayed(stage, steps="1:3")
    for step in (1, 2):
        for table in TABLES_OF_STAGE[stage]:
            assert fork.owner(table, step) is fork
        for table in ("routes", "scores", "teacher", "weights", "updates"):
            assert fork.manifest(table, step).sha256 == parent.manifest(table, step).sha256
    own = json.loads((fork.snapshot_path(3) / "state.json").read_text())
    assert own["policy_version"] == parent.manifest("rollouts", 3).facts.get(
        "policy_version", parent.read("rollouts", 3)["policy_version"][0].as_py()
    )


def test_after_a_changed_update_the_rest_is_off_policy(parent: Run, replayed: Replay) -> None:
    fork = replayed("weigh", "weigh.beta=3", steps="1:4")
    assert fork.fork is not None
    assert fork.fork.off_policy_from == 2
    assert "Off-policy: rollouts of steps 2 to 3 were sampled by the parent" in fork.fork.note
    assert json.loads((fork.root / "run.json").read_text())["fork"]["note"] == fork.fork.note
    computed = fork.read("updates", 1).filter(fork.read("updates", 1)["computed"])
    assert set(computed["old_source"].to_pylist()) == {"live"}
    later = fork.read("updates", 2).filter(fork.read("updates", 2)["computed"])
    assert set(later["old_source"].to_pylist()) <= {"stored", "sampled"}


def test_a_fork_of_one_step_is_on_policy(replayed: Replay) -> None:
    fork = replayed("route", "route.top_k=4", steps="2").fork
    assert fork is not None and fork.off_policy_from is None
    assert fork.note.endswith("On-policy: one update.")


def test_a_fork_can_be_trained_on(parent: Run, tmp_path: Path) -> None:
    """With no changes, what it samples is what the parent sampled."""
    fork = fork_run(parent, tmp_path / "fork", "generate", 2, 3)
    train_on(Session.resume(fork.root))
    for table in ("rollouts", "verdicts", "updates"):
        for step in range(STEPS):
            assert fork.manifest(table, step).sha256 == parent.manifest(table, step).sha256
    assert own_tables(fork) == {(t, s) for s in (2, 3) for t in STEP_TABLES}
    assert fork.snapshots() == [0, 2, 4]
    assert fork.steps_of("evaluations") == [0]


def test_weights_alone_can_be_learned_from_later(parent: Run, replayed: Replay) -> None:
    """A replay that ended at weigh, trained on, is the replay that went on to update."""
    weighed = replayed("weigh", "weigh.beta=2", last="weigh")
    train_on(Session.resume(weighed.root))
    whole = replayed("weigh", "weigh.beta=2")
    for step in range(STEPS):
        assert weighed.manifest("updates", step).sha256 == whole.manifest("updates", step).sha256


def test_a_fork_of_a_fork(parent: Run, replayed: Replay, tmp_path: Path) -> None:
    middle = replayed("weigh", "weigh.beta=2", steps="1:3")
    plan = Plan.of(middle, "update", "update", "2")
    session = replay(middle, tmp_path / "grandchild", plan, ["update.learning_rate=0.5"])
    session.close()
    run = Run.open(tmp_path / "grandchild")
    assert run.owner("rollouts", 2).root == parent.root
    assert run.owner("weights", 2).root == middle.root
    assert run.owner("updates", 1).root == middle.root
    assert run.owner("updates", 0).root == parent.root
    assert own_tables(run) == {("updates", 2)}


@pytest.mark.parametrize("kind", ["live", "frozen", "trust_region", "periodic"])
def test_another_teacher(parent: Run, replayed: Replay, kind: str) -> None:
    """The policy of the step is rebuilt with the parent's teacher, then taught by the new one."""
    fork = replayed("route", f"route.teacher={kind}", steps="1")
    version = fork.manifest("teacher", 1).origin.teacher_version
    assert version is not None and version.startswith(f"{kind}@")
    initial = parent.record["initial_policy_version"]
    assert (initial in version) == (kind != "live")
    assert fork.manifest("routes", 1).sha256 != parent.manifest("routes", 1).sha256
    assert fork.read("routes", 1).equals(parent.read("routes", 1))
    found = diff_runs(parent, fork)
    assert found.first is not None and found.first.table == "teacher"
    assert "entropy" in found.first.columns


@pytest.mark.parametrize(("period", "source"), [(1, 3), (2, 2), (3, 3), (9, 0)])
def test_a_fork_adopts_the_periodic_teacher_that_a_run_would_have(
    parent: Run, replayed: Replay, period: int, source: int
) -> None:
    """At step 3 it is the policy after n floor(3 / n) steps, before the nearest snapshot or not."""
    settings = ("route.teacher=periodic", f"route.teacher_period={period}")
    fork = replayed("route", *settings, steps="3")
    after = parent.record["initial_policy_version"]
    if source:
        after = parent.manifest("updates", source - 1).facts["next_policy_version"]
    assert fork.manifest("teacher", 3).origin.teacher_version == f"periodic@{after}"
    with Session.resume(fork.root, writes=False) as session:
        teacher = session.prepare(3).teacher_model
    with Session.resume(parent.root, writes=False) as session:
        expected = session.prepare(source).trainable()
    for name, tensor in teacher.named_parameters():
        assert tensor.equal(expected[name]), name


def test_a_fork_of_a_fork_of_a_periodic_teacher(
    parent: Run, replayed: Replay, tmp_path: Path
) -> None:
    """An ancestor's steps are replayed with the ancestor's teacher, their checksums included."""
    settings = ["route.teacher=periodic", "route.teacher_period=2"]
    middle = replayed("route", *settings, steps="1:4")
    assert check_run(middle).findings == []
    plan = Plan.of(middle, "route", "update", "3")
    session = replay(middle, tmp_path / "grandchild", plan, ["route.teacher=ema"])
    session.close()
    fork = Run.open(tmp_path / "grandchild")
    assert str(fork.manifest("teacher", 3).origin.teacher_version).startswith("ema@000003")
    assert middle.manifest("teacher", 3).origin.teacher_version == (
        f"periodic@{middle.manifest('updates', 1).facts['next_policy_version']}"
    )


def test_decisions_need_no_policy(
    parent: Run, replayed: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.session.resident_policy.load_snapshot", None)
    fork = replayed("verify", "verify.success_threshold=0", last="decisions")
    assert own_tables(fork) == {(t, s) for t in ("verdicts", "routes") for s in range(STEPS)}
    assert all(fork.read("routes", 0)["correct"].to_pylist())
    assert fork.manifest("routes", 0).origin.policy_version is None


def test_a_corrected_verifier_lists_what_changed(
    parent: Run, config: Config, replayed: Replay, tmp_path: Path
) -> None:
    """A verifier that calls one more kind of response right: exactly those verdicts change."""
    corrected = tmp_path / "corrected.py"
    text = Path(config.data.task).read_text()
    corrected.write_text(text.replace("% 2 == 0", "% 2 == 0 or response[:1] < 'e'"))
    fork = replayed("verify", f"data.task={corrected}", last="decisions")
    expected = set()
    for step in range(STEPS):
        rollouts, verdicts = parent.read("rollouts", step), parent.read("verdicts", step)
        for name, response, correct in zip(
            rollouts["rollout_id"].to_pylist(),
            rollouts["response_text"].to_pylist(),
            verdicts["correct"].to_pylist(),
            strict=True,
        ):
            if response[:1] < "e" and not correct:
                expected.add(name)
    found = diff_runs(parent, fork)
    assert {change.rollout_id for change in found.verdicts} == expected != set()
    for change in found.verdicts:
        assert change.changes["correct"] == (False, True)
    groups = {name.rpartition("-")[0] for name in expected}
    assert {change.rollout_id.rpartition("-")[0] for change in found.routes} <= groups


@pytest.mark.parametrize(
    ("stage", "setting", "message"),
    [
        ("weigh", "route.top_k=3", r"route.top_k is used by stage route, .* fork from route"),
        ("route", "data.task=arithmetic", "data.task is used by stage verify"),
        ("update", "run.seed=9", "run.seed is used by stage generate"),
        ("route", "model.path=other", "can't change in a fork"),
        ("weigh", "weigh.beta=-1", "weigh.beta"),
    ],
)
def test_settings_that_a_fork_can_not_change(
    parent: Run, tmp_path: Path, stage: str, setting: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fork_run(parent, tmp_path / "fork", stage, 1, 2, [setting])
    assert not (tmp_path / "fork").exists()


def test_a_fork_needs_the_tables_it_refers_to(parent: Run, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no table rollouts of step 4"):
        fork_run(parent, tmp_path / "fork", "verify", 3, 5)
    with pytest.raises(StoreError, match="4 complete steps: no fork at step 9"):
        fork_run(parent, tmp_path / "fork", "generate", 9, 10)
    with pytest.raises(StoreError, match="there is something already"):
        fork_run(parent, parent.root, "weigh", 1, 2)


def test_a_fork_knows_its_parent(parent: Run, tmp_path: Path) -> None:
    shutil.copytree(parent.root, tmp_path / "a" / "parent")
    fork_run(Run.open(tmp_path / "a" / "parent"), tmp_path / "a" / "fork", "weigh", 1, 2)
    (tmp_path / "a").rename(tmp_path / "b")
    assert Run.open(tmp_path / "b" / "fork").steps_done() == 1
    (tmp_path / "b" / "parent").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="a fork whose parent is not at"):
        Run.open(tmp_path / "b" / "fork")
    other = json.loads((tmp_path / "elsewhere" / "run.json").read_text())
    values = {**other["config"], "run": {**other["config"]["run"], "seed": 77}}
    facts = {k: v for k, v in other.items() if k not in ("config", "digest", "schema_version")}
    from pipeline.config.load import validate_config

    Run.create(tmp_path / "b" / "parent", validate_config(values, "test"), facts)
    with pytest.raises(StoreError, match="is now run"):
        Run.open(tmp_path / "b" / "fork")


def test_a_longer_parent_is_the_same_parent(parent: Run, tmp_path: Path) -> None:
    shutil.copytree(parent.root, tmp_path / "parent")
    run = Run.open(tmp_path / "parent")
    fork_run(run, tmp_path / "fork", "weigh", 1, 2)
    longer = run.config.run.model_copy(update={"steps": 99})
    run.extend(run.config.model_copy(update={"run": longer}))
    assert Run.open(tmp_path / "fork").parent is not None


def test_the_record_of_a_fork_reads_back() -> None:
    fork = Fork("../base", "abc", "route", 2, 5, {"route.top_k": (100, 3)}, updates=True)
    assert Fork.from_record(json.loads(json.dumps(fork.to_record()))) == fork


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, (0, 7)), (":", (0, 7)), ("2:", (2, 7)), (":3", (0, 3)), ("2:5", (2, 5)), ("4", (4, 5))],
)
def test_steps_are_half_open(text: str | None, expected: tuple[int, int]) -> None:
    assert split_steps(text, 7) == expected


@pytest.mark.parametrize("text", ["", "a:b", "5:5", "6:2", "-1:3", "1:2:3"])
def test_steps_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigError, match="--steps"):
        split_steps(text or "x", 7)


def test_a_sweep_is_every_combination() -> None:
    made = combinations(["weigh.beta=0,1", "update.divergence=jsd", "update.jsd_alpha=0.1, 0.9"])
    assert len(made) == 4
    assert made[1] == ["weigh.beta=0", "update.divergence=jsd", "update.jsd_alpha=0.9"]
    assert fork_folders(Path("f"), made)[1] == Path("f/weigh.beta=0,update.jsd_alpha=0.9")
    assert fork_folders(Path("f"), combinations(["a.b=1"])) == [Path("f")]


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ('data.task="a,b"', ['data.task="a,b"']),
        ("data.task='a,b',c", ["data.task='a,b'", "data.task=c"]),
        ("data.path=it's,other", ["data.path=it's", "data.path=other"]),
        ('x.y=["a","b"],["c"]', ['x.y=["a","b"]', 'x.y=["c"]']),
        ('x.y={"a": "1,2"}', ['x.y={"a": "1,2"}']),
        ("x.y=1, 1 ,2", ["x.y=1", "x.y=2"]),
        ("x.y=],a", ["x.y=]", "x.y=a"]),
        ("x.y", ["x.y"]),
    ],
)
def test_commas_in_brackets_and_quotes_part_nothing(override: str, values: list[str]) -> None:
    assert combinations([override]) == [[value] for value in values]


@pytest.mark.parametrize(
    ("stage", "last", "message"),
    [
        ("generate", "update", "a replay keeps the saved rollouts"),
        ("evaluate", "update", "no stage evaluate"),
        ("weigh", "verify", "can't end at verify"),
        ("route", "route", "need the updates before them"),
        ("weigh", "nothing", "no such last stage"),
    ],
)
def test_plans_that_can_not_be(parent: Run, stage: str, last: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan.of(parent, stage, last, None)


def test_another_sibling_demonstrates(parent: Run, replayed: Replay) -> None:
    """Replayed decisions: the longest correct sibling teaches, and only teachers change."""
    fork = replayed("route", "route.demonstration=longest", last="decisions")
    changed = diff_runs(parent, fork).routes
    assert changed
    for change in changed:
        assert set(change.changes) == {"teacher_rollout_id"}
    for step in range(STEPS):
        rollouts, routes = fork.read("rollouts", step), fork.read("routes", step)
        names = rollouts["rollout_id"].to_pylist()
        lengths = dict(zip(names, map(len, rollouts["response_ids"].to_pylist()), strict=True))
        right = dict(zip(names, routes["correct"].to_pylist(), strict=True))
        for name, teacher in zip(names, routes["teacher_rollout_id"].to_pylist(), strict=True):
            if teacher is not None:
                group = name.rpartition("-")[0]
                others = [n for n in names if n.startswith(group) and right[n] and n != name]
                assert lengths[teacher] == max(lengths[n] for n in others)


@pytest.fixture
def copied(parent: Run, tmp_path: Path) -> Run:
    """A copy of the parent that may be damaged."""
    shutil.copytree(parent.root, tmp_path / "copy")
    return Run.open(tmp_path / "copy")


def test_a_fork_never_deletes_a_snapshot_of_its_parent(copied: Run, tmp_path: Path) -> None:
    kept = copied.snapshot_path(2).rename(tmp_path / "aside")
    every = ["run.keep_snapshots=1", "run.snapshot_every=1"]
    fork = fork_run(copied, tmp_path / "fork", "generate", 2, 3, every)
    session = Session.resume(fork.root)
    session.snapshot(2)  # its own, because the parent has none
    assert fork.own_snapshots() == [2]
    kept.rename(copied.own_snapshot_path(2))  # and now it has one again
    before = digests(copied.root)
    train_on(session)
    assert digests(copied.root) == before
    assert 2 not in fork.own_snapshots()


def test_what_a_parent_lost_is_not_made_up_for_in_it(copied: Run, tmp_path: Path) -> None:
    fork = fork_run(copied, tmp_path / "fork", "generate", 2, 3)
    copied.metrics_path(1).unlink()
    before = digests(copied.root)
    session = Session.resume(fork.root)
    session.prepare(1)
    with pytest.raises(StoreError, match=r"metrics.json: missing in the parent of"):
        train_on(session)
    session.close()
    assert digests(copied.root) == before


def test_an_update_that_a_parent_lost_is_not_replayed_by_other_settings(
    copied: Run, tmp_path: Path
) -> None:
    setting = ["update.learning_rate=0.5"]
    fork = fork_run(copied, tmp_path / "fork", "generate", 3, 4, setting)
    for suffix in ("arrow", "json"):
        copied.table_path("updates", 2).with_suffix(f".{suffix}").unlink()
    session = Session.resume(fork.root)
    with pytest.raises(StoreError, match="no table updates of step 2, which its fork"):
        session.prepare(3)
    session.close()
    assert not list(fork.root.glob("steps/*/updates*"))


def test_a_policy_rebuilt_from_another_state_is_noticed(copied: Run) -> None:
    """Its updates have equal tables, but not equal weights."""
    folder = copied.snapshot_path(2)
    state = json.loads((folder / "state.json").read_text())
    weights = load_file(folder / "optimizer.safetensors")
    save_file(
        {name: value * 2 for name, value in weights.items()}, folder / "optimizer.safetensors"
    )
    digest = hashlib.sha256((folder / "optimizer.safetensors").read_bytes()).hexdigest()
    state["sha256"]["optimizer.safetensors"] = digest
    write_sealed(folder / "state.json", state)
    session = Session.resume(copied.root)
    with pytest.raises(StoreError, match="recomputing gave another checksum"):
        session.prepare(3)
    session.close()


def test_a_fork_of_an_off_policy_step_says_so(replayed: Replay, tmp_path: Path) -> None:
    middle = replayed("weigh", "weigh.beta=3", steps="1:4")
    first = fork_run(middle, tmp_path / "first", "weigh", 1, 2, ["weigh.beta=0"]).fork
    later = fork_run(middle, tmp_path / "later", "weigh", 2, 3, ["weigh.beta=0"]).fork
    assert first is not None and first.off_policy_from is None
    assert later is not None and later.off_policy_from == 2
    assert "since an earlier fork" in later.note


def test_a_fork_without_updates_says_what_training_on_would_be(replayed: Replay) -> None:
    fork = replayed("verify", "verify.success_threshold=0", last="decisions").fork
    assert fork is not None and fork.off_policy_from == 1
    assert "once it is trained on: Off-policy" in fork.note


def test_evaluations_by_another_verifier_are_not_inherited(
    copied: Run, config: Config, tmp_path: Path
) -> None:
    task = Path(config.data.task)
    text = task.read_text()
    try:
        task.write_text(text + "\n# corrected\n")
        judged = fork_run(copied, tmp_path / "judged", "verify", 1, 2)
        weighed = fork_run(copied, tmp_path / "weighed", "weigh", 1, 2)
        assert judged.steps_of("evaluations") == []
        assert judged.record["task_digest"] != copied.record["task_digest"]
        assert weighed.steps_of("evaluations") == [0]
        session = Session.resume(weighed.root)
        with pytest.raises(StoreError, match="the code of task"):
            _ = session.questions  # its verdicts are by the code before
        session.close()
    finally:
        task.write_text(text)


def test_a_replay_cut_short_goes_on(
    parent: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan.of(parent, "weigh", "update", None)
    whole = replay(parent, tmp_path / "whole", plan, ["weigh.beta=2"])
    whole.close()
    done: list[tuple[int, int]] = []

    def cut(step: int, total: int) -> None:
        done.append((step, total))
        if len(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(parent, tmp_path / "cut", plan, ["weigh.beta=2"], cut)
    replay(parent, tmp_path / "cut", plan, ["weigh.beta=2"]).close()
    cut_run = Run.open(tmp_path / "cut")
    assert cut_run.steps_done() == STEPS
    for step in range(STEPS):
        assert cut_run.manifest("updates", step).sha256 == (
            whole.run.manifest("updates", step).sha256
        )
    with pytest.raises(StoreError, match="there is something already"):
        replay(parent, tmp_path / "cut", plan, ["weigh.beta=3"])


def test_a_fork_keeps_within_the_context(parent: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="positions"):
        fork_run(parent, tmp_path / "fork", "generate", 1, 2, ["generate.max_response_length=9999"])


def test_another_method_takes_its_own_beta_but_keeps_an_explicit_one(
    parent: Run, replayed: Replay, tmp_path: Path
) -> None:
    assert replayed("route", "route.method=sdpo", last="decisions").config.weigh.beta == 0
    explicit = replayed("weigh", "weigh.beta=2", last="weigh")
    other = fork_run(explicit, tmp_path / "other", "route", 0, 1, ["route.method=sdpo"])
    assert other.config.weigh.beta == 0
    assert other.fork is not None and other.fork.changed["weigh.beta"] == (2.0, 0.0)
    same = fork_run(explicit, tmp_path / "same", "route", 0, 1, ["route.method=srpo"])
    assert same.config.weigh.beta == 2
    heard = fork_run(parent, tmp_path / "heard", "weigh", 0, 1, ["weigh.survival=weight"])
    settings = ["route.method=grpo"]
    assert fork_run(heard, tmp_path / "deaf", "route", 0, 1, settings).config.weigh == (
        other.config.weigh
    )
    settings = ["route.method=sdpo", "weigh.beta=2"]
    with pytest.raises(ConfigError, match="only srpo weighs"):
        fork_run(explicit, tmp_path / "none", "route", 0, 1, settings)
