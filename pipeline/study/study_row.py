"""A row: all that a study keeps of a finished run, in one small JSON file.

The run itself stays outside the repository. Its row says how to make it anew and whether that came
out the same, and holds what the results are computed from: numbers of each step, and of each
evaluation how often each question was answered correctly.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import StoreError
from pipeline.files.durable import atomic_path, canonical_json, digest_of
from pipeline.health.rules import EVALUATION_RULES
from pipeline.run.metrics import answers_by, evaluation_metrics
from pipeline.run.run import Run
from pipeline.run.step_records import Records
from pipeline.text import printable

SERIES = (
    *("correct_share", "format_rate", "truncated_share", "duplicate_share"),
    *("response_tokens_mean", "wrong_tokens_mean", "demonstration_tokens_mean", "demonstrations"),
    *("taught_tokens", "teacher_entropy_mean", "weight_std", "off_path_share", "grad_norm"),
)
"""Numbers of which a row keeps every step: what the health rules read."""
MEANS = (
    *("tokens", "share_sdpo", "silent_questions", "correct_tokens_mean", "jsd_mean", "loss"),
    *("weight_max", "effective_tokens"),
    *("seconds_generate", "seconds_verify", "seconds_bank", "seconds_route", "seconds_weigh"),
    "seconds_update",
)
"""Numbers of which a row keeps means over `WINDOW` steps. Seconds are of a machine that others may
have used at the same time."""
WINDOW = 10
DIGITS = 3
"""Significant digits of a number in a row."""
_SHOWN = 200
"""Characters of what was wrong that are shown."""


class EvaluationRow(BaseModel):
    """One evaluation.

    Attributes:
        correct: of each question, in the order of their names, how many answers were correct, as
            one character, 0 to 9 and a to z.
        answers: answers to each question.
        format_rate, tokens, majority, distinct, truncated: means over questions, as
            `evaluation_metrics` has them.
        digest: SHA-256 of the table.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    correct: str
    answers: int
    format_rate: float
    truncated: float
    tokens: float
    majority: float
    distinct: float
    digest: str


class Row(BaseModel):
    """A finished run.

    Attributes:
        name: group, world, variant and seed, as in `main/level-1/srpo/3`; the row's path.
        variant: the method, or the method with what sets it apart.
        settings: overrides of the world's configuration, `section.key=value`.
        config: SHA-256 of the resolved configuration, `run.prefect_seconds` and where the policy
            and its adapters lie left out.
        made: when, by which commit, with which versions, on which processor.
        questions: digest of the questions, equal for all rows of a world.
        start: version of the policy before training.
        steps: of each step, 8 hexadecimal digits of the SHA-256 over its tables' SHA-256.
        series: of each name in `SERIES`, its value at each step; None where there was none.
        means: of each name in `MEANS`, its mean over each `WINDOW` steps, the last maybe fewer;
            None where no step had a value.
        alarms: rule, step, healthy and severe of each, and `raised`, how many steps were done by
            then. Those of the last evaluation, which stand in no step's record, are among them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    group: str
    world: str
    variant: str
    seed: int
    settings: list[str]
    config: str
    made: dict[str, str | int]
    questions: str
    start: str
    steps: list[str]
    evaluations: list[EvaluationRow]
    series: dict[str, list[float | None]]
    means: dict[str, list[float | None]]
    alarms: list[dict[str, str | int | bool]]

    def write(self, folder: Path) -> Path:
        """Write the row below a folder of rows, whole or not at all; return its path."""
        path = path_of(folder, self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(canonical_json(self.model_dump(mode="json")) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a row.

        Raises:
            StoreError: it isn't there, or is none.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise StoreError(f"{path}: no row here; is its run made?") from None
        except ValidationError as error:
            raise StoreError(f"{path}: not a row of a study: {explained(error)}") from None

    def correct_counts(self) -> npt.NDArray[np.int64]:
        """Return how many answers were correct, [evaluations, questions]."""
        return np.array([[int(c, 36) for c in e.correct] for e in self.evaluations])

    @property
    def evaluated_steps(self) -> list[int]:
        """Return how many steps were done at each evaluation."""
        return [evaluation.step for evaluation in self.evaluations]


def without_seed(settings: Sequence[str]) -> list[str]:
    """Return what runs have in common that differ in their seeds alone."""
    return [setting for setting in settings if not setting.startswith("run.seed=")]


def path_of(folder: Path, name: str) -> Path:
    """Return where a run's row is, or will be."""
    return folder / f"{name}.json"


