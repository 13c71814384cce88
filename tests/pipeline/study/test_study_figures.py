"""The study's figures: what is drawn where, in which look, and how large the files are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from pipeline.study.quiet_clocks import Clocks
from pipeline.study.study_figures import figures_of_world, readme_figure, svg_of
from pipeline.study.study_panels import (
    accuracy_panel,
    look_of,
    mark_of,
    per_point,
    reference_line,
    step_panel,
)
from pipeline.study.study_plan import Plan
from pipeline.study.study_results import VariantResult, WorldResult, world_results
from pipeline.study.study_row import Row
from tests.builders.study_rows import study_row

MAIN = ("grpo", "sdpo", "srpo", "srpo-survival-weight")
CLOCK = {"generate": [1.0] * 400, "update": [0.5] * 400}


def the_plan(others: Sequence[str] = (), seeds: int = 2, steps: int = 20) -> Plan:
    groups = [("main", MAIN, steps), *([("ablation", others, steps // 2)] if others else [])]
    variants = {name: {"title": f"<{name}> $"} for name in (*MAIN, *others)}
    return Plan.model_validate(
        {
            "worlds": {"level-1": {"title": "Chains & more", "config": Path("level-1.toml")}},
            "variants": variants,
            "rates": {"level-1": dict.fromkeys(variants, 1e-3)},
            "groups": [
                {"name": name, "worlds": ["level-1"], "variants": list(of), "steps": n,
                 "seeds": list(range(seeds))}
                for name, of, n in groups
            ],
        }
    )  # fmt: skip


def noisy(row: Row, generator: np.random.Generator) -> Row:
    """Return a row whose series and means don't repeat, as real ones don't."""
    return row.model_copy(
        update={
            part: {
                key: [float(f"{v * generator.uniform(0.8, 1.2):.3g}") for v in values]
                for key, values in getattr(row, part).items()
            }
            for part in ("series", "means")
        }
    )


def the_world(plan: Plan, every: int = 5, clocks: Clocks | None = None) -> WorldResult:
    generator = np.random.default_rng(0)
    alarm: dict[str, str | int | bool]
    alarm = {"rule": "off_path", "step": 9, "healthy": 8, "severe": True, "raised": 10}
    rows = {}
    for run in plan.runs():
        steps = range(0, run.steps + 1, every)
        curve = {n: 0.3 + 0.4 * n / run.steps * generator.uniform(0.5, 1) for n in steps}
        row = study_row(run.name, curve, questions=50, alarms=[alarm] if run.seed == 1 else [])
        rows[run.name] = noisy(row, generator)
    (world,) = world_results(plan, rows, clocks or {})
    return world


def a_panel() -> Axes:
    panel: Axes = Canvas().subplots()
    return panel


def xy(line: Any) -> list[list[float]]:
    return [np.asarray(part).tolist() for part in line.get_data()]


def test_a_world_has_four_small_figures_at_full_length() -> None:
    others = [f"other-{n}" for n in range(9)]
    world = the_world(
        the_plan(others, seeds=5, steps=400), 20, {f"level-1/{v}": CLOCK for v in MAIN}
    )
    figures = [*figures_of_world(world), readme_figure([world])]
    assert [figure.name for figure in figures] == [
        *(f"level-1-{name}" for name in ("accuracy", "budgets", "behaviour", "variants")),
        "readme",
    ]
    for figure in figures:
        svg = svg_of(figure)
        assert len(svg) < 60_000, figure.name
        shown = {"".join(part.itertext()).strip() for part in ElementTree.fromstring(svg).iter()}
        assert ("<other-0> $" if figure.name.endswith("variants") else "<srpo> $") in shown


def test_without_rows_there_are_no_figures() -> None:
    plan = the_plan()
    (world,) = world_results(plan, {}, {})
    assert list(figures_of_world(world)) == []


@pytest.mark.parametrize(("timed", "panels"), [(MAIN, 3), (MAIN[:2], 2), ((), 2)])
def test_seconds_are_drawn_if_all_variants_have_a_clock(timed: Sequence[str], panels: int) -> None:
    world = the_world(the_plan(), clocks={f"main/level-1/{name}": CLOCK for name in timed})
    accuracy = next(iter(figures_of_world(world))).draw()
    assert len(accuracy.axes) == panels
    # 10 of 20 steps of 1.5 seconds each
    if timed == MAIN:
        seconds = world.main[0].done.seconds
        assert seconds is not None
        assert seconds[0].tolist() == [0.0, 7.5, 15.0, 22.5, 30.0]


def test_24_variants_differ_in_colour_or_dash() -> None:
    looks = [look_of(VariantResult("main", "", n, [], None)) for n in range(24)]
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == 24
    assert {look["color"] for look in looks} == {f"C{n}" for n in range(6)}  # not grey


def test_a_variant_has_one_look_in_all_groups() -> None:
    world = the_world(the_plan(["other"]))
    (other,) = world.others
    assert mark_of(other)["color"] == look_of(other)["color"] == "C4"  # the fifth of the plan
    assert [look_of(one)["color"] for one in world.main] == ["C0", "C1", "C2", "C3"]


def test_an_accuracy_is_a_line_for_each_seed_alarms_on_it_and_the_mean() -> None:
    (one, *_) = the_world(the_plan()).main
    panel = a_panel()
    accuracy_panel(panel, [one], lambda done: done.steps, "training steps", alarms=True)
    first, second, alarm, mean = map(xy, panel.lines)
    assert first[0] == second[0] == mean[0] == [0.0, 5.0, 10.0, 15.0, 20.0]
    counts = [row.correct_counts().sum(axis=1) / (50 * 8) for row in one.done.rows]
    assert first[1] == pytest.approx(counts[0])
    assert second[1] == pytest.approx(counts[1])
    assert alarm == [[10.0], pytest.approx([counts[1][2]])]
    assert mean[1] == pytest.approx((counts[0] + counts[1]) / 2)


def test_tokens_are_summed_over_steps() -> None:
    (one, *_) = the_world(the_plan()).main
    first, last = one.done.rows[0].means["tokens"]
    assert first is not None and last is not None
    assert one.done.tokens[0].tolist() == pytest.approx(
        [0, 5 * first, 10 * first, 10 * first + 5 * last, 10 * first + 10 * last]
    )


def test_a_variant_is_drawn_against_the_same_steps_of_the_reference() -> None:
    world = the_world(the_plan(["other"]))
    assert world.reference is world.main[2]
    panel = a_panel()
    reference_line(panel, world.reference, 10)
    steps, means = xy(panel.lines[0])
    assert steps == [0.0, 5.0, 10.0]
    assert means == [interval.mean for interval in world.reference.done.curve[:3]]


def test_a_line_of_steps_has_20_points_at_most() -> None:
    row = study_row(evaluations={0: 0.2, 47: 0.3})
    values = [float(n) for n in range(46)] + [None]
    series = {**row.series, "weight_std": values, "grad_norm": [None] * 47}
    tokens = {"tokens": [4.0, 2.0, None, 3.0, 5.0]}
    row = row.model_copy(update={"series": series, "means": tokens})
    steps, means = per_point(row, "weight_std")  # three steps each
    assert steps.tolist() == [1.5 + 3 * n for n in range(15)] + [46.0]
    assert means.tolist() == [1.0 + 3 * n for n in range(15)] + [45.0]
    assert np.isnan(per_point(row, "grad_norm")[1]).all()
    steps, means = per_point(row, "tokens")  # windows of 10 steps, the last of 7
    assert steps.tolist() == [5.0, 15.0, 25.0, 35.0, 43.5]
    assert means[[0, 1, 3, 4]].tolist() == [4.0, 2.0, 3.0, 5.0]


def test_a_number_that_no_variant_has_is_said_to_be_absent() -> None:
    (one, *_) = the_world(the_plan()).main
    rows = [
        row.model_copy(update={"series": {**row.series, "weight_std": [None] * 20}})
        for row in one.done.rows
    ]
    (bare, *_) = world_results(the_plan(), {row.name: row for row in rows}, {})[0].main
    panel = a_panel()
    step_panel(panel, [bare], "weight_std", "spread", share=False)
    assert not panel.lines
    assert [text.get_text() for text in panel.texts] == ["no such numbers"]
