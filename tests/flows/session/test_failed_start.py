"""A start that fails leaves no run folder behind, whatever it was that failed, and says why."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch

from flows.session import disk_check, new_run
from flows.session.failed_start import removing_failed_start
from flows.session.session import Session
from flows.session.stage_runner import StageRunner
from pipeline.errors import SrpoError
from pipeline.machine.disk import expect_makeable
from pipeline.remote import client, lease
from pipeline.run.run import Run
from tests.conftest import Srpo
from tests.golden.golden_run import golden_config
from tests.s3_server import CREDENTIALS, serving

SMALL = [
    *("--set", "run.steps=1"),
    *("--set", "generate.questions=2"),
    *("--set", "generate.rollouts=2"),
    *("--set", "generate.max_response_length=8"),
    *("--set", "evaluate.questions=1"),
    *("--set", "evaluate.rollouts=1"),
    *("--set", "verify.workers=1"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the empty folder in which commands run."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def left(folder: Path) -> list[str]:
    """Return what is in a folder, without Prefect's own below it."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(f"{path}" for path in found if ".prefect" not in path.parts)


def failing(*_: Any, **__: Any) -> Any:
    raise SrpoError("planted trouble")


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def model_with(folder: Path, change: Callable[[Path], object]) -> Path:
    """Return a copy of the demo's model folder with a change."""
    shutil.copytree(str(files("data") / "demo" / "policy"), folder)
    change(folder)
    return folder


def bad_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no turns') }}")


def short_context(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**record, "max_position_embeddings": 40}))
    (folder / "model.safetensors").write_bytes(b"not looked at")


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
no_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is not None, reason="vLLM is installed"
)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        pytest.param("model.device=cuda", "torch finds no GPU", marks=no_gpu),
        pytest.param("generate.engine=vllm", "which is not installed", marks=no_vllm),
        ("generate.max_response_length=100000", "positions: lower the limits"),
        ("evaluate.max_response_length=100000", "positions: lower the limits"),
        ("data.max_prompt_length=100000", "positions: lower the limits"),
        ("data.task=nowhere.py", "nowhere.py"),
        ("data.max_prompt_length=1", "longer than data.max_prompt_length"),
        ("model.path=./nowhere", "nowhere"),
    ],
)
def test_what_can_be_checked_is_checked_before_the_folder_is_made(
    setting: str, expected: str, here: Path, srpo: Srpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_run, "keep_tokenizer", failing)  # nothing comes so far
    code, _, error = srpo("train", "demo", *SMALL, "--set", setting)
    assert (code, error.count("\n")) == (2, 1)
    assert expected in error and "planted" not in error
    assert left(here) in ([], ["runs"])


