"""The output of `srpo compare`: texts, a record for JSON, and a folder of page and figures."""

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.compare.comparability import setting_text
from pipeline.compare.comparison import AXES, Axis, Budget, Cell, Comparison
from pipeline.compare.figures import Figure, figures_of
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
    steps = sorted({best.steps for best in cell.best})
    when = f"after {'-'.join(dict.fromkeys((count(steps[0]), count(steps[-1]))))} steps"
    mark = "" if cell.reached else NOT_REACHED
    tasks = {task: f"{100 * value:.1f}" for task, value in cell.of_tasks.items()}
    return {"mean": mean, "low": low, "high": high, "mark": mark, "when": when, "tasks": tasks}


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
            }
            for row, cells in zip(comparison.rows, comparison.cells, strict=True)
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


def _embedded(figure: Figure) -> dict[str, str]:
    def address(drawing: bytes) -> str:
        return f"data:image/svg+xml;base64,{base64.b64encode(drawing).decode()}"

    texts = {"name": figure.name, "title": figure.title, "caption": figure.caption}
    return {**texts, "light": address(figure.svg()), "dark": address(figure.svg("dark"))}


def _cell_record(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    kind = "student_t_over_seeds" if len(cell.best) > 1 else "bootstrap_over_questions"
    best = [best._asdict() for best in cell.best]
    record = {**cell.interval._asdict(), "interval": kind, "reached": cell.reached, "best": best}
    return {**record, "of_tasks": cell.of_tasks} if cell.of_tasks else record
