"""Made-up runs for comparisons: accuracies after so many steps, and what each step cost.

Every step takes 10 seconds and 100 tokens, unless a test says otherwise; evaluations have ten
questions and two answers each, so that accuracies are twentieths.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config.sections import Config
from pipeline.files.durable import digest_of, write_json
from pipeline.run.run import Run
from tests.builders.tables import COST, config, origin, tables

QUESTIONS, ANSWERS = 10, 2
SECONDS, TOKENS = 10.0, 100
STAGES = ("generate", "verify", "route", "weigh", "update")


def make_run(
    folder: Path,
    accuracies: Mapping[int, float],
    steps: int = 4,
    seconds: float = SECONDS,
    facts: Mapping[str, Any] | None = None,
    settings: Config | None = None,
    **sections: dict[str, Any],
) -> Run:
    """Write a run with `steps` complete steps and an evaluation after each number of steps."""
    run = Run.create(folder, settings or config(**sections), dict(facts or {}))
    add_steps(run, range(steps), seconds)
    for done, accuracy in accuracies.items():
        run.commit(origin("evaluations", step=done), evaluation(accuracy), {}, COST)
    return run


def add_steps(run: Run, steps: range, seconds: float = SECONDS) -> None:
    """Give a run rollouts and metrics of these steps."""
    for step in steps:
        run.commit(origin("rollouts", step=step), tables()["rollouts"], {}, COST)
        record = metrics(step, seconds)
        write_json(run.metrics_path(step), {**record, "digest": digest_of(record)})


def metrics(step: int, seconds: float) -> dict[str, Any]:
    """Return the numbers of a step that comparisons read; shares move with the step."""
    sdpo = 0.5 - 0.05 * step
    return {
        "step": step,
        "tokens": TOKENS,
        "seconds": seconds,
        **{f"seconds_{stage}": seconds / len(STAGES) for stage in STAGES},
        "response_tokens_mean": 20.0 + step,
        "teacher_entropy_mean": 1.0 + step if sdpo > 0.4 else None,
        "share_grpo": 1 - sdpo,
        "share_sdpo": sdpo,
        "share_mix": 0.0,
        "share_none": 0.0,
        "teacher_available": 0.75,
    }


def evaluation(accuracy: float) -> pa.Table:
    """Return an evaluation in which this share of all answers is correct."""
    one = tables()["evaluations"].slice(0, 1).to_pylist()[0]
    count = QUESTIONS * ANSWERS
    rows = [
        {
            **one,
            "rollout_id": f"e{i:06d}",
            "group": i // ANSWERS,
            "prompt_id": f"q{i // ANSWERS}",
            "sample": i % ANSWERS,
            "correct": i < round(accuracy * count),
        }
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=tables()["evaluations"].schema)
