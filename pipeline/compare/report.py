"""The output of `srpo compare`: texts, a record for JSON, and a folder of page and figures."""

import base64
import hashlib
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.compare.comparability import setting_text
from pipeline.compare.comparison import AXES, Axis, Budget, Cell, Comparison
from pipeline.compare.figures import Figure, figures_of
from pipeline.compare.pass_change import PassChange, Shift
from pipeline.errors import StoreError
from pipeline.files.durable import make_folder
from pipeline.text import count, duration, encodable

AXIS_TITLES: dict[Axis, str] = {
    "seconds": "training wall clock",
    "tokens": "sampled tokens",
    "steps": "training steps",
}
NOT_REACHED = "†"

_TEMPLATES = Path(str(files("pipeline.compare"))) / "templates"


def limit_text(budget: Budget) -> str:
    """Return a budget as people read it."""
    if budget.axis == "seconds":
        return duration(budget.limit)
    return f"{count(budget.limit)} {budget.axis}"


def cell_texts(cell: Cell) -> dict[str, Any]:
    """Return the parts of a cell: mean, low and high in percent, a mark, and when it was best.

    `tasks` has the mean on each task of a mixture.
    """
    mean, low, high = (f"{100 * value:.1f}" for value in cell.interval)
    when = _when(best.steps for best in cell.best)
    mark = "" if cell.reached else NOT_REACHED
    tasks = {task: f"{100 * value:.1f}" for task, value in cell.of_tasks.items()}
    return {"mean": mean, "low": low, "high": high, "mark": mark, "when": when, "tasks": tasks}


def shift_texts(shift: Shift, scale: float = 100.0, digits: int = 1) -> dict[str, str]:
    """Return a shift's parts, those of pass@k in percent: start, last, change, low and high."""
    start, last = (f"{scale * part.mean:.{digits}f}" for part in (shift.start, shift.last))
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in shift.change)
    return {"start": start, "last": last, "change": mean, "low": low, "high": high}


def distinct_texts(change: PassChange) -> dict[str, str]:
    """Return the parts of what became of the number of distinct answers."""
    return shift_texts(change.distinct, 1.0, 2)


def pass_sentence(label: str, change: PassChange) -> str:
    """Say whether a row's pass@k rose or fell at k = 1 and at the largest k."""
    parts = [_gain(change, k) for k in dict.fromkeys((1, max(change.at)))]
    joint = " and " if len({verb for verb, _ in parts}) == 1 else " but "
    verdict = ": it flattens pass@k" if change.flattens else ""
    told = joint.join(f"{verb} {rest}" for verb, rest in parts)
    return f"{label}, {_when(change.steps.values())}: {told}{verdict}"


def _gain(change: PassChange, k: int) -> tuple[str, str]:
    """Return a verb, and what it is said of: the change of pass@k."""
    texts, (mean, low, high) = shift_texts(change.at[k]), change.at[k].change
    where = f"at k = {k} ({texts['low']} to {texts['high']})"
    if low <= 0 <= high:
        return "shows", f"no clear change {where}"
    return "gains" if mean > 0 else "loses", f"{texts['change'][1:]} points {where}"


def ks_compared(comparison: Comparison) -> list[int]:
    """Return each k at which some row has pass@k before and after training."""
    return sorted({k for change in comparison.passes if change is not None for k in change.at})


def _when(steps: Iterable[int]) -> str:
    """Return after how many steps, from the fewest to the most."""
    found = sorted(steps)
    return f"after {'-'.join(dict.fromkeys((count(found[0]), count(found[-1]))))} steps"


def note_of(comparison: Comparison) -> str:
    """Say how the intervals are made, and what the mark means if a cell has it."""
    cells = [cell for row in comparison.cells for cell in row if cell is not None]
    several, one = ([c for c in cells if (len(c.best) > 1) is many] for many in (True, False))
    texts = ["In percent, with 95% intervals:"]
    texts += ["mean over seeds, Student's t over seeds"] if several else []
    texts += ["and"] if several and one else []
    texts += ["for one seed bootstrap over questions"] if one else []
    marked = f" {NOT_REACHED}: its evaluations end before this budget."
    return f"{' '.join(texts)}.{marked if any(not cell.reached for cell in cells) else ''}"


def budgets_of(comparison: Comparison, axis: Axis) -> Iterator[tuple[int, Budget]]:
    """Yield the budgets on an axis, each with its column in `comparison.cells`."""
    return ((j, b) for j, b in enumerate(comparison.budgets) if b.axis == axis)


