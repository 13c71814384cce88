"""Runs that keep a bank: four questions in steps of two, so that each comes back every other step.

The policy is random, and a response is right if the codes of its characters have an even sum: half
of all answers are, and groups are mixed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.session.session import Session
from pipeline.config.sections import Config
from pipeline.run.run import Run
from pipeline.run.step_layout import stages_of
from tests.golden.golden_run import TASK, golden_config

STEPS = 6
SOURCES = ["sibling", "bank"]


def bank_config(folder: Path, **sections: Mapping[str, Any]) -> Config:
    """Return the configuration of such a run."""
    folder.mkdir(parents=True, exist_ok=True)
    task = folder / "four.py"
    task.write_text(TASK.replace("offset + 24", "offset + 4"), encoding="utf-8")
    overrides: dict[str, dict[str, Any]] = {
        "run": {"steps": STEPS, "snapshot_every": 2},
        "data": {"task": str(task)},
        "generate": {"questions": 2, "rollouts": 3, "max_response_length": 6},
        "route": {"sources": SOURCES},
        "evaluate": {"max_response_length": 6},
    }
    for section, settings in sections.items():
        overrides[section] = {**overrides.get(section, {}), **settings}
    return golden_config(folder, overrides)


def train_on(session: Session, steps: int = STEPS) -> Run:
    """Go on up to so many steps, as training does, with the first evaluation alone."""
    with session:
        if not session.next_step():
            session.run_stage("evaluate", 0)
        for step in range(session.next_step(), steps):
            for name in stages_of(session.config):
                session.run_stage(name, step)
            session.finish_step(step)
            if session.snapshot_due(step + 1):
                session.snapshot(step + 1)
    return Run.open(session.run.root)


def bank_run(folder: Path, steps: int = STEPS, **sections: Mapping[str, Any]) -> Run:
    """Train a run in `folder`/run."""
    return train_on(Session.create(folder / "run", bank_config(folder, **sections)), steps)


def expected_bank(run: Run, step: int) -> list[dict[str, Any]]:
    """Return the rows that a bank must have, by a plain loop over the tables."""
    asked = [(r["task"], r["prompt_id"]) for r in run.read("rollouts", step).to_pylist()]
    rows: list[dict[str, Any]] = []
    known: set[tuple[str, str]] = set()
    for earlier in range(step - 1, -1, -1):
        answers = run.read("rollouts", earlier).to_pylist()
        verdicts = run.read("verdicts", earlier).to_pylist()
        right = [
            answer
            for answer, verdict in zip(answers, verdicts, strict=True)
            if verdict["correct"] and (answer["task"], answer["prompt_id"]) in asked
        ]
        new = [a for a in right if (a["task"], a["prompt_id"]) not in known]
        known |= {(a["task"], a["prompt_id"]) for a in new}
        names = ("rollout_id", "task", "prompt_id", "step", "response_text")
        rows += [
            {**{n: a[n] for n in names}, "response_tokens": len(a["response_ids"])} for a in new
        ]
    return rows
