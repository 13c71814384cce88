"""Made-up rows of a study: given accuracies after so many steps, and plausible series."""

import hashlib
import math
from collections.abc import Mapping, Sequence

from pipeline.study.study_row import DIGITS, MEANS, SERIES, WINDOW, EvaluationRow, Row

QUESTIONS, ANSWERS = 10, 8
TOKENS = 1000.0
"""Sampled tokens of each step."""
DIGITS_OF_COUNTS = "0123456789abcdefghijklmnopqrstuvwxyz"


def study_row(
    name: str = "main/level-1/srpo/0",
    evaluations: Mapping[int, float | Sequence[int]] | None = None,
    questions: int = QUESTIONS,
    answers: int = ANSWERS,
    format_rate: float = 1.0,
    response_tokens: float = 60.0,
    alarms: Sequence[Mapping[str, str | int | bool]] = (),
) -> Row:
    """Return a row, named GROUP/WORLD/VARIANT/SEED.

    Args:
        evaluations: after so many steps, the accuracy, or how many answers to each question were
            correct. The run ends with the last. Without any: seven over 12 steps, growing.
        questions: how many, where an accuracy is given: its correct answers are then those to the
            first questions.
        answers: to each question.
        format_rate: of every evaluation and step.
        response_tokens: mean length of a response, always the same.
    """
    group, world, variant, seed = name.split("/")
    curve = evaluations or {done: 0.25 + done / 24 for done in range(0, 13, 2)}
    steps = max(curve)
    shares = [0.3 + 0.4 * step / steps for step in range(steps)]
    return Row(
        name=name,
        group=group,
        world=world,
        variant=variant,
        seed=int(seed),
        settings=[f"route.method={variant.partition('-')[0]}", f"run.seed={seed}"],
        config=_digest(name, "config"),
        made={"time": "2026-11-30T20:00:00Z", "commit": "0" * 40, "cpu": "any"},
        questions=_digest(world, "questions"),
        start=f"000000-{_digest(world, 'start')[:12]}",
        steps=[_digest(name, str(step))[:8] for step in range(steps)],
        evaluations=[
            _evaluation(name, done, curve[done], questions, answers, format_rate, response_tokens)
            for done in sorted(curve)
        ],
        series={key: _series(key, shares, format_rate, response_tokens) for key in SERIES},
        means={key: _means(key, steps) for key in MEANS},
        alarms=[dict(alarm) for alarm in alarms],
    )


def seeds_of(
    prefix: str, curves: Sequence[Mapping[int, float | Sequence[int]]], questions: int = QUESTIONS
) -> list[Row]:
    """Return the rows GROUP/WORLD/VARIANT/0, 1, …, one for each curve."""
    return [
        study_row(f"{prefix}/{seed}", curve, questions=questions)
        for seed, curve in enumerate(curves)
    ]


def _evaluation(
    name: str,
    done: int,
    result: float | Sequence[int],
    questions: int,
    answers: int,
    format_rate: float,
    response_tokens: float,
) -> EvaluationRow:
    if isinstance(result, float | int):
        right = round(result * questions * answers)
        counts = [min(answers, max(0, right - q * answers)) for q in range(questions)]
    else:
        counts = list(result)
    return EvaluationRow(
        step=done,
        correct="".join(DIGITS_OF_COUNTS[count] for count in counts),
        answers=answers,
        format_rate=format_rate,
        truncated=0.01,
        tokens=response_tokens,
        majority=sum(2 * count > answers for count in counts) / len(counts),
        distinct=2.5,
        digest=_digest(name, f"evaluation {done}"),
    )


def _series(
    key: str, shares: Sequence[float], format_rate: float, response_tokens: float
) -> list[float | None]:
    """Return a number of each step; the correct share grows, and what follows from it with it."""
    found: dict[str, list[float | None]] = {
        "correct_share": [_short(share) for share in shares],
        "format_rate": [format_rate] * len(shares),
        "truncated_share": [0.01] * len(shares),
        "duplicate_share": [0.0] * len(shares),
        "demonstrations": [float(round(8 * share)) for share in shares],
        "taught_tokens": [float(round(TOKENS * (1 - share))) for share in shares],
        "teacher_entropy_mean": [_short(0.5 - 0.2 * share) for share in shares],
        "weight_std": [0.2] * len(shares),
        "off_path_share": [0.3] * len(shares),
        "grad_norm": [0.08] * len(shares),
    }
    return found.get(key, [response_tokens] * len(shares))


def _means(key: str, steps: int) -> list[float | None]:
    values = {"tokens": TOKENS, "share_sdpo": 0.4, "silent_questions": 0.2, "weight_max": 1.2}
    return [values.get(key, 0.5)] * math.ceil(steps / WINDOW)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()
