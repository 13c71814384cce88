"""The figures of docs/STUDY.md: at most four of a world, and one for the README.

Equal rows give equal files, as in `pipeline.compare.figures`, whose looks they have. A variant has
the same colour, dash and marker in all of them.
"""

import re
from collections.abc import Iterator, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from pipeline.compare.figures import Figure, canvas_of
from pipeline.study.study_panels import (
    Place,
    accuracy_panel,
    alarm_handle,
    before_handle,
    best_panel,
    panel_title,
    pass_panel,
    reference_line,
    stage_panel,
    step_panel,
    variant_legend,
)
from pipeline.study.study_results import Finished, Floats, VariantResult, WorldResult

ACCURACY = "accuracy"
COLUMNS = 3
_BEHAVIOUR = (
    ("response_tokens_mean", "response length, tokens"),
    ("share_sdpo", "rollouts taught by a teacher"),
    ("silent_questions", "questions without any gradient"),
    ("teacher_entropy_mean", "teacher's entropy, nats"),
    ("weight_std", "spread of token weights"),
    ("off_path_share", "weight off the teacher's path"),
)
_SHARES = frozenset({"share_sdpo", "silent_questions", "off_path_share"})
_SHORTER = (
    (re.compile(rb"<metadata>.*?</metadata>|<!--.*?-->", re.DOTALL), b""),
    (re.compile(rb"\s*\n\s*"), b"\n"),
    (re.compile(rb' id="[A-Za-z.]+2?[dD]?_\d+"'), b""),  # names of groups, which nothing refers to
    (re.compile(rb' transform="rotate\(-0 [^"]*"'), b""),
    (re.compile(rb" font-family: [^;]*;"), b""),
    (re.compile(rb"<svg "), b"<svg font-family=\"'DejaVu Sans', Verdana, Arial, sans-serif\" "),
)
_COORDINATES = re.compile(rb'(?<= [dxy]=")[^"]*')
_DIGITS = re.compile(rb"(\.\d)\d+|\s*\n|(?<=[A-Z]) ")


def svg_of(figure: Figure) -> bytes:
    """Return a figure as a small SVG: coordinates to 0.1 points, and letters as text.

    They are laid out in the font that comes with matplotlib, the widest of those that a browser
    may have instead.
    """
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        drawn = figure.svg()
    for pattern, shorter in _SHORTER:
        drawn = pattern.sub(shorter, drawn)
    return _COORDINATES.sub(lambda found: _DIGITS.sub(rb"\1", found[0]), drawn)


def figures_of_world(world: WorldResult) -> Iterator[Figure]:
    """Yield a world's figures, as far as there are rows; each is drawn when its bytes are asked."""
    lines = "Thick: mean over seeds, with its 95% interval; thin: each seed."
    if world.main:
        yield Figure(
            f"{world.name}-accuracy",
            f"{world.title}: accuracy by steps, tokens and seconds",
            f"{lines} ×: the first alarm of a rule, on its run's line.",
            lambda: _accuracy(world),
        )
        yield Figure(
            f"{world.name}-budgets",
            f"{world.title}: best within budgets, pass@k and seconds per step",
            "Left: the best evaluation within a share of the steps, with its 95% interval. Next: "
            "pass@k of the last evaluation and of the policy before training. Seconds are of quiet "
            "runs.",
            lambda: _budgets(world),
        )
        yield Figure(
            f"{world.name}-behaviour",
            f"{world.title}: what happens during training",
            "Mean over seeds; band: from the lowest to the highest seed.",
            lambda: _behaviour(world),
        )
    if world.others:
        yield Figure(
            f"{world.name}-variants",
            f"{world.title}: the other variants",
            f"{lines} Grey: {world.reference.title if world.reference else 'none'}. ×: the first "
            "alarm of a rule.",
            lambda: _variants(world),
        )


