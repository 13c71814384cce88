"""The page of one step: a grid of its rollouts by group, the parts of its loss, its tables."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.audit.listing import samples
from pipeline.run.removal import removal
from pipeline.run.run import Run
from pipeline.run.step_layout import ALL_TABLES
from pipeline.tables.schemas import Row
from pipeline.text import count, duration, number, percent, printable, steps_before
from pipeline.viewer.export_selection import in_export
from pipeline.viewer.history import Record, step_record
from pipeline.viewer.page import Kind, Missing, Runs, per_run, run_named
from pipeline.viewer.rollout_cell import (
    cell,
    short,
    small_share,
    verdict,
    verdict_word,
    with_loss_shares,
)

LARGEST = 12
"""How many rollouts the list of the largest parts of the loss shows."""
ROUTES = ("grpo", "sdpo", "mix", "none")
_YES_NO = {True: "yes", False: "no"}


def context(runs: Runs, name: str, step: str) -> dict[str, Any]:
    """Return what the page of a step shows."""
    run = run_named(runs, name)
    number_of = step_number(run, name, step)
    steps = run.steps_of("rollouts")
    rows = with_loss_shares(samples(run, [number_of]).collect().to_dicts())
    record = step_record(run, number_of)
    place = steps.index(number_of)
    groups = _groups(rows)
    return {
        "name": name,
        "step": number_of,
        "previous": steps[place - 1] if place else None,
        "following": steps[place + 1] if place + 1 < len(steps) else None,
        "complete": record["complete"],
        "rollouts": len(rows),
        "groups": groups,
        "routes": [route for route in ROUTES if any(row["route"] == route for row in rows)],
        "filters": _filters(rows),
        "facts": _facts(record),
        "alarms": record.get("alarms") or [],
        "off_policy": _off_policy(run, number_of),
        "shares": (shares := _shares(rows)),
        "several": len({part["mini_batch"] for part in shares}) > 1,
        "largest": _largest(rows),
        "tables": [_table(run, t, number_of) for t in ALL_TABLES if _recorded(run, t, number_of)],
        "metrics": [(key, str(value)) for key, value in record.items() if key not in _SHOWN_ABOVE],
        "in_export": in_export(run),
        "data": {
            "columns": [label for label, _ in _card({}, blank=True)],
            "groups": len(groups),
            "rollouts": [_entry(row) for row in rows],
        },
    }


_SHOWN_ABOVE = ("alarms", "complete", "step")


def step_number(run: Run, name: str, step: str) -> int:
    """Return the step that an address names; `Missing` if the run has no such step."""
    steps = run.steps_of("rollouts")
    if not step.isascii() or not step.isdigit() or len(step) > 6 or int(step) not in steps:
        last = f"steps {steps[0]} to {steps[-1]}" if steps else "no step yet"
        raise Missing(f"run {name} has no step {printable(step, 20)}; it has {last}")
    return int(step)


def _groups(rows: Sequence[Row]) -> list[dict[str, Any]]:
    groups: dict[int, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        known = {"group": row["group"], "prompt_id": short(row["prompt_id"]), "cells": []}
        groups.setdefault(row["group"], known)["cells"].append(cell(row, index))
    for group in groups.values():
        rewards = [cell["reward"] for cell in group["cells"] if cell["reward"] is not None]
        group["mean"] = sum(rewards) / len(rewards) if rewards else None
    return list(groups.values())


def _entry(row: Row) -> dict[str, Any]:
    """Return a rollout for the page's script: its card, and the values that filters compare."""
    words = [row["rollout_id"], row["prompt_id"], row["prediction"] or "", row["reason"] or ""]
    return {
        "id": row["rollout_id"],
        "is": {key: value for key, _, of in _FILTERS if (value := of(row)) is not None},
        "text": printable(" ".join(word[:1000] for word in words)).lower(),
        "card": [value for _, value in _card(row)],
    }


def _card(row: Row, blank: bool = False) -> list[tuple[str, str | None]]:
    """Return the lines of a rollout's card as (label, value); None where nothing is known."""
    get = row.get
    prediction = get("prediction")
    shown = None if prediction is None else short(prediction) or "none found"
    return [
        ("Question", None if blank else short(row["prompt_id"])),
        ("Route", get("route")),
        ("Verdict", None if blank else verdict(row)),
        ("Prediction", shown),
        ("Advantage", _known(get("advantage"), number)),
        ("Teacher", _teacher(row)),
        ("Tokens", _known(get("response_tokens"), count)),
        ("Ending", None if get("finish_reason") != "length" else "cut at the limit"),
        ("Format", "broken" if get("format_ok") is False and get("error") is None else None),
        (
            "Gradient",
            _NO_GRADIENT.get(get("route") == "none") if get("computed") is False else None,
        ),
        ("Share of N", _known(get("share"), small_share)),
        ("Share of loss", _known(get("loss_share"), small_share)),
        ("Loss / N", _known(get("loss"), number)),
        ("Divergence", _known(get("divergence"), lambda value: f"{number(value)} nats")),
        ("Why", None if get("reason") is None else printable(row["reason"], 600)),
    ]


