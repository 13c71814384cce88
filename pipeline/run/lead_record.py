"""The teacher's lead as it was measured: what answers gain from a teacher prompt, by source.

A measurement is two files beside a run's evaluations. Nothing else of the run depends on them:

    evaluations/taught-000020-1a2b3c4d5e6f.arrow   every answer, with its prompt and verdict
    evaluations/taught-000020-1a2b3c4d5e6f.json    figures, what they are of, the table's SHA-256

The name holds the steps done and a digest of all that the answers follow from. The record is
written last: a table without one is of a command that was cut short.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.files.durable import atomic_path, digest_of
from pipeline.files.sealed_json import write_sealed
from pipeline.run.metrics import bootstrap
from pipeline.tables.arrow_writing import write_arrow
from pipeline.tables.schemas import Row, schema_with

SAMPLED, ALONE, TAUGHT = "sampled", "alone", "taught"
"""Parts of the table: groups as training samples them; the teacher's answers to the same questions,
and to their teacher prompts."""

_MATTERS = 0.05
"""Difference of accuracies from which on more questions are worth asking."""
_FEWEST = 4
"""Questions from which on an interval over them says something: of one question it has no width."""
_OF_THE_TEACHER = [
    pa.field("part", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("teacher_rollout_id", pa.string()),
    pa.field("teacher_prompt_text", pa.string()),
]
_PER_ANSWER = (
    *("rollout_id", "group", "part", "source", "teacher_rollout_id", "response_text"),
    *("correct", "format_ok", "error"),
)


def lead_schema(names: Sequence[str]) -> pa.Schema:
    """Return the columns of a measurement: those of `evaluations`, and what the teacher was shown.

    Args:
        names: of the columns that there are, for those that `evaluations` may lack.
    """
    return pa.schema([*schema_with("evaluations", names), *_OF_THE_TEACHER])


def lead_path(root: Path, made_from: Mapping[str, Any]) -> Path:
    """Return where a run has the record of a measurement; its table is beside it, as .arrow."""
    name = f"taught-{made_from['steps_done']:06d}-{digest_of(made_from)[:12]}.json"
    return root / "evaluations" / name


def write_lead(path: Path, made_from: Mapping[str, Any], answers: pa.Table) -> dict[str, Any]:
    """Write a measurement, the table first; return its record."""
    with atomic_path(path.with_suffix(".arrow")) as temporary:
        sha256 = write_arrow(temporary, answers)
    record = {
        **made_from,
        "rows": answers.num_rows,
        "sha256": sha256,
        "figures": lead_figures(answers),
    }
    return write_sealed(path, record)


def lead_figures(answers: pa.Table) -> dict[str, Any]:
    """Return what a measurement says, from its table alone.

    Accuracies are means over questions, with 95% bootstrap intervals over them; what could not be
    judged counts as wrong. `difference` is that of a question's two accuracies, so it is paired.

    Returns:
        questions: how many were sampled; of them `all_right` had no wrong answer, and
            `without_source` had one and nothing to show for it.
        policy: accuracy of the sampled answers.
        sources: by name, for the questions that had it: the teacher's accuracy `alone` and
            `taught`, their `difference`, the shares in format, and of taught answers those that are
            word for word the demonstration (`copied`; null where that is no sampled answer).
    """
    rows = answers.select(_PER_ANSWER).to_pylist()
    of = {part: [row for row in rows if row["part"] == part] for part in (SAMPLED, ALONE, TAUGHT)}
    policy = _accuracies(of[SAMPLED])
    wrong = {row["group"] for row in of[SAMPLED] if not _right(row) and row["error"] is None}
    shown = {row["group"] for row in of[TAUGHT]}
    texts = {row["rollout_id"]: row["response_text"] for row in of[SAMPLED]}
    sources = {}
    for source in dict.fromkeys(row["source"] for row in of[TAUGHT]):
        taught = [row for row in of[TAUGHT] if row["source"] == source]
        groups = {row["group"] for row in taught}
        alone = [row for row in of[ALONE] if row["group"] in groups]
        sources[source] = _source_figures(alone, taught, texts)
    return {
        "questions": len(policy),
        "all_right": len(policy) - len(wrong),
        "without_source": len(wrong - shown),
        "policy": _interval(policy.values()),
        "sources": sources,
    }


def lead_word(figures: Mapping[str, Any]) -> Literal["lead", "unclear", "none"]:
    """Return what the figures of a source say: a lead only if the interval is above 0.

    `unclear`: taught answers are better, which may be chance, but a lead that matters isn't
    excluded; or too few questions have the source.
    """
    difference = figures["difference"]
    if figures["questions"] < _FEWEST:
        return "unclear"
    if difference["low"] > 0:
        return "lead"
    return "unclear" if difference["mean"] > 0 and difference["high"] > _MATTERS else "none"


def _source_figures(
    alone: Sequence[Row], taught: Sequence[Row], texts: Mapping[str, str]
) -> dict[str, Any]:
    before, after = _accuracies(alone), _accuracies(taught)
    demonstrated = [row for row in taught if row["teacher_rollout_id"] in texts]
    copied = [row["response_text"] == texts[row["teacher_rollout_id"]] for row in demonstrated]
    return {
        "questions": len(after),
        "answers": len(taught),
        "alone": _interval(before.values()),
        "taught": _interval(after.values()),
        "difference": _interval([after[group] - before[group] for group in after]),
        "format_alone": float(np.mean([row["format_ok"] for row in alone])),
        "format_taught": float(np.mean([row["format_ok"] for row in taught])),
        "copied": float(np.mean(copied)) if copied else None,
        "not_judged": sum(row["error"] is not None for row in [*alone, *taught]),
    }


def _right(row: Row) -> bool:
    return bool(row["correct"]) and row["error"] is None


def _accuracies(rows: Iterable[Row]) -> dict[int, float]:
    """Return the share of right answers to each question."""
    found: dict[int, list[bool]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(_right(row))
    return {group: float(np.mean(right)) for group, right in found.items()}


def _interval(values: Iterable[float]) -> dict[str, float]:
    return bootstrap(list(values))._asdict()
