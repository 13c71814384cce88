"""A session's promises: equal runs, resume between any two stages, input that can't be used."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.session.session import Session
from flows.session.stage_runner import STAGES
from pipeline.config.load import load_config, validate_config
from pipeline.config.sections import Config
from pipeline.errors import ConfigError, DataError, PolicyError, SrpoError, StoreError
from tests.golden.golden_run import golden_config

STEPS = 3
STEP_STAGES = ("generate", "verify", "route", "weigh", "update")
Digests = dict[str, str]


def train(session: Session) -> None:
    """Go on to the end, as the flow does, without Prefect."""
    first = session.next_step()
    session.prepare(first)
    if first == 0:
        session.run_stage("evaluate", 0)
    for step in range(first, STEPS):
        with session.writing_beside():
            for name in STEP_STAGES:
                session.run_stage(name, step)
        session.finish_step(step)
        if session.evaluation_due(step + 1):
            session.run_stage("evaluate", step + 1)
        if session.snapshot_due(step + 1):
            session.snapshot(step + 1)
    session.close()


def digests(run_dir: Path) -> Digests:
    """Return the SHA-256 of every table of a run."""
    return {
        str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run_dir.rglob("*.arrow"))
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    overrides = {"run": {"snapshot_every": 2}, "generate": {"questions": 3, "rollouts": 4}}
    return golden_config(tmp_path_factory.mktemp("input"), overrides)


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of three steps with snapshots 0, 2 and 3."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(Session.create(folder, config))
    return folder


def test_a_run_leaves_every_table(finished: Path) -> None:
    tables = {"rollouts", "verdicts", "routes", "scores", "teacher", "weights", "updates"}
    for step in range(STEPS):
        folder = finished / "steps" / f"{step:06d}"
        assert {p.stem for p in folder.glob("*.arrow")} == tables
        assert {p.stem for p in folder.glob("*.json")} == tables | {"metrics"}
    assert [p.stem for p in sorted((finished / "evaluations").glob("*.arrow"))] == [
        "000000",
        "000003",
    ]
    assert (finished / "tokenizer" / "tokenizer.json").exists()


def test_equal_runs_have_equal_tables(finished: Path, config: Config, tmp_path: Path) -> None:
    train(Session.create(tmp_path / "again", config))
    assert digests(tmp_path / "again") == digests(finished)


def test_another_seed_is_another_run(finished: Path, config: Config, tmp_path: Path) -> None:
    values = config.model_dump()
    values["run"]["seed"] = 4
    session = Session.create(tmp_path / "other", validate_config(values, "test"))
    session.run_stage("generate", 0)
    other = digests(tmp_path / "other")
    session.close()
    assert other.items().isdisjoint(digests(finished).items())


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("done", range(len(STEP_STAGES) + 1))
def test_resume_between_any_two_stages(
    step: int, done: int, finished: Path, tmp_path: Path
) -> None:
    """Cut the run after `done` stages of `step`; the rest comes out the same, to the byte."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    cut(run_dir, step, STEP_STAGES[:done])
    train(Session.resume(run_dir))
    assert digests(run_dir) == digests(finished)


def cut(run_dir: Path, step: int, stages: tuple[str, ...]) -> None:
    """Remove all that comes after these stages of a step."""
    kept = {table for name in stages for table in STAGES[name].writes}
    for folder in (run_dir / "steps").iterdir():
        for path in folder.iterdir():
            later = int(folder.name) > step
            if later or (int(folder.name) == step and path.stem not in kept):
                path.unlink()
    for folder in (run_dir / "policy").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)
    for path in (run_dir / "evaluations").iterdir():
        if int(path.stem) > step:
            path.unlink()