_NO_GRADIENT = {True: "none: left out of N, too", False: "none: only counted in N"}
"""What to say of a rollout without a gradient, by whether it has no route."""


def _known(value: Any, written: Any) -> str | None:
    return None if value is None else written(value)


def _teacher(row: Row) -> str | None:
    """Name what teaches a rollout: another one, with its age if it is of the bank, or a source."""
    teacher, source = row.get("teacher_rollout_id"), row.get("teacher_source")
    age = row["step"] - row["teacher_step"] if row.get("teacher_step") is not None else 0
    aged = f", {steps_before(age)}" if age else ""
    return f"{teacher}{aged}" if teacher else source


_FILTERS: tuple[tuple[str, str, Any], ...] = (
    ("route", "Route", lambda row: row["route"]),
    ("verdict", "Verdict", verdict_word),
    ("teacher", "Teacher", lambda row: _YES_NO.get(row["teacher_available"])),
    ("source", "Taught by", lambda row: row["teacher_source"]),
    ("cut", "Truncated", lambda row: _YES_NO[row["finish_reason"] == "length"]),
    ("format", "Format", lambda row: {True: "kept", False: "broken"}.get(row["format_ok"])),
    ("gradient", "Gradient", lambda row: _YES_NO.get(row["computed"])),
)


def _filters(rows: Sequence[Row]) -> list[tuple[str, str, list[tuple[str, str, int]]]]:
    """Return (key, label, options) per filter; an option is (value, text, number of rollouts)."""
    found = []
    for key, label, of in _FILTERS:
        counts = Counter(value for row in rows if (value := of(row)) is not None)
        if key == "source" and counts.keys() <= {"none", "sibling"}:
            continue  # what the filter before it says
        found.append((key, label, [(value, value, n) for value, n in sorted(counts.items())]))
    return found


def _shares(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return each route's share of the tokens and of the loss, per optimizer update."""
    parts: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        if row["loss"] is not None:
            parts.setdefault((row["mini_batch"], row["route"]), []).append(row)
    return [
        {
            "mini_batch": mini_batch,
            "route": route,
            "rollouts": len(those),
            "computed": sum(row["computed"] for row in those),
            "tokens": sum(row["response_tokens"] for row in those),
            "share": sum(row["share"] for row in those),
            "loss_share": sum(row["loss_share"] for row in those),
            "loss": sum(row["loss"] for row in those),
        }
        for (mini_batch, route), those in sorted(parts.items(), key=lambda part: part[0])
    ]


def _largest(rows: Sequence[Row]) -> list[dict[str, Any]]:
    ranked = [row for row in rows if row["loss_share"]]
    ranked.sort(key=lambda row: -row["loss_share"])
    return [{**row, "prompt_id": short(row["prompt_id"])} for row in ranked[:LARGEST]]


def _facts(record: Record) -> list[tuple[str, str]]:
    wanted = (
        ("Mean reward", "reward_mean", number),
        ("Right", "correct_share", percent),
        ("SDPO", "share_sdpo", percent),
        ("Teacher available", "teacher_available", percent),
        ("Teacher entropy, nats", "teacher_entropy_mean", number),
        ("Divergence, nats", "jsd_mean", number),
        ("Weight sd", "weight_std", number),
        ("Off the teacher's path", "off_path_share", percent),
        ("Tokens really heard", "effective_tokens", count),
        ("Loss", "loss", number),
        ("Gradient norm", "grad_norm", number),
        ("Optimizer updates", "updates", count),
        ("Mean length, tokens", "response_tokens_mean", number),
        ("Format kept", "format_rate", percent),
        ("Truncated", "truncated_share", percent),
        ("Training time", "seconds", duration),
    )
    return [(label, written(record.get(key))) for label, key, written in wanted]


def _off_policy(run: Run, step: int) -> str:
    """Say so if another policy than the fork's own sampled its rollouts of this step."""
    fork = run.fork
    if fork is None or fork.off_policy_from is None:
        return ""
    return fork.note if fork.off_policy_from <= step < fork.end else ""


def _recorded(run: Run, table: str, step: int) -> bool:
    return run.has(table, step) or removal(run.table_path(table, step)) is not None


def _table(run: Run, table: str, step: int) -> dict[str, Any]:
    manifest, owner = run.manifest(table, step), run.owner(table, step)
    return {
        "table": table,
        "stage": manifest.origin.stage,
        "version": manifest.origin.stage_version,
        "owner": short(owner.root.resolve().name),
        "inherited": owner is not run,
        "rows": manifest.rows,
        "size": f"{manifest.bytes / 1e6:,.2f} MB{'' if run.has(table, step) else ', pruned'}",
        "seconds": manifest.cost.seconds,
        "tokens": manifest.cost.tokens,
        "policy": manifest.origin.policy_version,
        "teacher": manifest.origin.teacher_version,
        "sha256": manifest.sha256,
    }


def _pages(run: Run) -> Iterator[str]:
    yield from map(str, run.steps_of("rollouts"))


STEP = Kind("/runs/{}/steps/{}/", "step.html", context, per_run(_pages))
