"""Commands with `--runner` print and leave what they do without; a pool in this process stands in.

That the stand-in's calls survive JSON, other processes and their death is test_runners.
"""

import contextlib
import hashlib
import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import flows.workers.command_pool
from flows.cli import main
from flows.reruns.replay import expect_local
from flows.session.session import Session
from flows.workers.runner_spec import RunnerSpec
from pipeline.errors import ConfigError
from pipeline.remote.mirror_paths import run_path
from pipeline.run.run import Run
from pipeline.stage.contract import Progress
from tests.flows.commands.test_rerun_commands import tiny, trained
from tests.pipeline.check.damage import edit_json, flip, set_value


class Here:
    """Does what a worker pool does, in this process, and counts pieces by name."""

    def __init__(self, spec: RunnerSpec) -> None:
        self.spec, self.done = spec, dict[str, int]()

    def map(
        self, name: str, function: str, items: Sequence[Any], progress: Progress | None = None
    ) -> list[Any]:
        module, _, called = function.partition(":")
        found = []
        for item in json.loads(json.dumps(items)):
            found.append(getattr(importlib.import_module(module), called)(**item))
            if progress is not None:
                progress(len(found), len(items))
        self.done[name] = self.done.get(name, 0) + len(found)
        return list(json.loads(json.dumps(found)))


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Here]:
    """Return the pools that commands had."""
    had: list[Here] = []

    @contextlib.contextmanager
    def command_pool(runner: str | None, folder: Path) -> Iterator[Here | None]:
        if runner is None:
            yield None
            return
        had.append(Here(RunnerSpec.parse(runner)))
        yield had[-1]

    monkeypatch.setattr(flows.workers.command_pool, "command_pool", command_pool)
    return had


def srpo(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["srpo", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code if isinstance(end.value.code, int) else 0


def tables(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*.arrow"))
    }


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps; never write to it."""
    folder = tmp_path_factory.mktemp("runs")
    run = trained(folder / "parent", tiny(folder / "input", steps=4, snapshot_every=2))
    with contextlib.closing(Session.resume(run)) as session:
        for state in (0, 4):
            session.run_stage("evaluate", state)
    return run


RUNNER = ["--runner", "processes:2"]


def test_verify_and_evaluate_leave_the_same_tables_and_no_parts(
    run_dir: Path, pools: list[Here], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    before = tables(run)
    for suffix in ("arrow", "json"):
        (run / "steps" / "000001" / f"verdicts.{suffix}").unlink()
    stage = ["stage", "verify", "--run", run, "--step", "1", *RUNNER]
    assert srpo(monkeypatch, *stage) == 0
    assert tables(run) == before
    assert [worker_pool.done for worker_pool in pools] == [{"verify": 1}]
    for suffix in ("arrow", "json"):
        (run / "evaluations" / f"000004.{suffix}").unlink()
    assert srpo(monkeypatch, "evaluate", run, *RUNNER) == 0
    assert tables(run) == before
    assert pools[-1].done == {"verify": 1}
    assert [p for p in run.rglob("*") if ".parts" in p.name] == []


def test_parts_that_a_kill_left_are_removed_when_their_table_is_there(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    parts = run / "steps" / "000001" / ".verdicts.parts"
    parts.mkdir()
    (parts / "left.json").write_text("{}")
    assert srpo(monkeypatch, "check", run) == 0, "no reader takes it for a table"
    assert f"note: {parts}: left by a command that was cut short" in capsys.readouterr().out
    assert srpo(monkeypatch, "stage", "verify", "--run", run, "--step", "1") == 0
    assert not parts.exists()


def test_a_replay_runs_verify_of_several_steps_at_a_time(
    run_dir: Path, pools: list[Here], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["replay", run_dir, "--from", "verify", "--set", "verify.success_threshold=0.75"]
    plain, spread = tmp_path / "plain", tmp_path / "spread"
    assert srpo(monkeypatch, *arguments, "--fork", plain) == 0
    assert srpo(monkeypatch, *arguments, "--fork", spread, *RUNNER) == 0
    assert pools[0].done == {"replay": 4}
    assert tables(spread) == tables(plain)
    assert len(tables(spread)) == 4 * 6  # all but rollouts


def test_the_forks_of_a_sweep_are_made_side_by_side(
    run_dir: Path,
    pools: list[Here],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = []
    arguments = ["replay", run_dir, "--from", "weigh", "--set", "weigh.beta=0,2", "--steps", "1:3"]
    for name, runner in (("plain", []), ("spread", RUNNER)):
        assert srpo(monkeypatch, *arguments, "--fork", tmp_path / name, *runner) == 0
        said.append(re.sub(r"plain|spread|[0-9.]+s\b|\s+", " ", capsys.readouterr().out))
    assert pools[0].done == {"sweep": 2}
    assert said[0].split() == said[1].split()
    assert tables(tmp_path / "plain") == tables(tmp_path / "spread") != {}


def test_a_check_finds_the_same_in_the_same_order(
    run_dir: Path,
    pools: list[Here],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    flip(run / "steps" / "000003" / "teacher.arrow")
    set_value(run / "steps" / "000001" / "weights.arrow", "weight", 0, 7.0)
    flip(run / "policy" / "000002" / "model.safetensors")
    for step in (0, 2):  # the same is true of two steps, and said of the first
        path = run / "steps" / f"{step:06d}" / "metrics.json"
        edit_json(path, lambda record: record.pop("loss"))
    said = []
    for runner in ([], RUNNER):
        assert srpo(monkeypatch, "check", run, *runner) == 1
        said.append(re.sub(r" in [0-9.]+s \([0-9,]+ MB/s\)", "", capsys.readouterr().out))
    assert pools[0].done == {"check": 5}
    assert said[0] == said[1]
    assert said[0].count("broken: ") >= 3
    assert said[0].count("no loss in it") == 1


def test_an_export_has_the_same_pages(
    run_dir: Path, pools: list[Here], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name, runner in (("plain", []), ("spread", RUNNER)):
        folder = tmp_path / name
        assert srpo(monkeypatch, "view", run_dir, "--export", folder, *runner) == 0
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        found.append({str(p.relative_to(folder)): p.read_bytes() for p in paths})
    assert pools[0].done == {"export": 8}
    assert found[0] == found[1]


def test_the_steps_of_one_fork_at_a_url_are_not_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="s3://bucket/fork: steps of one fork at a URL"):
        expect_local(run_path("s3://bucket/fork"))
    expect_local(tmp_path / "fork")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["view", "RUN", *RUNNER], "--runner writes pages elsewhere: give --export DIR as well"),
        (["check", "RUN", "--deep", "--step", "1", *RUNNER], "leave out --runner"),
        (["check", "RUN", "--runner", "threads:2"], "expected processes:N, ray:N or dask:N"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str],
    line: str,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = [str(run_dir) if a == "RUN" else a for a in arguments]
    assert srpo(monkeypatch, *chosen) == 2
    assert line in capsys.readouterr().err
    assert Run.open(run_dir).steps_done() == 4