def test_a_task_that_ends_the_process_is_one_line(here: Path, srpo: Srpo) -> None:
    (here / "task.py").write_text(
        'VERIFIER = "x/1"\ndef load(path, split): raise SystemExit("bye")\ndef verify(a, b): ...\n'
    )
    code, _, error = srpo("train", "demo", *SMALL, "--set", "data.task=task.py")
    assert code == 2 and "load of its train split raised SystemExit: bye" in error
    assert left(here) in (["task.py"], ["runs", "task.py"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [(bad_template, "no turns"), (short_context, "has 40 positions: lower the limits")],
)
def test_a_model_that_is_of_no_use_here_leaves_no_folder(
    change: Callable[[Path], None], expected: str, here: Path, srpo: Srpo, tmp_path: Path
) -> None:
    model = model_with(tmp_path / "model", change)
    code, _, error = srpo("train", "demo", *SMALL, "--set", f"model.path={model}")
    assert (code, error.count("\n")) == (2, 1)
    assert expected in error
    assert left(here) in ([], ["runs"])


def test_too_little_disk_leaves_no_folder(
    here: Path, srpo: Srpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_check, "free_bytes", lambda _: 1000)
    code, _, error = srpo("train", "demo", *SMALL)
    assert code == 2 and "its disk has 1.0 kB free" in error
    assert left(here) in ([], ["runs"])


@pytest.mark.parametrize("trouble", ["load_questions", "open_policy", "save_snapshot"])
def test_ctrl_c_while_the_model_loads_leaves_no_folder(
    trouble: str, here: Path, srpo: Srpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_run, trouble, interrupted)
    code, _, error = srpo("train", "demo", *SMALL)
    assert (code, error) == (130, "interrupted; nothing was written\n")
    assert left(here) in ([], ["runs"])


@pytest.mark.parametrize("own_folder", [False, True])
def test_a_first_stage_that_fails_leaves_no_run(
    own_folder: bool, here: Path, srpo: Srpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own_folder:
        (here / "runs" / "mine").mkdir(parents=True)
        (here / "runs" / "mine" / "notes.txt").write_text("keep me")
    run = "runs/mine" if not own_folder else "runs/mine/run"
    with monkeypatch.context() as patch:
        patch.setattr(StageRunner, "run", failing)
        code, _, error = srpo("train", "demo", "--run", run, *SMALL)
    assert code == 2
    assert error.endswith(f"error: planted trouble; nothing was made yet, so {run} was removed\n")
    kept = ["runs", "runs/mine", "runs/mine/notes.txt"] if own_folder else ["runs"]
    assert left(here) in (kept, [])
    code, _, error = srpo("train", "demo", "--run", run, *SMALL)
    assert code == 0, error


def test_what_was_made_before_the_trouble_stays(
    here: Path, srpo: Srpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = StageRunner.run

    def run(self: StageRunner, name: str, *arguments: Any) -> Any:
        return (stage if name == "evaluate" else failing)(self, name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StageRunner, "run", run)
        code, _, error = srpo("train", "demo", "--run", "runs/mine", *SMALL)
    assert code == 2 and error.endswith("error: planted trouble\n")
    assert Run.open(here / "runs" / "mine").has("evaluations", 0)
    code, _, error = srpo("train", "--resume", "--run", "runs/mine")
    assert code == 0, error


def test_an_evaluation_of_a_model_that_fails_leaves_no_run(
    here: Path, srpo: Srpo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = model_with(tmp_path / "model", lambda folder: None)
    monkeypatch.setattr(StageRunner, "run", failing)
    limits = ("--set", "data.max_prompt_length=64", "--set", "evaluate.max_response_length=8")
    code, _, error = srpo("evaluate", model, "--task", "arithmetic", *limits)
    assert code == 2
    assert error == "error: planted trouble; nothing was made yet, so runs/evaluate-1 was removed\n"
    assert left(here) == []


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "input").mkdir()
    config = golden_config(folder / "input", {"run": {"steps": 1}})
    session = Session.create(folder / "parent", config)
    session.run_stage("evaluate", 0)
    for name in ("generate", "verify", "route", "weigh", "update"):
        session.run_stage(name, 0)
    session.finish_step(0)
    session.close()
    return folder / "parent"


@pytest.mark.parametrize(
    "command",
    [
        ["stage", "weigh", "--step", "0", "--set", "weigh.beta=2", "--run"],
        ["stage", "generate", "--step", "0", "--fork", "FORK", "--run"],
        ["replay", "--from", "weigh", "--set", "weigh.beta=2", "--fork", "FORK"],
        ["replay", "--from", "weigh", "--set", "weigh.beta=1,2", "--fork", "FORK"],
        ["evaluate", "--set", "evaluate.rollouts=3"],
    ],
    ids=lambda words: "-".join(words[:3]),
)
def test_a_fork_or_evaluation_that_fails_leaves_no_folder(
    command: list[str],
    parent: Path,
    here: Path,
    srpo: Srpo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = left(parent.parent)
    monkeypatch.setattr(StageRunner, "run", failing)
    words = [str(here / "fork") if word == "FORK" else word for word in command]
    code, _, error = srpo(*words, f"{parent}@0" if command[0] == "evaluate" else parent)
    assert code == 2 and "planted trouble; nothing was made yet, so " in error, error
    assert left(here) == [] and left(parent.parent) == before


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the URL of an empty bucket, and a client of its store."""
    with serving() as server:
        own = {"AWS_ENDPOINT_URL": server.url, "SRPO_CACHE": str(tmp_path / "cache")}
        for name, value in {**CREDENTIALS, **own}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(lease, "LEASE_SECONDS", 3.0)
        client._store.cache_clear()
        names = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        yield server.make_bucket("starts"), boto3.client("s3", endpoint_url=server.url, **names)
        client._store.cache_clear()


@pytest.mark.parametrize("where", ["save_snapshot", "run"])
def test_a_start_that_fails_leaves_nothing_in_the_bucket(
    where: str,
    bucket: tuple[str, Any],
    here: Path,
    srpo: Srpo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, store = bucket
    with monkeypatch.context() as patch:
        patch.setattr(StageRunner if where == "run" else new_run, where, failing)
        code, _, error = srpo("train", "demo", "--run", f"{url}/first", *SMALL)
    assert code == 2 and "planted trouble" in error
    assert "Contents" not in store.list_objects_v2(Bucket="starts")
    if where == "run":
        code, _, error = srpo("train", "demo", "--run", f"{url}/first", *SMALL)
        assert code == 0, error
        assert store.list_objects_v2(Bucket="starts")["KeyCount"] > 10


def test_a_folder_that_can_not_be_made_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below" / "run"):
        with pytest.raises(SrpoError, match=r"file is a file, expected a folder"):
            expect_makeable(folder)
    with pytest.raises(SrpoError, match="the path is no UTF-8"):
        expect_makeable(tmp_path / "r\udcff")
    expect_makeable(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_a_session_removes_only_a_run_that_it_began_and_made_nothing_of(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    config, run = golden_config(tmp_path / "input", {"run": {"steps": 1}}), tmp_path / "runs" / "a"
    gone = pytest.raises(SrpoError, match=r"nothing was made yet, so .*a was removed$")
    with gone, Session.create(run, config):
        failing()
    assert not run.parent.exists()
    with Session.create(run, config):
        pass
    with pytest.raises(SrpoError, match=r"^planted trouble$"), Session.resume(run):
        failing()
    assert Run.open(run).snapshots() == [0]


def test_only_what_the_block_began_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "steps").mkdir(parents=True)
    with pytest.raises(SrpoError, match=r"^planted trouble$"), removing_failed_start(run):
        failing()
    assert (run / "steps").is_dir()
