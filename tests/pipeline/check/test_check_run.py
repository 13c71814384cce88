"""Damage planted in a run is found, and named by the file that is broken."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from flows.session.session import Session
from pipeline.check.check_report import CheckReport, Finding
from pipeline.check.check_run import check_run
from pipeline.files.durable import json_text
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_TABLES
from tests.builders.tables import with_column
from tests.golden.golden_run import make_run
from tests.pipeline.check.damage import edit_json, flip, reseal, rewrite, set_value

STEP = 1
FILES = [f"steps/000001/{table}" for table in STEP_TABLES] + ["evaluations/000000"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of two steps in two updates each, and half of a third; never write to it."""
    session = make_run(tmp_path_factory.mktemp("sound"), {"route": {"mini_batch": 3}})
    session.run_stage("evaluate", 0)
    session.close()
    yield session.run.root


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run"))


def checked(run: Path) -> CheckReport:
    return check_run(Run.open(run))


def findings(run: Path) -> list[Finding]:
    return checked(run).findings


def only(run: Path) -> Finding:
    (finding,) = findings(run)
    return finding


def names(run: Path) -> set[str]:
    return {str(Path(finding.path).relative_to(run)) for finding in findings(run)}


def test_a_damaged_tokenizer_is_named_whatever_its_path_looks_like(
    sound: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(sound, tmp_path / "a: run; of mine"))
    flip(run / "tokenizer" / "tokenizer.json")
    finding = only(run)
    assert finding.path == str(run / "tokenizer" / "tokenizer.json")
    assert finding.found == "missing or damaged (SHA-256 differs from run.json)"
    assert finding.advice == f"copy it from {run / 'policy' / '000000'}"


def test_a_sound_run_has_no_findings(sound: Path) -> None:
    told: list[tuple[int, int]] = []
    report = check_run(Run.open(sound), lambda done, total: told.append((done, total)))
    assert report.findings == [] and report.notes == []
    assert report.tables == 2 * len(STEP_TABLES) + 2 + 1
    everything = {*sound.rglob("*.arrow"), *(sound / "policy").rglob("*")}
    files = [p for p in everything if p.is_file() and p.name != "state.json"]
    assert report.bytes == sum(p.stat().st_size for p in files)
    assert max(told) == (report.bytes, report.bytes)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_a_table(run: Path, name: str) -> None:
    flip(run / f"{name}.arrow")
    finding = only(run)
    assert finding.path == str(run / f"{name}.arrow")
    assert finding.expected.startswith("SHA-256") and finding.found != finding.expected
    assert "srpo stage" in finding.advice


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("at", [0.0, 0.3, 0.7])
def test_a_flipped_bit_in_a_manifest(run: Path, name: str, at: float) -> None:
    flip(run / f"{name}.json", at)
    finding = only(run)
    assert finding.path == str(run / f"{name}.json")
    assert finding.expected == "a manifest as it was written"


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_table(run: Path, name: str) -> None:
    path = run / f"{name}.arrow"
    path.write_bytes(path.read_bytes()[:-8])
    finding = only(run)
    assert finding.path == str(path) and finding.found.endswith(" bytes")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("suffix", [".arrow", ".json"])
def test_a_missing_file(run: Path, name: str, suffix: str) -> None:
    (run / f"{name}{suffix}").unlink()
    finding = only(run)
    assert finding.path == str(run / f"{name}{suffix}") and finding.found == "no file"


def test_a_folder_is_no_table(run: Path) -> None:
    path = run / "steps/000001/routes.arrow"
    path.unlink()
    path.mkdir()
    finding = only(run)
    assert finding.path == str(path) and finding.found == "no file"


def test_snapshots_that_are_all_gone(run: Path) -> None:
    shutil.rmtree(run / "policy")
    (run / "policy").write_text("x")
    finding = only(run)
    assert finding.path == str(run / "policy/000000") and finding.found == "no folder"


def test_a_missing_table_of_a_complete_step(run: Path) -> None:
    for suffix in (".arrow", ".json"):
        (run / f"steps/000001/scores{suffix}").unlink()
    assert names(run) == {"steps/000001/scores.arrow"}