def record_of(comparison: Comparison) -> dict[str, Any]:
    """Return all of it for JSON: rows with runs and settings, and cells in the budgets' order."""
    return {
        "measure": comparison.measure,
        "warnings": comparison.warnings,
        "budgets": [budget._asdict() for budget in comparison.budgets],
        "rows": [
            {
                "label": row.label,
                "runs": [{"run": str(c.run.root), "seed": c.seed} for c in row.curves],
                "settings": row.settings,
                "cells": [_cell_record(cell) for cell in cells],
                "pass_at_k": _pass_record(change),
            }
            for row, cells, change in zip(
                comparison.rows, comparison.cells, comparison.passes, strict=True
            )
        ],
    }


def write_folder(comparison: Comparison, folder: Path) -> list[Path]:
    """Write index.html and each figure as PNG and SVG; return the files.

    Raises:
        StoreError: the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder}: there is something already; choose another --out")
    figures = figures_of(comparison)
    contents = {f"{figure.name}.png": figure.png() for figure in figures}
    contents |= {f"{figure.name}.svg": figure.svg() for figure in figures}
    contents["index.html"] = encodable(page_of(comparison, figures)).encode()
    make_folder(folder)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def page_of(comparison: Comparison, figures: list[Figure]) -> str:
    """Return the page: one file that holds tables and figures, without scripts or outside links."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_TEMPLATES / "compare.css").read_text(encoding="utf-8")
    rows = comparison.rows
    runs = sum(len(row.curves) for row in rows)
    return environment.get_template("compare.html").render(
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        title=f"{runs} run{'s' if runs > 1 else ''}",
        measure=comparison.measure,
        warnings=comparison.warnings,
        blocks=[_block(comparison, axis) for axis in AXES],
        note=note_of(comparison),
        passes=_pass_block(comparison),
        figures=[_embedded(figure) for figure in figures],
        rows=[
            {"label": r.label, "runs": ", ".join(f"{c.name} ({c.seed})" for c in r.curves)}
            for r in rows
        ],
        settings=[
            (key, [setting_text(row.settings[key]) for row in rows]) for key in rows[0].settings
        ],
    )


def _block(comparison: Comparison, axis: Axis) -> dict[str, Any]:
    columns = list(budgets_of(comparison, axis))
    return {
        "title": AXIS_TITLES[axis],
        "limits": [limit_text(budget) for _, budget in columns],
        "rows": [
            {
                "label": row.label,
                "seeds": len(row.curves),
                "cells": [cell_texts(cell) if (cell := cells[j]) else None for j, _ in columns],
            }
            for row, cells in zip(comparison.rows, comparison.cells, strict=True)
        ],
    }


def _pass_block(comparison: Comparison) -> dict[str, Any]:
    ks = ks_compared(comparison)
    known = [
        (row.label, change)
        for row, change in zip(comparison.rows, comparison.passes, strict=True)
        if change is not None
    ]
    return {
        "ks": ks,
        "rows": [
            {
                "label": label,
                "cells": [shift_texts(change.at[k]) if k in change.at else None for k in ks],
                "distinct": distinct_texts(change),
                "answers": max(change.at),
            }
            for label, change in known
        ],
        "sentences": [pass_sentence(label, change) for label, change in known],
    }


def _embedded(figure: Figure) -> dict[str, str]:
    def address(drawing: bytes) -> str:
        return f"data:image/svg+xml;base64,{base64.b64encode(drawing).decode()}"

    texts = {"name": figure.name, "title": figure.title, "caption": figure.caption}
    return {**texts, "light": address(figure.svg()), "dark": address(figure.svg("dark"))}


def _pass_record(change: PassChange | None) -> dict[str, Any] | None:
    if change is None:
        return None
    return {
        "steps": change.steps,
        "questions": change.questions,
        "interval": _interval_kind(len(change.steps)),
        "flattens": change.flattens,
        "at": {k: _shift_record(shift) for k, shift in change.at.items()},
        "distinct_answers": _shift_record(change.distinct),
    }


def _shift_record(shift: Shift) -> dict[str, dict[str, float]]:
    return {name: interval._asdict() for name, interval in shift._asdict().items()}


def _interval_kind(seeds: int) -> str:
    return "student_t_over_seeds" if seeds > 1 else "bootstrap_over_questions"


def _cell_record(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    kind = _interval_kind(len(cell.best))
    best = [best._asdict() for best in cell.best]
    record = {**cell.interval._asdict(), "interval": kind, "reached": cell.reached, "best": best}
    return {**record, "of_tasks": cell.of_tasks} if cell.of_tasks else record
