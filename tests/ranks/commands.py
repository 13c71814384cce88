"""`srpo train` as a process, with any number of ranks."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 240
STEPS = 3
SMALL = (
    "run.snapshot_every=2",
    "generate.questions=6",
    "evaluate.questions=4",
    "evaluate.rollouts=2",
    "verify.workers=1",
)


def train(run: Path, *options: str, steps: int = STEPS) -> subprocess.Popen[str]:
    """Begin a run, or go on with it."""
    settings = (f"run.steps={steps}", *(() if run.exists() else SMALL))
    how = ["--resume"] if run.exists() else ["demo"]
    arguments = ["train", *how, "--run", str(run), *options]
    arguments += [part for setting in settings for part in ("--set", setting)]
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments],
        env={**environment, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a command and return what it said of errors."""
    try:
        _, said = process.communicate(timeout=LIMIT_SECONDS)
    finally:
        process.kill()
    return said


def trained(run: Path, *options: str, steps: int = STEPS) -> Path:
    """Train to the end, and return the run."""
    process = train(run, *options, steps=steps)
    said = finish(process)
    assert process.returncode == 0, said
    return run