@pytest.mark.parametrize("contents", [b"", b"ARROW1\0\0", b"no table at all"])
def test_a_file_that_is_no_table_but_sealed(run: Path, contents: bytes) -> None:
    (run / "steps/000001/updates.arrow").write_bytes(contents)
    reseal(run / "steps/000001/updates.arrow")
    assert names(run) == {"steps/000001/updates.arrow"}
    assert findings(run)[0].expected == "a readable Arrow file"


def test_swapped_rows(run: Path) -> None:
    order = pa.array([1, 0, *range(2, 30)])
    rewrite(run / "steps/000001/verdicts.arrow", lambda data: data.take(order))
    texts = [finding.expected for finding in findings(run)]
    assert any("rollout_ids are not those of rollouts" in text for text in texts)


class Sealed(NamedTuple):
    """A value changed in a table that was sealed anew, and the invariant that it breaks."""

    table: str
    column: str
    row: int
    value: Any
    invariant: str


def bit(factor: float) -> Callable[[float], float]:
    return lambda old: old * factor


def scaled(place: int, factor: float) -> Callable[[list[float]], list[float]]:
    return lambda old: [v * factor if i == place else v for i, v in enumerate(old)]


def other_source(old: str) -> str:
    return "sibling" if old == "none" else "none"


SEALED = [
    Sealed("rollouts", "seed", 3, 7, "seed is derived from run, step, group and sample"),
    Sealed("rollouts", "temperature", 3, 0.9, "temperature is 0.8"),
    Sealed("rollouts", "reference", 3, '"x"', "a group has one question"),
    Sealed("rollouts", "policy_version", 3, "000001-x", "policy_version is 000001-"),
    Sealed("rollouts", "response_ids", 3, lambda ids: [53, *ids[1:]], "are in the vocabulary"),
    Sealed("rollouts", "rollout_id", 3, "000001-0000-09", "rollout_id says step, group and"),
    Sealed("verdicts", "correct", 3, lambda old: not old, "correct is reward >= 0.5"),
    Sealed("verdicts", "reward", 3, lambda old: 1 - old, "correct is reward >= 0.5"),
    Sealed("routes", "advantage", 3, bit(1.01), "advantage follows from the group's rewards"),
    Sealed("routes", "group_std", 3, 0.9, "group_std is their deviation"),
    Sealed("routes", "correct", 3, lambda old: not old, "correct is copied"),
    Sealed("routes", "teacher_source", 3, other_source, "teacher_source is none exactly without"),
    Sealed("scores", "student_entropy", 3, scaled(0, 90.0), "student_entropy in [0, ln V]"),
    Sealed("teacher", "student_logprobs", 3, scaled(2, 1.001), "mass and tail sum to 1"),
    Sealed("teacher", "teacher_logprobs", 3, scaled(0, 1.01), "mass and tail sum to 1"),
    Sealed("teacher", "student_logprobs", 3, lambda old: old[::-1], "order of the student's"),
    Sealed("teacher", "topk_ids", 3, lambda old: [old[1], *old[1:]], "topk_ids are distinct"),
    Sealed("teacher", "topk_ids", 3, lambda old: [99, *old[1:]], "topk_ids are in the vocabulary"),
    Sealed("teacher", "teacher_tail", 3, bit(1.001), "mass and tail sum to 1"),
    Sealed("teacher", "jsd", 3, bit(1.001), "jsd follows from the stored log-probabilities"),
    Sealed("teacher", "entropy", 3, 4.2, "entropy in [0, ln V]"),
    Sealed("teacher", "student_logprob", 3, bit(1.01), "student_logprob is that of"),
    Sealed("weights", "weight", 3, bit(1.001), "weight is raw_weight over its mean"),
    Sealed("weights", "raw_weight", 3, bit(1.001), "raw_weight is exp(-1 H)"),
    Sealed("weights", "entropy", 3, bit(1.001), "entropy is that of teacher"),
    Sealed("updates", "share", 3, bit(1.001), "share is tokens / N"),
    Sealed("updates", "loss_sum", 3, bit(1.001), "fact loss is"),
    Sealed("updates", "mean_tis", 3, 2.5, "mean_tis in range"),
    Sealed("updates", "mean_logprob_gap", 3, 9.0, "mean_logprob_gap is at most the largest"),
    Sealed("updates", "engine_kl", 3, -0.1, "engine_kl in range"),
    Sealed("updates", "tis_cut_fraction", 3, 1.5, "tis_cut_fraction in range"),
    Sealed("updates", "engine_kl", 3, None, "statistics exactly where computed"),
    Sealed("updates", "computed", 3, lambda old: not old, "computed exactly if"),
    Sealed("updates", "old_source", 3, "live", "log pi_old is live, stored or sampled"),
]


