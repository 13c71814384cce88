"""`srpo train` as a process, with any number of ranks, and the same training without it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from flows.session.session import Session
from flows.training import loop
from pipeline.config.load import load_config
from tests.paths import PROJECT

LIMIT_SECONDS = 240
STEPS = 3
SMALL = (
    "run.snapshot_every=2",
    "generate.questions=6",
    "evaluate.questions=4",
    "evaluate.rollouts=2",
    "verify.workers=1",
)


def train(
    run: Path, *options: str, steps: int = STEPS, api: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Begin a run, or go on with it.

    Args:
        api: variables by which a Prefect server is found; None: it has one of its own.
    """
    settings = (f"run.steps={steps}", *(() if run.exists() else SMALL))
    how = ["--resume"] if run.exists() else ["demo"]
    arguments = ["train", *how, "--run", str(run)]
    arguments += [part for setting in settings for part in ("--set", setting)]
    arguments += options
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"} | dict(api or {})
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


def trained(
    run: Path, *options: str, steps: int = STEPS, api: Mapping[str, str] | None = None
) -> Path:
    """Train to the end, and return the run."""
    process = train(run, *options, steps=steps, api=api)
    said = finish(process)
    assert process.returncode == 0, said
    return run


def trained_here(run: Path, *more: str) -> Path:
    """Train to the end in this process, without Prefect and with more settings; return the run."""
    settings = [*SMALL, f"run.steps={STEPS}", *more]
    with closing(Session.create(run, load_config("demo", settings))) as session:
        loop.train(session, session.run_stage, [], lambda: False)
    return run