def step_digest(run: Run, step: int) -> str:
    """Return 8 hexadecimal digits of the SHA-256 over the SHA-256 of all tables of a step."""
    tables = "\n".join(f"{name} {run.manifest(name, step).sha256}" for name in run.tables_of(step))
    return hashlib.sha256(tables.encode()).hexdigest()[:8]


def row_of(run: Run, name: str, settings: list[str], made: Mapping[str, str | int]) -> Row:
    """Return the row of a finished run.

    Args:
        name: group, world, variant and seed, joined by `/`.
    """
    group, world, variant, seed = name.split("/")
    steps = run.config.run.steps
    records = [run.metrics(step) for step in range(steps)]
    return Row(
        name=name,
        group=group,
        world=world,
        variant=variant,
        seed=int(seed),
        settings=settings,
        config=config_digest(run),
        made={**made},
        questions=run.record["questions_digest"],
        start=run.record["initial_policy_version"],
        steps=[step_digest(run, step) for step in range(steps)],
        evaluations=[_evaluation_row(run, done) for done in run.steps_of("evaluations")],
        series={key: [_short(record.get(key)) for record in records] for key in SERIES},
        means={key: _window_means([record.get(key) for record in records]) for key in MEANS},
        alarms=_alarm_rows(run, records),
    )


def config_digest(run: Run) -> str:
    """Return the SHA-256 of what decides a run's tables: its settings, but not where files lie."""
    config = run.config.recorded()
    del config["run"]["prefect_seconds"], config["model"]["path"]
    if "lora" in config["model"]:
        del config["model"]["lora"]["adapter"]
    return digest_of(config)


def _evaluation_row(run: Run, steps_done: int) -> EvaluationRow:
    table = run.read("evaluations", steps_done)
    record, answers = evaluation_metrics(table), answers_by(table, "prompt_id")
    return EvaluationRow(
        step=steps_done,
        correct="".join(
            np.base_repr(sum(right for _, right in answers[name]), 36).lower()
            for name in sorted(answers)
        ),
        answers=record["rollouts"],
        format_rate=_rounded(record["format_rate"]),
        truncated=_rounded(record["truncated_share"]),
        tokens=_rounded(record["response_tokens"]),
        majority=_rounded(record["maj_at_k"]),
        distinct=_rounded(record["distinct_answers"]),
        digest=run.manifest("evaluations", steps_done).sha256,
    )


def _alarm_rows(
    run: Run, records: Sequence[Mapping[str, Any]]
) -> list[dict[str, str | int | bool]]:
    """Return the alarms; one of an evaluation is raised before the step whose record has it."""
    of_evaluations = {rule.name for rule in EVALUATION_RULES}
    raised = [
        (alarm, done if alarm["rule"] in of_evaluations else done + 1)
        for done, record in enumerate(records)
        for alarm in record["alarms"]
    ]
    raised += [(alarm, len(records)) for alarm in Records(run).unrecorded()]
    return [
        {**{key: alarm[key] for key in ("rule", "step", "healthy", "severe")}, "raised": done}
        for alarm, done in raised
    ]


def _window_means(values: Sequence[float | None]) -> list[float | None]:
    means: list[float | None] = []
    for start in range(0, len(values), WINDOW):
        known = [value for value in values[start : start + WINDOW] if value is not None]
        means.append(_rounded(math.fsum(known) / len(known)) if known else None)
    return means


def _short(value: float | None) -> float | None:
    return None if value is None else _rounded(value)


def _rounded(value: float) -> float:
    """Return a number with so many significant digits as rows have."""
    return float(f"{value:.{DIGITS}g}")


def explained(error: ValidationError) -> str:
    """Return what pydantic found wrong, on one line."""
    found = []
    for detail in error.errors():
        place = ".".join(printable(str(part), _SHOWN) for part in detail["loc"])
        reason = detail["msg"].removeprefix("Value error, ")
        reason = printable(reason[:1].lower() + reason[1:], _SHOWN)
        found.append(f"{place}: {reason}" if place else reason)
    return "; ".join(found)