@pytest.mark.parametrize("sealed", SEALED, ids=lambda s: f"{s.table}.{s.column}")
def test_a_change_that_was_sealed_anew(run: Path, sealed: Sealed) -> None:
    path = run / f"steps/000001/{sealed.table}.arrow"
    set_value(path, sealed.column, sealed.row, sealed.value)
    texts = [f.expected for f in findings(run) if f.path == str(path)]
    assert any(sealed.invariant in text for text in texts), texts


def test_what_was_made_from_a_changed_table_is_named(run: Path) -> None:
    set_value(run / "steps/000001/weights.arrow", "weight", 3, bit(1.001))
    assert names(run) == {
        "steps/000001/weights.arrow",  # its mean, its formula
        "steps/000001/updates.json",  # was made from another one
        "steps/000001/metrics.json",  # weight_std
    }


def test_a_route_against_the_table_of_the_method(run: Path) -> None:
    path = run / "steps/000001/routes.arrow"
    rewrite(path, lambda data: with_column(data, "route", ["grpo"] * data.num_rows))
    texts = [f.expected for f in findings(run) if f.path == str(path)]
    assert any(
        "method srpo: correct False, teacher_available True gives route sdpo, not grpo" in text
        for text in texts
    )


def test_a_teacher_that_is_not_the_first(run: Path) -> None:
    def later(data: pa.Table) -> pa.Table:
        rows = data.to_pylist()
        for row in rows:
            right = [r["rollout_id"] for r in rows if r["group"] == row["group"] and r["correct"]]
            others = [name for name in right if name != row["rollout_id"]]
            if row["teacher_available"]:
                row["teacher_rollout_id"] = others[-1]
        return with_column(data, "teacher_rollout_id", [r["teacher_rollout_id"] for r in rows])

    rewrite(run / "steps/000001/routes.arrow", later)
    assert any("the teacher is the first correct sibling" in f.expected for f in findings(run))


def test_many_broken_rows_are_one_finding(run: Path) -> None:
    path = run / "steps/000001/teacher.arrow"
    rewrite(path, lambda data: with_column(data, "jsd", [0.5] * data.num_rows))
    (finding,) = [f for f in findings(run) if f.path == str(path)]
    rows = int(np.prod(Run.open(run).manifest("teacher", STEP).rows))
    assert finding.found.startswith(f"otherwise in {rows} of {rows} rows, first at 000001-")


def test_a_broken_chain_of_versions(run: Path) -> None:
    def other(manifest: dict[str, Any]) -> None:
        manifest["facts"]["next_policy_version"] = "000001-0123456789ab"

    edit_json(run / "steps/000000/updates.json", other)
    found = findings(run)
    assert found[0].path.endswith("steps/000000/updates.json")
    assert found[0].expected.startswith("next_policy_version 000001-")
    assert "which the update before it made" in found[1].expected
    broken = {str(Path(f.path).relative_to(run)) for f in found[1:]}
    assert broken == {
        "policy/000001/state.json",
        *(f"steps/000001/{name}.json" for name in ("rollouts", "scores", "teacher", "updates")),
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m["origin"]["inputs"].update(teacher="0" * 64), "input teacher with SHA-256"),
        (lambda m: m["origin"]["settings"]["weigh"].update(beta=3.0), "weigh.beta = 1.0"),
        (lambda m: m["origin"].update(step=0), "step 1"),
        (lambda m: m.update(rows=3), "3 rows, as its manifest says"),
        (lambda m: m["index"].popitem(), "an index of the rows of each rollout"),
        (lambda m: m["origin"].update(stage_version=9), "the origin of its manifest"),
    ],
)
def test_a_manifest_that_was_sealed_anew(run: Path, change: Any, expected: str) -> None:
    edit_json(run / "steps/000001/weights.json", change)
    assert any(finding.expected.startswith(expected) for finding in findings(run))


def test_metrics(run: Path) -> None:
    path = run / "steps/000001/metrics.json"
    flip(path)
    assert only(run).path == str(path)
    shutil.copy(run / "steps/000000/metrics.json", path)
    assert {f.path for f in findings(run)} == {str(path)}
    path.unlink()
    shutil.copy(run / "steps/000000/metrics.json", run / "steps/000002/metrics.json")
    assert "steps/000001/metrics.json" in names(run)


