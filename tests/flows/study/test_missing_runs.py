"""The runs of a plan: made once, gone on with, stopped, and what is left of those that fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.study import children
from pipeline.study.study_row import Row
from tests.builders.study_plans import write_plan
from tests.conftest import Srpo
from tests.flows.study.conftest import MADE, SETTINGS, StandIn, policy_in


@pytest.mark.slow
def test_a_run_is_gone_on_with_and_leaves_its_row(
    made: SimpleNamespace, study: Srpo, srpo: Srpo, stand_in: StandIn, tmp_path: Path
) -> None:
    """A real child: a run that was stopped after a step ends as one that never was."""
    folder = tmp_path / "runs" / MADE
    policy = policy_in(tmp_path / "runs")
    sets = [word for setting in (policy, *SETTINGS, "run.steps=1") for word in ("--set", setting)]
    assert srpo("train", made.plan.with_name("sums.toml"), "--run", folder, *sets)[0] == 0
    rows = tmp_path / "rows"
    code, out, errors = study("run", made.plan, "--runs", tmp_path / "runs", "--rows", rows,
                              "--only", MADE)  # fmt: skip
    assert code == 0, errors
    row = Row.read(rows / f"{MADE}.json")
    assert f"{MADE}  " in out and "accuracy" in out
    assert (row.group, row.world, row.variant, row.seed) == ("main", "sums", "srpo", 1)
    assert row.settings == list(SETTINGS)
    assert row.evaluated_steps == [0, 1, 2]
    assert row.made["threads"] == 1 and row.made["jobs"] == 2
    assert {*row.made} == {*("commit", "date", "torch", "processor", "threads", "jobs", "seconds")}
    stand_in("copy")
    assert study("run", made.plan, "--runs", tmp_path / "all", "--rows", tmp_path / "all-rows",
                 "--only", MADE)[0] == 0  # fmt: skip
    never_stopped = Row.read(tmp_path / "all-rows" / f"{MADE}.json")
    assert (row.steps, row.evaluations) == (never_stopped.steps, never_stopped.evaluations)
    assert (row.start, row.config) == (never_stopped.start, never_stopped.config)


def test_runs_with_a_row_are_not_made_again(
    made: SimpleNamespace, study: Srpo, stand_in: StandIn, rows_with_one: Path, tmp_path: Path
) -> None:
    arguments = ("run", made.plan, "--runs", tmp_path / "runs", "--rows", rows_with_one)
    code, out, _ = study(*arguments, "--only", "main/")
    assert code == 0
    assert sorted(line.split()[0] for line in out.splitlines() if line.startswith("main/")) == [
        *(f"main/sums/{name}" for name in ("grpo/1", "grpo/2", "srpo/2"))
    ]
    assert not (tmp_path / "runs" / MADE).exists()
    stand_in("fail")
    code, out, _ = study(*arguments, "--only", "main/")
    assert code == 0
    assert "failed" not in out
    state = study("state", made.plan, "--rows", rows_with_one)[1].splitlines()
    assert [line.split()[:7] for line in state[1:3]] == [
        ["pilot", "sums", "4", "1", "2", "0", "4"],
        ["main", "sums", "2", "2", "2", "4", "4"],
    ]
    assert state[3].split()[:3] == ["all", "4", "8"]


def test_children_are_told_config_folder_and_settings(
    made: SimpleNamespace, study: Srpo, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in("copy")
    runs = tmp_path / "runs"
    (runs / "main/sums/grpo/2").mkdir(parents=True)
    (runs / "main/sums/grpo/2/run.json").touch()
    assert study("run", made.plan, "--runs", runs, "--rows", tmp_path / "rows",
                 "--only", "main/sums/grpo/2")[0] == 0  # fmt: skip
    assert (runs / "main/sums/grpo/2.log").read_text().split() == [
        *("train", str(made.plan.with_name("sums.toml"))),
        *("--run", str(runs / "main/sums/grpo/2")),
        *("--set", policy_in(runs)),
        *("--set", "route.method=grpo", "--set", "update.learning_rate=1e-3"),
        *("--set", "generate.temperature=0.9", "--set", "run.steps=2", "--set", "run.seed=2"),
        "--resume",
    ]


def test_a_warm_start_is_made_once_and_given_to_its_runs(
    study: Srpo, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in("copy")
    plan = write_plan(tmp_path, ('policy = "data/demo/policy"', 'warmstart = "smollm2"'))
    config = tmp_path / "sums.toml"
    config.write_text(config.read_text().replace('"demo"', '"demo"\n[model.lora]\nrank = 4'))
    runs = tmp_path / "runs"
    arguments = ("run", plan, "--runs", runs, "--rows", tmp_path / "rows", "--only")
    code, out, _ = study(*arguments, "main/sums/grpo")
    assert code == 0 and out.count("a warm start, once for all runs") == 1
    assert study(*arguments, "main/")[1].count("a warm start") == 0
    words = (runs / "warmstart/smollm2.log").read_text().split()
    assert words == ["warmstart", "smollm2", "--out", str(runs / "warmstart/smollm2"),
                     "--set", "run.threads=1"]  # fmt: skip
    adapter = f"model.lora.adapter={runs / 'warmstart/smollm2'}"
    assert adapter in (runs / "main/sums/srpo/2.log").read_text().split()


def test_others_go_on_where_one_fails(
    made: SimpleNamespace, study: Srpo, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in("fail")
    rows, runs = tmp_path / "rows", tmp_path / "runs"
    code, out, errors = study("run", made.plan, "--runs", runs, "--rows", rows, "--only", "main/")
    assert code == 2
    assert sorted(path.parts[-2:] for path in rows.glob("main/sums/*/*.json")) == [
        ("srpo", "1.json"),
        ("srpo", "2.json"),
    ]
    said = (
        "main/sums/grpo/1 failed: exit code 2\n"
        f"    train {made.plan.with_name('sums.toml')} --run {runs}/main/sums/grpo/1 --set "
    )
    assert said in out
    ending = f"    error: no luck\n    no luck at all\n    its run: {runs}/main/sums/grpo/1\n"
    assert ending in out
    assert "warning: failed: main/sums/grpo/1 main/sums/grpo/2; the same" in errors


def test_an_unfinished_run_leaves_no_row(
    made: SimpleNamespace, study: Srpo, stand_in: StandIn, tmp_path: Path
) -> None:
    """A child that says it is done is not believed."""
    stand_in("cut")
    rows = tmp_path / "rows"
    code, out, _ = study("run", made.plan, "--runs", tmp_path / "runs", "--rows", rows,
                         "--only", MADE)  # fmt: skip
    assert code == 2
    assert f"{MADE} failed: " in out and "1 of 2 steps are done" in out
    assert not (rows / f"{MADE}.json").exists()


def test_ctrl_c_stops_the_children_and_says_how_to_go_on(
    made: SimpleNamespace, study: Srpo, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in("wait")
    runs = tmp_path / "runs"

    def interrupt() -> None:
        while len([*runs.glob("main/sums/*/*/run.json")]) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    arguments = ("run", made.plan, "--runs", runs, "--rows", tmp_path / "rows", "--only", "main/")
    code, out, _ = study(*arguments)
    assert code == 130
    assert "interrupted; 4 runs are left; the same command goes on" in out
    logs = [path.read_text() for path in runs.glob("main/sums/*/*.log")]
    assert len(logs) == 2  # the others never began
    assert all(text.endswith("interrupted\n") for text in logs)


def test_the_clock_stops_the_children_too(
    made: SimpleNamespace, study: Srpo, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in("wait")
    code, out, _ = study("run", made.plan, "--runs", tmp_path / "runs", "--rows", tmp_path / "rows",
                         "--only", "main/", "--hours", 0.0005)  # fmt: skip
    assert code == 0
    assert "0.0005 hours are over; 4 runs are left" in out


def test_no_run_takes_longer_than_its_limit(
    made: SimpleNamespace,
    study: Srpo,
    stand_in: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in("wait")
    monkeypatch.setattr(children, "LIMIT_SECONDS", 1.0)
    code, out, _ = study("run", made.plan, "--runs", tmp_path / "runs", "--rows", tmp_path / "rows",
                         "--only", MADE)  # fmt: skip
    assert code == 2
    assert f"{MADE} failed: stopped after 1.0s, the most for one run" in out


def test_a_row_is_committed_alone(
    made: SimpleNamespace, study: Srpo, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in("copy")
    repository = tmp_path / "clone"
    rows = repository / "docs/rows"
    rows.mkdir(parents=True)

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(repository), *words], capture_output=True,
                              text=True, check=True)  # fmt: skip
        return done.stdout.strip()

    git("init", "-q")
    git("config", "user.name", "a test")
    git("config", "user.email", "a@test")
    (repository / "staged").write_text("by somebody else\n")
    git("add", "staged")
    code, out, _ = study("run", made.plan, "--runs", tmp_path / "runs", "--rows", rows,
                         "--only", "main/", "--commit")  # fmt: skip
    assert code == 0
    assert git("diff", "--cached", "--name-only") == "staged"
    assert len(git("log", "--format=%s").splitlines()) == 4
    for name in ("grpo/1", "srpo/2"):
        [found] = [text for text in git("log", "--format=%h %s").splitlines() if name in text]
        number = found.split()[0]
        assert found == f"{number} Study: row main/sums/{name}"
        assert git("show", "--format=", "--name-only", number) == f"docs/rows/main/sums/{name}.json"
        assert f"commit {number}" in out


def test_a_row_that_git_refuses_is_kept(
    made: SimpleNamespace, study: Srpo, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in("copy")
    rows = tmp_path / "rows"
    code, out, _ = study("run", made.plan, "--runs", tmp_path / "runs", "--rows", rows,
                         "--only", MADE, "--commit")  # fmt: skip
    assert code == 2
    assert "1.json: written, but git doesn't commit it: fatal: not a git repository" in out
    assert Row.read(rows / f"{MADE}.json").name == MADE


def test_rows_of_other_settings_are_not_taken_for_the_plans(
    made: SimpleNamespace, study: Srpo, rows_with_one: Path, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path, ("srpo = 2e-4", "srpo = 3e-4"))
    for command in (("state", plan), ("run", plan, "--runs", tmp_path / "runs")):
        code, _, errors = study(*command, "--rows", rows_with_one)
        assert code == 2
        assert "made with update.learning_rate=2e-4" in errors
        assert "but the plan has update.learning_rate=3e-4" in errors


def test_a_row_that_is_none_and_a_text_in_no_name(
    made: SimpleNamespace, study: Srpo, rows_with_one: Path, tmp_path: Path
) -> None:
    path = rows_with_one / f"{MADE}.json"
    path.write_text(json.dumps({"name": MADE}))
    code, _, errors = study("state", made.plan, "--rows", rows_with_one)
    assert code == 2 and f"{path}: not a row of a study: group: field required; " in errors
    path.write_text("{")
    code, _, errors = study("state", made.plan, "--rows", rows_with_one)
    assert code == 2 and f"{path}: not a row of a study: invalid JSON: " in errors
    assert "visit" not in errors and errors.count("\n") == 1
    code, _, errors = study("run", made.plan, "--runs", tmp_path / "runs", "--only", "nothing")
    assert code == 2 and "--only nothing: no run of" in errors


def test_the_command_says_what_it_is(prefect_api: dict[str, str]) -> None:
    command = [sys.executable, "-m", "flows.study", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=prefect_api)
    assert done.returncode == 0
    assert "state" in done.stdout and "Make the runs that have no row yet" in done.stdout


def test_policies_are_copied_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clones of the code name the same copy; another policy at the same place gets its own."""
    for clone in ("one", "two"):
        policy = tmp_path / clone / "data/demo/policy"
        shutil.copytree(children.CODE / "data/demo/policy", policy)
    found = []
    for clone in ("one", "two"):
        monkeypatch.setattr(children, "CODE", tmp_path / clone)
        found.append(policy_in(tmp_path / "runs"))
    (tmp_path / "two/data/demo/policy/config.json").write_text("{}")
    found.append(policy_in(tmp_path / "runs"))
    assert found[0] == found[1] != found[2]
    copies = sorted((tmp_path / "runs/policies").iterdir())
    assert sorted(f"model.path={copy}" for copy in copies) == sorted({*found})
    assert [(copy / "model.safetensors").is_file() for copy in copies] == [True, True]
