"""The page of one rollout: what was asked, answered, judged and decided, and every token of it."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.audit.listing import samples
from pipeline.audit.rollout import ROLLOUT_ID, UNCLOSED, RolloutRecord, rollout_record
from pipeline.errors import ConfigError
from pipeline.run.run import Run
from pipeline.tables.schemas import UNCLOSED_THINKING, Row
from pipeline.text import count, number, percent, printable, steps_before
from pipeline.viewer.export_selection import exported_steps, in_export
from pipeline.viewer.long_text import long_text
from pipeline.viewer.page import Kind, Missing, Runs, per_run, plain, run_named
from pipeline.viewer.rollout_cell import cell, short, small_share, with_loss_shares
from pipeline.viewer.rollout_tokens import all_kept, token_page
from pipeline.viewer.text_diff import side_by_side

KEPT = "/runs/{name}/rollouts/{rollout_id}/tokens/{position}/"
"""Address of what is kept at one token, for pages that don't hold it all."""
MOST_COMPARED = 100_000
"""Characters of a response that are set beside the sibling's."""
_EVALUATED = (
    "rollout_id", "step", "group", "sample", "prompt_id", "reward", "correct", "format_ok",
    "prediction", "error", "response_tokens", "finish_reason",
)  # fmt: skip


def context(runs: Runs, name: str, rollout_id: str) -> dict[str, Any]:
    """Return what the page of a rollout shows."""
    run = run_named(runs, name)
    record = _record(run, name, rollout_id)
    rows = _rows_of_step(run, record)
    here = next(row for row in rows if row["rollout_id"] == rollout_id)
    place, last = rows.index(here), len(rows) - 1
    tokens = token_page(run, record)
    elsewhere = _elsewhere(run, record, here["prompt_id"])
    return {
        "name": name,
        "rollout_id": rollout_id,
        "record": record,
        "row": here,
        "evaluated": record.route is None and rollout_id.startswith("e"),
        "previous": rows[place - 1]["rollout_id"] if place else None,
        "following": rows[place + 1]["rollout_id"] if place < last else None,
        "prompt_id": short(here["prompt_id"]),
        "facts": _facts(here, record),
        "verdict": _verdict(record),
        "made": _made(record),
        "messages": [
            (short(message["role"]), long_text(message["content"]))
            for message in record.rollout["messages"]
        ],
        "response": long_text(record.rollout["response_text"]),
        "reason": printable((record.route or {}).get("reason") or "", 1000),
        "teacher": _teacher(record),
        "teacher_age": steps_before(record.teacher_age) if record.teacher_age else "",
        "teacher_prompt": long_text((record.route or {}).get("teacher_prompt_text") or ""),
        "sides": _sides(record),
        "group": [cell(row) for row in rows if row["group"] == here["group"]],
        "taught": [*_taught_by(rollout_id, rows), *(i for e in elsewhere for i in e["taught"])],
        "elsewhere": elsewhere,
        "in_export": in_export(run),
        "tokens": tokens,
        "data": tokens["data"],
    }


def kept_at(runs: Runs, name: str, rollout_id: str, position: str) -> dict[str, Any]:
    """Return all K kept tokens at one position of a rollout, for the live page."""
    run = run_named(runs, name)
    if not position.isascii() or not position.isdigit() or len(position) > 9:
        raise Missing(f"{printable(position, 20)} is no position of a token")
    try:
        found: dict[str, Any] = plain(all_kept(run, rollout_id, int(position)))
    except ConfigError as error:
        raise Missing(str(error)) from None
    return found


def _record(run: Run, name: str, rollout_id: str) -> RolloutRecord:
    try:
        return rollout_record(run, rollout_id)
    except ConfigError:
        raise Missing(f"run {name} has no rollout {printable(rollout_id, 40)}") from None


def _rows_of_step(run: Run, record: RolloutRecord) -> list[dict[str, Any]]:
    """Return the listing of the step or evaluation that a rollout is of, in its order."""
    if not record.rollout_id.startswith("e"):
        return with_loss_shares(samples(run, [record.step]).collect().to_dicts())
    return _evaluation(run, record.step).to_dicts()


def _evaluation(run: Run, step: int) -> pl.DataFrame:
    """Return the columns of the listing that an evaluation has; the others are null."""
    frame = pl.from_arrow(run.read("evaluations", step).select(_EVALUATED))
    assert isinstance(frame, pl.DataFrame)
    kinds = samples(run, []).collect_schema()
    others = [pl.lit(None, dtype=kinds[name]).alias(name) for name in kinds if name not in frame]
    return frame.with_columns(others)