def test_metrics_that_do_not_follow_from_the_tables(run: Path) -> None:
    edit_json(run / "steps/000001/metrics.json", lambda record: record.update(reward_mean=0.9))
    finding = only(run)
    assert finding.expected.startswith("reward_mean = ") and finding.found == "0.9"


def test_metrics_of_another_version_are_noted(run: Path) -> None:
    edit_json(run / "steps/000001/metrics.json", lambda record: record.pop("reward_mean"))
    report = checked(run)
    assert report.findings == []
    assert "no reward_mean in it: written by another version" in report.notes[0]


def test_snapshots(run: Path) -> None:
    flip(run / "policy/000001/model.safetensors")
    (run / "policy/000002/config.json").unlink()
    edit_json(run / "policy/000000/state.json", lambda s: s.update(policy_version="000000-x"))
    assert names(run) == {
        "policy/000001/model.safetensors",
        "policy/000002/config.json",
        "policy/000000/state.json",
    }
    (run / "policy/000000/state.json").unlink()
    assert "policy/000000/state.json" in names(run)


def test_leftovers_are_noted(run: Path) -> None:
    (run / "steps/000001/.scores.arrow.tmp").write_bytes(b"x")
    (run / "policy/.000003.tmp").mkdir()
    (run / "steps/000002/verdicts.json").unlink()
    report = checked(run)
    assert report.findings == []
    assert sum("cut short" in note for note in report.notes) == 2
    assert any("verdicts.arrow: no manifest, so not committed" in note for note in report.notes)


def test_a_fork_is_checked_with_what_it_inherits(run: Path, tmp_path: Path) -> None:
    from flows.reruns.replay import Plan, replay

    parent = Run.open(run)
    plan = Plan.of(parent, "weigh", "update", None)
    replay(parent, tmp_path / "fork", plan, ["weigh.beta=2"]).close()
    assert check_run(Run.open(tmp_path / "fork")).findings == []
    flip(run / "steps/000001/teacher.arrow")
    (finding,) = check_run(Run.open(tmp_path / "fork")).findings
    assert finding.path.endswith("run/steps/000001/teacher.arrow")
    assert f"--run {finding.path.split('/steps')[0]} --step 1" in finding.advice


def test_no_damage_makes_a_traceback(run: Path) -> None:
    """Sealed nonsense in every column of every table, and in the manifests' facts."""
    for table in STEP_TABLES:
        path = run / f"steps/000001/{table}.arrow"
        manifest = json.loads(path.with_suffix(".json").read_text())
        data = Run.open(run).read(table, STEP)
        for column in data.column_names:
            rewrite(path, lambda rows, name=column: nonsense(rows, name))
        edit_json(path.with_suffix(".json"), lambda m: m.update(facts={}))
        assert findings(run)
        path.with_suffix(".json").write_text(json_text(manifest))


def nonsense(data: pa.Table, column: str) -> pa.Table:
    """Return the table with a value in each row that its type allows and nothing else does."""
    kind = data.schema.field(column).type
    if pa.types.is_string(kind):
        value: Any = "\x1b[31m\u202e" + "x" * 300
    elif pa.types.is_list(kind):
        value = []
    elif pa.types.is_fixed_size_list(kind):
        whole = pa.types.is_integer(kind.value_type)
        value = [-(2**31) if whole else float("nan")] * kind.list_size
    elif pa.types.is_boolean(kind):
        value = True
    else:
        value = -(2**31) if pa.types.is_integer(kind) else float("nan")
    return with_column(data, column, [value] * data.num_rows)


def test_what_is_shown_is_short_and_harmless(run: Path) -> None:
    path = run / "steps/000001/rollouts.arrow"
    rewrite(path, lambda data: nonsense(data, "rollout_id"))
    for finding in findings(run):
        assert finding.line.isprintable() and len(finding.line) < 1200


def test_a_session_of_the_run_still_opens(run: Path) -> None:
    """A check changes nothing."""
    before = sorted(p.stat().st_mtime_ns for p in run.rglob("*"))
    assert findings(run) == []
    assert sorted(p.stat().st_mtime_ns for p in run.rglob("*")) == before
    Session.resume(run).close()