def readme_figure(worlds: Sequence[WorldResult]) -> Figure:
    """Return a row of one panel for each world: accuracy by steps."""
    shown = [world for world in worlds if world.main]

    def draw() -> Canvas:
        canvas, panels = canvas_of(len(shown), 2.5)
        for panel, world in zip(panels, shown, strict=True):
            accuracy_panel(panel, world.main, _by_steps, "training steps", alarms=False)
            panel_title(panel, world.title)
        panels[0].set_ylabel(ACCURACY)
        variant_legend(canvas, list({s.name: s for w in shown for s in w.main}.values()))
        return canvas

    return Figure("readme", "The study: accuracy by steps", "", draw)


def _accuracy(world: WorldResult) -> Canvas:
    places: list[tuple[Place, str]] = [
        (_by_steps, "training steps"),
        (lambda done: done.tokens, "sampled tokens"),
    ]
    if all(result.done.seconds is not None for result in world.main):
        places.append((_seconds, "seconds of training"))
    canvas, panels = canvas_of(len(places), 2.9)
    for panel, (place, name) in zip(panels, places, strict=True):
        accuracy_panel(panel, world.main, place, name, alarms=True)
    panels[0].set_ylabel(ACCURACY)
    _share_vertical(panels, len(panels))
    marks = [alarm_handle()] if _has_alarms(world.main) else []
    variant_legend(canvas, world.main, marks)
    return canvas


def _by_steps(done: Finished) -> Floats:
    return done.steps


def _seconds(done: Finished) -> Floats:
    assert done.seconds is not None
    return done.seconds


def _has_alarms(shown: Sequence[VariantResult]) -> bool:
    return any(row.alarms for one in shown for row in one.done.rows)


def _budgets(world: WorldResult) -> Canvas:
    timed = [result for result in world.main if result.done.stages]
    canvas, panels = canvas_of(3 if timed else 2, 2.9)
    best, passes, *rest = panels
    best_panel(best, world.main)
    best.set_title("best within a budget")
    best.set_ylabel(ACCURACY)
    pass_panel(passes, world.main)
    passes.set_title("pass@k")
    for panel in rest:
        stages = stage_panel(panel, timed)
        panel.set_title("seconds per step")
        panel.legend(handles=stages, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1)
    variant_legend(canvas, world.main, [before_handle()], marks=True)
    return canvas


def _behaviour(world: WorldResult) -> Canvas:
    rows = -(-len(_BEHAVIOUR) // COLUMNS)
    canvas, panels = canvas_of(COLUMNS, 0.5 + 2.0 * rows, rows)
    for panel, (key, name) in zip(panels, _BEHAVIOUR, strict=True):
        step_panel(panel, world.main, key, name, share=key in _SHARES)
    for panel in panels[:-COLUMNS]:
        panel.set_xlabel("")
    variant_legend(canvas, world.main)
    return canvas


def _variants(world: WorldResult) -> Canvas:
    titles = [one.title for one in [*world.main, *world.others]]
    rows = -(-len(world.others) // COLUMNS)
    canvas, panels = canvas_of(COLUMNS, 0.5 + 1.9 * rows, rows)
    for place, (panel, one) in enumerate(zip(panels, world.others, strict=False)):
        if world.reference:
            reference_line(panel, world.reference, one.done.summary.steps)
        last = place + COLUMNS >= len(world.others)
        accuracy_panel(panel, [one], _by_steps, "training steps" if last else "", alarms=True)
        panel_title(
            panel, f"{one.title} ({one.group})" if titles.count(one.title) > 1 else one.title
        )
    for panel in panels[len(world.others) :]:
        panel.set_axis_off()
    _share_vertical(panels[: len(world.others)], COLUMNS)
    return canvas


def _share_vertical(panels: Sequence[Axes], columns: int) -> None:
    """Give panels one vertical axis, with numbers on the left of each row only."""
    limits = [panel.get_ylim() for panel in panels]
    for place, panel in enumerate(panels):
        panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        panel.tick_params(labelleft=place % columns == 0)