def _facts(row: Row, record: RolloutRecord) -> list[tuple[str, str]]:
    update = record.update or {}
    clipped = update.get("clipped_fraction")
    cut = row["finish_reason"] == "length"
    facts = [
        ("Advantage", number(row["advantage"])),
        ("Response", f"{count(row['response_tokens'])} tokens"),
        ("Ending", "cut at the limit" if cut else "stopped"),
        ("Share of N", small_share(row.get("share"))),
        ("Share of the loss", small_share(row.get("loss_share"))),
        ("Loss / N", number(row.get("loss"))),
        ("Divergence, mean", _nats(row["divergence"])),
        ("Ratio to the old policy, mean", number(row["mean_ratio"])),
        ("Clip decides", percent(clipped)),
        ("Engine correction, mean", number(row["mean_tis"])),
        ("Engine gap, largest", _nats(row["max_logprob_gap"])),
        ("Engine gap, mean", _nats(update.get("mean_logprob_gap"))),
        ("KL from engine, mean", _nats(row["engine_kl"])),
        ("Engine correction cut", percent(row["tis_cut_fraction"])),
        ("Optimizer update", number(row["mini_batch"])),
    ]
    return [(label, value) for label, value in facts if value != "-"]


def _teacher(record: RolloutRecord) -> str | None:
    """Return the id of the demonstrating rollout, if the run has it."""
    return None if record.sibling_text is None else (record.route or {})["teacher_rollout_id"]


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{number(value)} nats"


def _verdict(record: RolloutRecord) -> dict[str, Any] | None:
    verdict = record.verdict
    if verdict is None:
        return None
    return {
        "reward": number(verdict["reward"]),
        "judged": verdict["error"] is None,
        "correct": verdict["correct"],
        "format_ok": verdict["format_ok"],
        "prediction": long_text(verdict["prediction"]),
        "reference": long_text(record.rollout["reference"]),
        "thinking": UNCLOSED if record.rollout.get(UNCLOSED_THINKING) else "",
        "feedback": long_text(verdict["feedback"] or ""),
        "gold_share": percent(record.feedback_gold_share)
        if record.feedback_gold_share is not None
        else "",
        "error": long_text(verdict["error"] or ""),
        "verifier": short(verdict["verifier"]),
    }


def _made(record: RolloutRecord) -> list[tuple[str, str]]:
    rollout, route = record.rollout, record.route or {}
    facts = [
        ("task", short(rollout["task"])),
        ("policy", rollout["policy_version"]),
        ("engine", rollout["engine"]),
        ("temperature", number(rollout["temperature"])),
        ("top-p", number(rollout["top_p"])),
        ("top-k", "all" if not rollout["top_k"] else count(rollout["top_k"])),
        ("seed", str(rollout["seed"])),
        ("group's mean reward", number(route.get("group_mean"))),
        ("group's deviation", number(route.get("group_std"))),
        ("credit by the teacher, λ", number(route.get("credit_lambda"))),
        ("log π_old", (record.update or {}).get("old_source") or "-"),
    ]
    return [(label, printable(value, 200)) for label, value in facts if value != "-"]


def _sides(record: RolloutRecord) -> Any:
    """Return this response and its teacher's with what differs marked; None without a teacher."""
    if record.sibling_text is None:
        return None
    texts = (record.rollout["response_text"], record.sibling_text)
    return side_by_side(*(printable(text, MOST_COMPARED, newlines=True) for text in texts))


def _elsewhere(run: Run, record: RolloutRecord, prompt_id: str) -> list[dict[str, Any]]:
    """Return the rollouts of the same question at other steps, one entry per step."""
    table = "evaluations" if record.rollout_id.startswith("e") else "rollouts"
    found = []
    for step in run.steps_of(table):
        path = run.table_path(table, step)
        if step == record.step or prompt_id not in _questions(run, table, step, path):
            continue
        frame = samples(run, [step]).collect() if table == "rollouts" else _evaluation(run, step)
        rows = frame.filter(pl.col("prompt_id") == prompt_id).to_dicts()
        rewards = [row["reward"] for row in rows if row["reward"] is not None]
        mean = sum(rewards) / len(rewards) if rewards else None
        found.append(
            {
                "step": step,
                "mean": mean,
                "cells": [cell(row) for row in rows],
                "taught": _taught_by(record.rollout_id, rows),
            }
        )
    return found


def _taught_by(rollout_id: str, rows: Sequence[Row]) -> list[str]:
    return [row["rollout_id"] for row in rows if row["teacher_rollout_id"] == rollout_id]


@lru_cache(maxsize=4096)
def _questions(run: Run, table: str, step: int, path: Path) -> frozenset[str]:
    """Return the questions of a step; tables never change, so it is remembered by its path."""
    ids: list[str] = run.read(table, step)["prompt_id"].unique().to_pylist()
    return frozenset(ids)


def _pages(run: Run) -> Iterator[str]:
    for step in exported_steps(run):
        ids = run.read("rollouts", step)["rollout_id"].to_pylist()
        yield from (name for name in ids if ROLLOUT_ID.fullmatch(name))


ROLLOUT = Kind("/runs/{}/rollouts/{}/", "rollout.html", context, per_run(_pages))
