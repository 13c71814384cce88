"""A run of two tasks: arithmetic, and a small one whose file is written by the test."""

from pathlib import Path

from flows.session.session import Session
from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES

STEPS = 6
DOUBLES = '''"""Doubles of numbers; the answer is right wherever it stands."""

from pipeline.task import Message, Question, Verdict

VERIFIER = "doubles/1"


def load(path, split):
    numbers = range(10) if split == "train" else range(10, 15)
    return [
        Question(f"{n}+{n}", (Message("user", f"What is {n} + {n}?"),), f'"{2 * n}"')
        for n in numbers
    ]


def verify(response, reference):
    right = reference.strip('"') in response
    return Verdict(float(right), True, prediction=response[-24:])
'''
SETTINGS = [
    "data.task=none",
    "data.mixture.arithmetic.weight=2",
    f"run.steps={STEPS}",
    "run.threads=1",
    "run.snapshot_every=2",
    "generate.questions=4",
    "generate.rollouts=4",
    "evaluate.every=3",
    "evaluate.questions=8",
    "evaluate.rollouts=2",
    "verify.workers=1",
]


def settings(folder: Path) -> list[str]:
    """Write the small task's file, and return the settings of a mixture over it."""
    task = folder / "doubles.py"
    if not task.exists():
        task.write_text(DOUBLES)
    return [*SETTINGS, f"data.mixture.doubles.task={task}"]


def mixed(folder: Path, *others: str) -> Config:
    """Return the configuration: arithmetic twice as often as doubles."""
    return load_config("demo", [*settings(folder), *others])


def trained(folder: Path, name: str = "run") -> Run:
    """Train without Prefect, evaluate as the schedule says, and return the run."""
    session = Session.create(folder / name, mixed(folder))
    session.run_stage("evaluate", 0)
    go_on(session)
    return Run.open(folder / name)


def go_on(session: Session) -> None:
    """Make the steps that are left, and close the session."""
    for step in range(session.next_step(), STEPS):
        for stage in STEP_STAGES:
            session.run_stage(stage, step)
        session.finish_step(step)
        if session.evaluation_due(step + 1):
            session.run_stage("evaluate", step + 1)
        if session.snapshot_due(step + 1):
            session.snapshot(step + 1)
    session.close()