def test_replay_refuses_tables_that_do_not_follow(finished: Path, tmp_path: Path) -> None:
    """An `updates` table of other bytes than the replay's stops the run."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "policy" / "000002")
    shutil.rmtree(run_dir / "policy" / "000003")
    path = run_dir / "steps" / "000001" / "weights.arrow"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))
    session = Session.resume(run_dir)
    with pytest.raises(
        StoreError, match=r"weights\.arrow: bytes differ.*repair it: srpo stage weigh"
    ):
        session.prepare(STEPS)
    session.close()


def test_snapshots_beyond_the_number_kept_go(config: Config, tmp_path: Path) -> None:
    values = config.model_dump()
    values["run"] |= {"keep_snapshots": 1, "snapshot_every": 1}
    session = Session.create(tmp_path / "run", validate_config(values, "test"))
    train(session)
    best = session._records.best()
    assert best is not None
    assert session.run.snapshots() == sorted({0, best, STEPS})


def test_metrics_are_of_the_tables(finished: Path) -> None:
    session = Session.resume(finished)
    record = session.run.metrics(1)
    rewards = session.run.read("verdicts", 1)["reward"].to_pylist()
    routes = session.run.read("routes", 1)["route"].to_pylist()
    session.close()
    assert record["reward_mean"] == pytest.approx(sum(rewards) / len(rewards))
    assert record["share_sdpo"] == routes.count("sdpo") / len(routes)
    assert record["step"] == 1
    path = finished / "steps" / "000001" / "metrics.json"
    text = path.read_text()
    path.write_text(text.replace('"rollouts": 12', '"rollouts": 13'))
    with pytest.raises(StoreError, match=r"metrics\.json: changed"):
        session.run.metrics(1)
    path.write_text(text)


def changed(config: Config, section: str, **settings: object) -> Config:
    values = config.model_dump()
    values[section] |= settings
    return validate_config(values, "test")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A place for a run; after an error nothing may be there."""
    folder = tmp_path / "run"
    yield folder
    assert not folder.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_weights, "a model folder without weights"),
        (without_template, "its tokenizer has no chat template"),
    ],
)
def test_model_folders_that_can_not_be_used(
    damage: Callable[[Path], None], message: str, config: Config, run_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(config.model.path, folder)
    damage(folder)
    with pytest.raises(PolicyError, match=message):
        Session.create(run_dir, changed(config, "model", path=str(folder)))


def test_settings_that_can_not_be_used(config: Config, run_dir: Path) -> None:
    cases: list[tuple[str, dict[str, object], type[SrpoError], str]] = [
        ("data", {"max_prompt_length": 3}, DataError, "every prompt of the train split"),
        ("data", {"task": "no_such_task"}, DataError, "no_such_task"),
        ("data", {"task": "science_qa", "path": "/nowhere"}, DataError, "/nowhere"),
        ("generate", {"max_response_length": 2000}, ConfigError, "2048 positions"),
        ("model", {"path": "/nowhere"}, PolicyError, "no such model folder"),
    ]
    for section, settings, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            Session.create(run_dir, changed(config, section, **settings))
        assert "\n" not in str(caught.value)


def test_long_prompts_are_skipped_and_counted(config: Config, tmp_path: Path) -> None:
    session = Session.create(tmp_path / "run", changed(config, "data", max_prompt_length=14))
    session.close()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    skipped = record["skipped_questions"]
    assert 0 < skipped["train"] < 24
    assert len(session.questions.train) == 24 - skipped["train"]


def test_a_run_folder_is_never_taken_over(finished: Path, config: Config) -> None:
    with pytest.raises(StoreError, match="there is something already"):
        Session.create(finished, config)


def test_a_changed_task_is_noticed(finished: Path, config: Config) -> None:
    path = Path(config.data.task)
    text = path.read_text()
    path.write_text(text + "\n# edited\n")
    with pytest.raises(StoreError, match=r"the code of task .* changed"):
        _ = Session.resume(finished).questions
    path.write_text(text)


def test_changed_questions_are_noticed(config: Config, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "answer": "A", "idx": i} for i in range(20)]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    values = config.model_dump()
    values["data"] |= {"task": "science_qa", "path": str(data)}
    Session.create(tmp_path / "run", validate_config(values, "test")).close()
    Session.resume(tmp_path / "run").close()
    rows[3]["answer"] = "B"  # same ids, same prompts, another gold answer
    data.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(StoreError, match=r"questions or answers of .* changed"):
        _ = Session.resume(tmp_path / "run").questions


def test_a_run_that_never_began_can_begin(config: Config, tmp_path: Path) -> None:
    """Killed before run.json, which is written last: what is there is no obstacle."""
    run = tmp_path / "run"
    Session.create(run, config).close()
    (run / "run.json").unlink()
    shutil.move(run / "policy" / "000000", run / "policy" / ".000000.tmp")
    Session.create(run, config).close()
    assert [p.name for p in (run / "policy").iterdir()] == ["000000"]


def test_a_lost_table_is_made_again(finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    lost = run_dir / "steps" / "000001" / "verdicts.arrow"
    lost.unlink()
    session = Session.resume(run_dir)
    with pytest.raises(StoreError, match="committed but missing; repair it: srpo stage verify"):
        session.run.read("verdicts", 1)
    assert session.run_stage("verify", 1)["skipped"] is False
    session.close()
    assert digests(run_dir) == digests(finished)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('zzz')", "load of its train split raised KeyError: 'zzz'"),
        ("return [{'prompt': 'x'}]", "load must return a list of pipeline.task.Question"),
        ("return []", "its train split has no questions"),
    ],
)
def test_a_task_of_ones_own_that_can_not_load(
    body: str, message: str, config: Config, run_dir: Path, tmp_path: Path
) -> None:
    task = tmp_path / "mine.py"
    task.write_text(
        f"VERIFIER = 'mine/1'\ndef verify(r, g): pass\ndef load(path, split):\n    {body}\n"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        Session.create(run_dir, changed(config, "data", task=str(task)))


def test_a_step_beyond_the_run_is_named(finished: Path) -> None:
    session = Session.resume(finished)
    for stage in ("verify", "route", "evaluate"):
        with pytest.raises(StoreError, match="has 3 complete steps: no state after 99"):
            session.run_stage(stage, 99)
    session.close()


def test_a_snapshot_of_a_run_that_never_began_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    small = ["generate.questions=2", "evaluate.questions=2", "verify.workers=1"]
    for teacher in ("live", "ema"):
        config = load_config("demo", [*small, f"route.teacher={teacher}"])
        session = Session.create(tmp_path / "run", config)
        session.close()
        (tmp_path / "run" / "run.json").unlink()
    assert (tmp_path / "run" / "policy" / "000000" / "teacher.safetensors").exists()
