"""Figures 1, 3, 4 and 5 of the paper for the rows of a comparison, and one of pass@k.

Equal inputs give equal files: no dates, no random ids, and the font that comes with matplotlib.
"""

import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import matplotlib
import matplotlib.rcsetup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from pipeline.compare.comparison import Axis, Comparison, MethodRow
from pipeline.compare.panels import (
    PASS_LOOKS,
    WINDOW,
    accuracy_panel,
    look_of,
    pass_panel,
    rolled_line,
    row_legend,
    shown_label,
    stage_legend,
    stage_panel,
    step_axis,
    step_panel,
    step_series,
)
from pipeline.compare.pass_change import PassChange

ROUTES = ("grpo", "sdpo", "mix", "none")
WIDTH = 7.2
"""Inches: the text width of a printed page, so that letters come out at 8 points."""

Theme = Literal["light", "dark"]

# Distinguishable with any kind of colour vision.
_COLOURS = {
    "light": ("#0072b2", "#d55e00", "#009e73", "#b5548f", "#8c6d00", "#3a9fd6", "#444444"),
    "dark": ("#6db8ee", "#ff9d5c", "#4fd1a5", "#e59ac8", "#f0cf5a", "#a5d8ff", "#cccccc"),
}
_INK = {"light": ("#1b1f26", "#dfe2e7"), "dark": ("#e4e7ec", "#323843")}


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: its files' name, without suffix.
        caption: what it shows and how to read it.
        draw: draws it in the colours that matplotlib is set to.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[], Canvas]

    def svg(self, theme: Theme = "light") -> bytes:
        """Return the drawing as SVG; its background is transparent when it is dark."""
        return self._saved("svg", theme, {"Date": None, "Creator": None})

    def png(self) -> bytes:
        """Return the drawing as PNG, 200 dots per inch."""
        return self._saved("png", "light", {"Software": None})

    def _saved(self, kind: str, theme: Theme, metadata: dict[str, None]) -> bytes:
        file = io.BytesIO()
        with matplotlib.rc_context(_style(theme)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # in users' names
            self.draw().savefig(
                file, format=kind, dpi=200, metadata=metadata, transparent=theme == "dark"
            )
        return file.getvalue()


def figures_of(comparison: Comparison) -> list[Figure]:
    """Return the figures; each is drawn only when its bytes are asked for."""
    rows, measure = comparison.rows, comparison.measure
    rolled = f"rolling mean ± 1 standard deviation over {WINDOW} steps"
    points = (
        f"Points: {measure} with its 95% interval; line and band: {rolled}; where so many steps "
        "hold fewer than three points, a plain line joins them."
    )
    changes = [
        (row, change)
        for row, change in zip(rows, comparison.passes, strict=True)
        if change is not None
    ]
    thin = f"Thin line: each step, mean over seeds; thick line and band: {rolled}."
    found = [
        Figure(
            "figure-1",
            "Accuracy over training time, and the teacher's entropy",
            f"Paper: figures 1 and 1(c). Left: {measure} by seconds of training, evaluations not "
            f"counted. {points} Right: mean entropy of the teacher on the tokens it taught. {thin}",
            lambda: _figure_1(rows, measure),
        ),
        Figure(
            "figure-3",
            "Accuracy by steps, tokens and training time",
            f"Paper: figure 3. {points}",
            lambda: _figure_3(rows, measure),
        ),
        Figure(
            "figure-4",
            "Response length, and seconds per step",
            f"Paper: figure 4. {thin} Right: mean seconds of a step in each stage.",
            lambda: _figure_4(rows),
        ),
        Figure(
            "figure-5",
            "Routes and available teachers",
            "Paper: figure 5. Share of a step's rollouts on each route, and of those with a "
            f"correct sibling to teach them. {thin}",
            lambda: _figure_5(rows),
        ),
    ]
    if changes:
        found.append(
            Figure(
                "figure-pass-at-k",
                "pass@k by the number of answers",
                "Chance that k answers to a question hold a correct one, in the last evaluation "
                "(circles) and in the one before training (squares), with 95% intervals. A line "
                "that begins above that of the start and ends below it is flattened.",
                lambda: _figure_pass_at_k(changes),
            )
        )
    return found


def _style(theme: Theme) -> Any:
    ink, faint = _INK[theme]
    return {
        "font.family": "DejaVu Sans",
        "font.size": 8,
        "axes.titlesize": 8.5,
        "axes.prop_cycle": matplotlib.rcsetup.cycler(color=_COLOURS[theme]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.linewidth": 0.7,
        "grid.color": faint,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.w_pad": 0.08,
        "svg.hashsalt": "srpo",
        "text.parse_math": False,  # a $ in a name is a $
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink
        ),
    }


def canvas_of(columns: int, height: float, rows: int = 1) -> tuple[Canvas, list[Axes]]:
    """Return a drawing as wide as a page, and its panels row by row."""
    canvas = Canvas(figsize=(WIDTH, height))
    panels = canvas.subplots(rows, columns, squeeze=False)
    return canvas, [panels[place] for place in product(range(rows), range(columns))]


def _figure_1(rows: Sequence[MethodRow], measure: str) -> Canvas:
    canvas, (accuracy, entropy) = canvas_of(2, 2.9)
    accuracy_panel(accuracy, rows, "seconds", measure)
    step_panel(entropy, rows, "teacher_entropy_mean", "teacher entropy, nats")
    row_legend(canvas, rows)
    return canvas


def _figure_3(rows: Sequence[MethodRow], measure: str) -> Canvas:
    canvas, panels = canvas_of(3, 2.7)
    axes: tuple[Axis, ...] = ("steps", "tokens", "seconds")
    for panel, axis in zip(panels, axes, strict=True):
        accuracy_panel(panel, rows, axis, measure if axis == "steps" else "")
    for panel in panels[1:]:
        panel.sharey(panels[0])
        panel.tick_params(labelleft=False)
    row_legend(canvas, rows)
    return canvas


def _figure_4(rows: Sequence[MethodRow]) -> Canvas:
    canvas, (length, seconds, stages) = canvas_of(3, 2.9 + 0.12 * max(0, len(rows) - 4))
    step_panel(length, rows, "response_tokens_mean", "response length, tokens")
    step_panel(seconds, rows, "seconds", "seconds per step")
    stage_panel(stages, rows)
    row_legend(canvas, rows, beside=True)
    stage_legend(canvas, rows, 3 if len(rows) > 2 else 5)
    return canvas


def _figure_5(rows: Sequence[MethodRow]) -> Canvas:
    columns = min(3, len(rows))
    height = -(-len(rows) // columns)
    canvas, panels = canvas_of(columns, 0.5 + 2.2 * height, height)
    used = [r for r in ROUTES if any(any(step_series(row, f"share_{r}")[1]) for row in rows)]
    looks = [(f"share_{route}", route, look_of(i)) for i, route in enumerate(used)]
    looks.append(("teacher_available", "with a teacher", {"color": "C6", "linestyle": ":"}))
    for panel, row in zip(panels, rows, strict=False):
        for key, _, look in looks:
            steps, values = step_series(row, key)
            if any(values):
                rolled_line(panel, steps, values, look)
        _share_panel(panel, row)
        step_axis(panel)
    for panel in panels[len(rows) :]:
        panel.set_axis_off()
    handles = [Line2D([], [], label=name, linewidth=1.6, **look) for _, name, look in looks]
    canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return canvas


def _figure_pass_at_k(changes: Sequence[tuple[MethodRow, PassChange]]) -> Canvas:
    columns = min(3, len(changes))
    height = -(-len(changes) // columns)
    canvas, panels = canvas_of(columns, 0.5 + 2.2 * height, height)
    for panel, (row, change) in zip(panels, changes, strict=False):
        pass_panel(panel, change)
        _share_panel(panel, row)
    for panel in panels[len(changes) :]:
        panel.set_axis_off()
    handles = [Line2D([], [], linewidth=1.4, markersize=3, **look) for look in PASS_LOOKS.values()]
    canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return canvas


def _share_panel(panel: Axes, row: MethodRow) -> None:
    """Name the panel of one row, with shares on its vertical axis."""
    panel.set_title("\n".join(textwrap.wrap(shown_label(row.label, 64), 28)))
    panel.set_ylim(-0.02, 1.02)
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
