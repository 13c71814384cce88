"""The command line: help, listings, and bad input as one line with exit code 2."""

import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from flows.cli import main
from tests.flows.training.fake_session import FakeSession
from tests.paths import PROJECT

COMMANDS = ["train", "stage", "evaluate", "tasks", "presets", "doctor"]


def srpo(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["srpo", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    code = end.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert srpo(monkeypatch, command, "--help") == 0
    assert f"Example: srpo {command}" in capsys.readouterr().out


def test_without_a_command_there_is_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert srpo(monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "Usage: srpo [OPTIONS] COMMAND" in printed
    assert "Start here: srpo train demo" in " ".join(printed.split())
    assert all(f"\n  {command} " in printed for command in COMMANDS)


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert srpo(monkeypatch, "--version") == 0
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert capsys.readouterr().out == f"srpo {project['version']}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("srpo tr", ["train"]),
        ("srpo train demo-", ["demo-grpo", "demo-rlsd", "demo-sdpo"]),
        ("srpo presets smoke", ["smoke-science-qa", "smoke-tool-use"]),
        ("srpo stage w", ["weigh"]),
        ("srpo replay r --from up", ["update"]),
        ("srpo evaluate r --task a", ["arithmetic"]),
        ("srpo train demo --set weigh.b", ["weigh.beta="]),
    ],
)
def test_a_shell_completes_commands_presets_stages_tasks_and_settings(
    words: str, expected: list[str]
) -> None:
    code = (
        "import sys; sys.argv = ['srpo']; import atexit\n"
        "heavy = {'torch', 'prefect', 'transformers', 'pyarrow'}\n"
        "atexit.register(lambda: print(heavy & set(sys.modules), file=sys.stderr))\n"
        "from flows.cli import main; main()\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=PROJECT,
        env={
            **os.environ,
            "_SRPO_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        },
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == expected
    assert found.stderr.strip() == "set()"


def test_help_is_quick_and_imports_no_heavy_library() -> None:
    code = (
        "import sys; sys.argv = ['srpo', '--help']\n"
        "from flows.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'prefect', 'transformers', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT, stdout=subprocess.DEVNULL)
    assert time.monotonic() - started < 3


BAD = {
    "no such preset": (["train", "dmo"], "dmo: neither a TOML file nor a preset"),
    "unknown key": (
        ["train", "srpo-paper", "--set", "update.learning_rat=1"],
        "unknown key update.learning_rat; the nearest valid one is update.learning_rate",
    ),
    "wrong type": (["train", "srpo-paper", "--set", "run.steps=many"], 'run.steps is "many"'),
    "override without value": (["train", "srpo-paper", "--set", "run.steps"], "section.key=value"),
    "one rollout": (["train", "srpo-paper", "--set", "generate.rollouts=1"], "needs siblings"),
    "missing dataset": (
        ["train", "smoke-science-qa", "--set", "data.path=nowhere", "--run", "runs/x"],
        "nowhere",
    ),
    "nothing to resume": (["train", "--resume", "--run", "nowhere"], "no run here"),
    "resume without run": (["train", "--resume"], "which run?"),
    "no configuration": (["train", "--run", "new"], "which configuration?"),
    "unknown stage": (["stage", "rout", "--run", "x", "--step", "0"], "no stage rout"),
    "no run for a stage": (["stage", "route", "--run", "x", "--step", "0"], "no run here"),
    "no run to evaluate": (["evaluate", "x"], "which --task"),
    "step is no number": (["evaluate", "x@last"], "expected RUN or RUN@STEP"),
    "unknown preset": (["presets", "dmo"], "no preset dmo"),
    "unknown command": (["trian"], "trian"),
    "unknown option": (["train", "demo", "--stpes", "3"], "--stpes"),
    "option without value": (["stage", "route", "--run"], "--run"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    case: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD[case]
    assert srpo(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert expected in printed.err
    assert [p for p in tmp_path.rglob("*") if ".prefect" not in p.parts and p.is_file()] == []


@pytest.mark.parametrize(
    "arguments",
    [["audit", "file"], ["check", "file"], ["train", "--resume", "--run", "file"]],
    ids=lambda words: words[0],
)
def test_a_file_is_no_run(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    assert srpo(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err == "error: file: a file, expected the folder of a run\n"


def test_an_existing_run_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeSession(tmp_path / "run")
    assert srpo(monkeypatch, "train", "srpo-paper", "--run", str(tmp_path / "run")) == 2
    assert "--resume --run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("update.learning_rate=1e-3", "update.learning_rate is 5e-06, not 0.001"),
        ("run.steps=1", "run.steps is 3, not 1"),
        ("run.max_hours=1.0", "run.max_hours is None, not 1.0"),
    ],
)
def test_resume_with_other_settings_names_them(
    override: str,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    FakeSession(tmp_path / "run")
    run = str(tmp_path / "run")
    assert srpo(monkeypatch, "train", "--resume", "--run", run, "--set", override) == 2
    assert named in capsys.readouterr().err


def test_limits_may_grow_on_resume(tmp_path: Path) -> None:
    from flows.session.open_run import resumed_config

    run = FakeSession(tmp_path / "run").run
    assert resumed_config(run, None, ["run.steps=40"]).run.steps == 40
    assert resumed_config(run, None, []) == run.config


def test_run_folders_are_numbered(tmp_path: Path) -> None:
    from flows.session.open_run import default_run_dir

    assert default_run_dir("demo", tmp_path) == tmp_path / "demo-1"
    (tmp_path / "demo-1").mkdir()
    assert default_run_dir("demo", tmp_path) == tmp_path / "demo-2"
    assert default_run_dir("some/where/mine.toml", tmp_path) == tmp_path / "mine-1"


def test_presets_are_listed_and_printed_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.config.load import preset_names, preset_text

    assert srpo(monkeypatch, "presets") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in preset_names())
    assert srpo(monkeypatch, "presets", "srpo-paper") == 0
    assert capsys.readouterr().out == preset_text("srpo-paper")


def test_tasks_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert srpo(monkeypatch, "tasks") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("arithmetic", "mathematics", "science_qa", "tool_use"))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("my rows.JSONL", "data of which task? srpo doctor TASK --set 'data.path=my rows.JSONL'"),
        ("sciense_qa", "no task of this name, nor a model here; did you mean science_qa?"),
        ("absent.py", "does not exist"),
    ],
)
def test_doctor_of_what_is_no_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str, said: str
) -> None:
    assert srpo(monkeypatch, "doctor", target) == 2
    assert said in capsys.readouterr().err


def test_doctor_of_a_task_ends_with_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f'{{"idx": {n}, "prompt": "q{n}", "answer": "A"}}\n' for n in range(20))
    (tmp_path / "rows.json").write_text(rows)
    path = f"data.path={tmp_path / 'rows.json'}"
    assert srpo(monkeypatch, "doctor", "science_qa", "--set", path) == 0
    assert "20 of 20 are judged right" in capsys.readouterr().out


def test_doctor_says_what_will_run_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    srpo(monkeypatch, "doctor", "--run-root", str(tmp_path))
    report = capsys.readouterr().out
    for word in ("python", "cores", "memory", "disk", "policy", "engine", "verifier", "prefect"):
        assert word in report
