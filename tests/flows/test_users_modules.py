"""A user's own pipeline.py, data.py, json.py … beside a task file: neither breaks the other.

The commands run as users run them: from the folder that holds the files, by the installed script
or by `-m`, and with no path set for them.
"""

import subprocess
import sys
from pathlib import Path

import pytest

TASK = '''
"""Right is an even number of characters."""

from pipeline.task import Message, Question, Verdict

VERIFIER = "even/1"


def load(path, split):
    words = [f"{split}-{n}" for n in range(8)]
    return [Question(word, (Message("user", word),), '""') for word in words]


def verify(response, reference):
    import json  # the standard library's, not the user's

    return Verdict(float(len(json.dumps(response)) % 2), True, response)
'''
NAMES = ("pipeline", "stages", "flows", "data", "json", "typing_extensions", "vllm", "torch")
SIZES = [
    *("run.steps=1", "run.threads=1", "generate.questions=4", "generate.rollouts=2"),
    *("evaluate.questions=4", "evaluate.rollouts=2", "generate.max_response_length=8"),
    *("evaluate.max_response_length=8", "verify.workers=1"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "task.py").write_text(TASK, encoding="utf-8")
    for name in NAMES:
        text = f"raise RuntimeError('this is the {name}.py of a user')\n"
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    return tmp_path


def run(
    folder: Path, environment: dict[str, str], *command: str
) -> "subprocess.CompletedProcess[str]":
    values = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=values, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "spread",
    [
        [],
        *(
            pytest.param(spread, marks=pytest.mark.campaign)
            for spread in (
                ["--ranks", "2"],
                *(["--runner", runner] for runner in ("processes:2", "ray:2", "dask:2")),
            )
        ),
    ],
    ids=["alone", "ranks", "processes", "ray", "dask"],
)
def test_a_run_beside_modules_of_the_same_names(
    spread: list[str], folder: Path, prefect_api: dict[str, str]
) -> None:
    srpo = str(Path(sys.executable).with_name("srpo"))
    settings = [part for setting in SIZES for part in ("--set", setting)]
    command = ["train", "demo", "--run", "runs/first", "--set", "data.task=task.py", *settings]
    done = run(folder, prefect_api, srpo, *command, *spread)
    assert done.returncode == 0, done.stderr
    checked = run(folder, prefect_api, srpo, "check", "runs/first")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_a_server_of_prefect_comes_up_beside_them(
    folder: Path, prefect_api: dict[str, str]
) -> None:
    values = {k: v for k, v in prefect_api.items() if not k.startswith("PREFECT_API")}
    code = (
        "import sys; from pathlib import Path; from flows.prefect_api.server import open_server\n"
        "server = open_server(Path(sys.argv[1]), 120.0); server.wait(); server.release()\n"
    )
    done = run(folder, values, sys.executable, "-P", "-c", code, str(folder / "runs"))
    assert done.returncode == 0, done.stderr


def test_the_guard_of_a_vllm_server_starts_beside_them(folder: Path) -> None:
    guard = [sys.executable, "-P", "-m", "pipeline.vllm.process_guard"]
    with subprocess.Popen(
        [*guard, sys.executable, "-P", "-c", "import json, pipeline.vllm.launch"],
        cwd=folder,
        stdin=subprocess.PIPE,  # the guard lives as long as this is open
    ) as process:
        assert process.wait(60) == 0


def test_every_python_of_ours_starts_with_a_safe_path() -> None:
    """-P, or -I which includes it: without, the current directory comes first."""
    project = Path(__file__).resolve().parents[2]
    starts = [
        (path.name, line.strip())
        for package in ("pipeline", "stages", "flows")
        for path in (project / package).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "sys.executable," in line and "elastic_launch" not in line
    ]
    assert len(starts) > 3
    assert [s for s in starts if not ('"-P"' in s[1] or '"-I"' in s[1])] == []