def test_the_last_steps_can_not_vanish(run: Path) -> None:
    assert Run.open(run).snapshots()[-1] == 2
    for step in (1, 2):
        shutil.rmtree(run / "steps" / f"{step:06d}")
    assert "steps/000001/metrics.json" in names(run)


def test_a_snapshot_lists_what_it_must_hold(run: Path) -> None:
    folder = run / "policy" / "000002"
    needed = {"optimizer.safetensors", "teacher.safetensors", "model.safetensors", "tokenizer.json"}

    def unlist(state: dict[str, Any]) -> None:
        for name in needed:
            del state["sha256"][name]

    edit_json(folder / "state.json", unlist)
    assert {f"policy/000002/{name}" for name in needed} <= names(run)


def test_an_evaluation_of_the_schedule_can_not_vanish(run: Path) -> None:
    for suffix in (".arrow", ".json"):
        (run / f"evaluations/000000{suffix}").unlink()
    finding = only(run)
    assert finding.path == str(run / "evaluations/000000.arrow")
    assert f"srpo stage evaluate --run {run} --step 0" in finding.advice


def test_files_that_a_snapshot_does_not_list(run: Path) -> None:
    (run / "policy/000001/model-2.safetensors").write_bytes(b"x")
    assert only(run).path == str(run / "policy/000001/model-2.safetensors")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s["teacher"].update(rate=0.5), "teacher {"),
        (lambda s: s.update(teacher=None), "teacher {"),
        (lambda s: s.update(initial_version="000000-x"), "initial_version 000000-"),
        (lambda s: s.update(sha256=["model.safetensors"]), "a list of files"),
    ],
)
def test_a_snapshot_of_other_settings(run: Path, change: Any, expected: str) -> None:
    edit_json(run / "policy/000002/state.json", change)
    finding = only(run)
    assert finding.path == str(run / "policy/000002/state.json")
    assert finding.expected.startswith(expected)


def test_advice_names_the_run_that_owns_a_file(run: Path, tmp_path: Path) -> None:
    from flows.reruns.replay import Plan, replay

    parent, fork = Run.open(run), tmp_path / "fork"
    replay(parent, fork, Plan.of(parent, "weigh", "update", "1:2"), ["weigh.beta=2"]).close()
    flip(run / "steps/000000/metrics.json")
    (fork / "steps/000001/metrics.json").unlink()
    missing, broken = check_run(Run.open(fork)).findings
    assert broken.advice.endswith(f"srpo train --resume --run {run.resolve()}")
    anew = f"srpo replay {run.resolve()} --from weigh --steps 1:2 --fork NEW"
    assert missing.advice.endswith(anew) and "--resume" not in missing.advice


@pytest.fixture(scope="module", params=["weight", "unnormalised", "hand_over"])
def surviving(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A run with prefix survival; never write to it."""
    folder = tmp_path_factory.mktemp("surviving")
    session = make_run(folder, {"weigh": {"survival": request.param}})
    session.run_stage("evaluate", 0)
    session.close()
    yield session.run.root


def test_survival_follows_from_the_teachers_table(surviving: Path, tmp_path: Path) -> None:
    assert findings(surviving) == []
    kind = Run.open(surviving).config.weigh.survival
    changes = {
        "survival": ("survival follows from teacher", bit(0.999)),
        "raw_weight": ("raw_weight is exp(-1 H)", bit(1.001)),
        "weight": ("weight is raw_weight over its mean", bit(1.001)),
        **({"reward_weight": ("reward_weight is 1", bit(0.9))} if kind == "hand_over" else {}),
    }
    for column, (invariant, change) in changes.items():
        run = Path(shutil.copytree(surviving, tmp_path / column))
        path = run / "steps/000001/weights.arrow"
        set_value(path, column, 3, change)
        texts = [f.expected for f in findings(run) if f.path == str(path)]
        assert any(invariant in text for text in texts), (column, texts)


def test_survival_that_was_set_has_its_columns(surviving: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(surviving, tmp_path / "run"))
    path = run / "steps/000001/weights.arrow"
    rewrite(path, lambda data: data.drop_columns(data.column_names[5:]))
    texts = [f.expected for f in findings(run) if f.path == str(path)]
    assert any("so there is a column survival" in text for text in texts), texts
