"""Several tasks in one run: what is asked, who judges it, what is recorded; reruns of it."""

import contextlib
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.reruns.evaluate import evaluate_now
from flows.reruns.replay import Plan, replay
from flows.session.question_loading import load_questions
from flows.session.session import Session
from pipeline.check.check_run import check_run
from pipeline.compare.comparison import compare_runs
from pipeline.config.load import load_config
from pipeline.errors import ConfigError, DataError, StoreError
from pipeline.files.durable import digest_of
from pipeline.housekeeping.run_listing import overview
from pipeline.run.metrics import evaluation_metrics
from pipeline.run.run import Run
from tests.conftest import Srpo
from tests.flows.session.mixtures import DOUBLES, SETTINGS, STEPS, mixed, settings, trained
from tests.flows.test_train_command import command, digests, wait_for
from tests.paths import DATASETS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a trained run of two tasks; never write to it."""
    return trained(tmp_path_factory.mktemp("mixture"))


def frame(run: Run, table: str, step: int) -> pl.DataFrame:
    found = pl.from_arrow(run.read(table, step))
    assert isinstance(found, pl.DataFrame)
    return found


def test_questions_come_by_weight_each_task_in_its_own_epochs(run: Run) -> None:
    asked: dict[str, list[str]] = {"arithmetic": [], "doubles": []}
    for step in range(STEPS):
        groups = frame(run, "rollouts", step).unique("group", maintain_order=True)
        for task, prompt in groups.select("task", "prompt_id").rows():
            name, _, own = prompt.partition("/")
            assert name == task
            asked[task].append(own)
        number = 4 * (step + 1)
        assert len(asked["doubles"]) in (number // 3, -(-number // 3))
    assert Counter(map(len, asked.values())) == {16: 1, 8: 1}
    assert len(set(asked["doubles"])) == 8  # of 10: within an epoch none comes twice
    again = load_questions(run.config)
    for step in reversed(range(STEPS)):
        found = again.of_step(run.config, step)
        groups = frame(run, "rollouts", step).unique("group", maintain_order=True)
        assert groups["prompt_id"].to_list() == [q.prompt_id for q in found.questions]


def test_each_answer_is_judged_by_the_verifier_of_its_task(run: Run) -> None:
    versions = {"arithmetic": "arithmetic/1", "doubles": "doubles/1"}
    tables = [("rollouts", "verdicts", step) for step in range(STEPS)]
    tables += [("evaluations", "evaluations", step) for step in (0, 3, 6)]
    for sampled, judged, step in tables:
        rows, verdicts = frame(run, sampled, step), frame(run, judged, step)
        wanted = rows["task"].replace_strict(versions)
        assert verdicts["verifier"].to_list() == wanted.to_list()
        right = rows["response_text"].str.contains(rows["reference"].str.strip_chars('"'))
        mine = rows["task"] == "doubles"
        assert verdicts.filter(mine)["correct"].to_list() == right.filter(mine).to_list()


def test_numbers_of_each_task(run: Run) -> None:
    for step in range(STEPS):
        record, names = run.metrics(step), frame(run, "rollouts", step)["task"]
        for task in ("arithmetic", "doubles"):
            own = frame(run, "verdicts", step).filter(names == task)
            routes = frame(run, "routes", step).filter(names == task)
            assert record[f"rollouts/{task}"] == len(own)
            assert record[f"reward_mean/{task}"] == pytest.approx(own["reward"].mean())
            taught = (routes["route"] == "sdpo").mean()
            assert record[f"share_sdpo/{task}"] == pytest.approx(taught)
        counts = [record[f"rollouts/{task}"] for task in ("arithmetic", "doubles")]
        means = [record[f"correct_share/{task}"] for task in ("arithmetic", "doubles")]
        whole = sum(n * mean for n, mean in zip(counts, means, strict=True)) / sum(counts)
        assert record["correct_share"] == pytest.approx(whole)


def test_an_evaluation_asks_every_task_and_counts_each_question_the_same(run: Run) -> None:
    record, answers = evaluation_metrics(run.read("evaluations", 6)), frame(run, "evaluations", 6)
    assert [record[f"questions{of}"] for of in ("", "/arithmetic", "/doubles")] == [13, 8, 5]
    assert record["accuracy"] == pytest.approx(answers["correct"].mean())
    for task in ("arithmetic", "doubles"):
        own = answers.filter(pl.col("task") == task)
        assert record[f"accuracy/{task}"] == pytest.approx(own["correct"].mean())
        assert record[f"low/{task}"] <= record[f"accuracy/{task}"] <= record[f"high/{task}"]
    line = overview(run.root)
    assert line["task"] == "arithmetic + doubles"
    assert line["accuracy_of_tasks"] == {
        task: record[f"accuracy/{task}"] for task in ("arithmetic", "doubles")
    }
    (cell,) = compare_runs([run], {"seconds": [1e9], "tokens": [1e9], "steps": [6]}).cells[0][2:]
    assert cell is not None and set(cell.of_tasks) == {"arithmetic", "doubles"}
    best = evaluation_metrics(run.read("evaluations", cell.best[0].steps))
    assert cell.of_tasks["doubles"] == pytest.approx(best["accuracy/doubles"])


def test_the_check_finds_nothing_and_audits_select_by_task(run: Run) -> None:
    report = check_run(run)
    assert report.findings == [] and not any("in it" in note for note in report.notes)
    where = ["audit", str(run.root), "--where", "task = 'doubles'", "--format", "csv"]
    found = CliRunner().invoke(app, where)
    assert found.exit_code == 0, found.output
    assert len(found.stdout.splitlines()) == 1 + 8 * 4
    listed = CliRunner().invoke(app, ["runs", str(run.root.parent)])
    assert "doubles" in listed.stdout


def test_the_same_run_again_has_the_same_tables(run: Run, tmp_path: Path) -> None:
    task = run.config.data.sources["doubles"].task
    config = load_config("demo", [*SETTINGS, f"data.mixture.doubles.task={task}", "run.steps=2"])
    with contextlib.closing(Session.create(tmp_path / "again", config)) as session:
        for stage in ("generate", "verify", "route"):
            session.run_stage(stage, 0)
    again = Run.open(tmp_path / "again")
    for table in ("rollouts", "verdicts", "teacher"):
        assert again.manifest(table, 0).sha256 == run.manifest(table, 0).sha256


def test_a_replay_judges_one_task_by_other_code(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "never.py"
    other.write_text(DOUBLES.replace("doubles/1", "never/1").replace("float(right)", "0.0"))
    plan = Plan.of(run, "verify", "decisions", "1:3")
    change = f"data.mixture.doubles.task={other}"
    replay(run, tmp_path / "fork", plan, [change]).close()
    fork = Run.open(tmp_path / "fork")
    assert check_run(fork).findings == []
    for step in (1, 2):
        names = frame(run, "rollouts", step)["task"]
        before, after = frame(run, "verdicts", step), frame(fork, "verdicts", step)
        kept = names == "arithmetic"
        assert before.filter(kept).equals(after.filter(kept))
        changed = after.filter(~kept)
        assert set(changed["verifier"]) == {"never/1"} and not changed["correct"].any()
    with pytest.raises(ConfigError, match=r"data\.mixture\.doubles\.weight is used by stage gen"):
        replay(run, tmp_path / "no", plan, ["data.mixture.doubles.weight=9"])


def test_a_state_is_evaluated_by_other_settings(tmp_path: Path) -> None:
    session = Session.create(tmp_path / "run", mixed(tmp_path))
    with contextlib.closing(session):
        found = evaluate_now(session, 0, ["evaluate.rollouts=3", "evaluate.questions=2"])
        assert (found["questions"], found["questions/doubles"], found["rollouts"]) == (4, 2, 3)
        again = evaluate_now(session, 0, ["evaluate.rollouts=3", "evaluate.questions=2"])
        assert again == found
        alone = ["data.mixture=none", "data.task=arithmetic", "evaluate.questions=3"]
        assert evaluate_now(session, 0, alone)["questions"] == 3
        with pytest.raises(ConfigError, match=r"data\.task and data\.mixture are both given"):
            evaluate_now(session, 0, ["data.task=arithmetic"])


def test_changed_code_of_one_task_is_noticed(tmp_path: Path) -> None:
    Session.create(tmp_path / "run", mixed(tmp_path)).close()
    (tmp_path / "doubles.py").write_text(DOUBLES + "\n# changed\n")
    with (
        contextlib.closing(Session.resume(tmp_path / "run")) as session,
        pytest.raises(StoreError, match=r"the code of task arithmetic \+ doubles changed"),
    ):
        session.run_stage("generate", 0)


def test_too_long_questions_are_counted_by_task(tmp_path: Path) -> None:
    session = Session.create(tmp_path / "run", mixed(tmp_path))
    session.close()
    skipped = {f"{t} {s}": 0 for t in ("arithmetic", "doubles") for s in ("train", "test")}
    assert session.run.record["skipped_questions"] == skipped
    with pytest.raises(DataError, match="every prompt of the arithmetic train split is longer"):
        Session.create(tmp_path / "no", mixed(tmp_path, "data.max_prompt_length=3"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (DOUBLES.replace("range(10, 15)", "range(0)"), "task doubles: its test split has no q"),
        (DOUBLES.replace("def verify", "def judge"), "doubles.py lacks verify"),
        ("1 / 0", "doubles.py can't be imported: ZeroDivisionError"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused(code: str, said: str, tmp_path: Path) -> None:
    config = mixed(tmp_path)
    (tmp_path / "doubles.py").write_text(code)
    with pytest.raises(DataError, match=said):
        Session.create(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_unknown_tasks_are_refused(tmp_path: Path) -> None:
    config = mixed(tmp_path, "data.mixture.triples.weight=1")
    with pytest.raises(DataError, match="there is no task 'triples': expected one of arithmetic"):
        Session.create(tmp_path / "run", config)


def test_names_are_part_of_questions_identity(tmp_path: Path) -> None:
    def asked(name: str) -> list[Any]:
        task = settings(tmp_path)[-1].partition("=")[2]
        changes = [f"data.mixture.{name}.task={task}", "data.mixture.arithmetic.weight=1"]
        config = load_config("demo", ["data.task=none", *changes])
        return load_questions(config).of_step(config, 0).questions

    assert digest_of([q.prompt_id for q in asked("one")]) != digest_of(
        [q.prompt_id for q in asked("other")]
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_tables(
    run: Run, tmp_path: Path, prefect_api: dict[str, str], srpo: Srpo
) -> None:
    task = run.config.data.sources["doubles"].task
    changes = [*SETTINGS, f"data.mixture.doubles.task={task}"]
    chosen = [part for change in changes for part in ("--set", change)]
    killed = tmp_path / "run"
    process = subprocess.Popen(
        command("train", "demo", "--run", str(killed), *chosen),
        env=prefect_api,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(killed / "steps" / "000002" / "verdicts.json")
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    code, said, error = srpo("train", "--resume", "--run", killed)
    assert code == 0, error
    assert digests(killed) == digests(run.root)
    rows = [line.split() for line in said.splitlines()]
    assert sum(row[:1] == ["doubles"] for row in rows) == 3  # before, after, best


@pytest.mark.slow
def test_real_prompts_of_two_tasks_pass_every_stage(tmp_path: Path, srpo: Srpo) -> None:
    paths = {
        "science_qa": DATASETS / "sciknoweval" / "chemistry",
        "tool_use": DATASETS / "toolalpaca" / "test.json",
    }
    for path in paths.values():
        if not path.exists():
            pytest.skip(f"the dataset {path} is not on this machine")
    changes = ["data.task=none", "run.steps=1", "evaluate.questions=1"]
    changes += [f"data.mixture.{name}.path={path}" for name, path in paths.items()]
    chosen = [part for change in changes for part in ("--set", change)]
    root = tmp_path / "run"
    code, _, error = srpo("train", "smoke-science-qa", "--run", root, *chosen)
    assert code == 0, error
    run = Run.open(root)
    groups = frame(run, "rollouts", 0).unique("group")
    assert Counter(groups["task"]) == {"science_qa": 2, "tool_use": 2}
    assert set(frame(run, "verdicts", 0)["verifier"]) == {"science_qa/1", "tool_use/1"}
    assert frame(run, "evaluations", 1)["task"].n_unique() == 2
    assert check_run(run).findings == []
