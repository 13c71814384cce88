"""The results of a study as text: the part of docs/STUDY.md that is written from rows.

It stands between two markers, so that what was written before the runs stays as it was. Groups
that are not finished say how many of their runs are.
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from pipeline.compare.figures import Figure
from pipeline.errors import StoreError
from pipeline.files.durable import atomic_path
from pipeline.run.metrics import Interval
from pipeline.study.alarm_study import (
    Loss,
    evaluation_tallies,
    fate,
    loss_of,
    raised_in,
    step_tallies,
    table_of,
)
from pipeline.study.curve_measures import BUDGETS
from pipeline.study.hypotheses import Judgement, judgements
from pipeline.study.pilot_choices import SURVIVAL, Pilots, pilots_of, survival_means
from pipeline.study.quiet_clocks import Clocks
from pipeline.study.study_figures import figures_of_world, readme_figure, svg_of
from pipeline.study.study_plan import Plan, PlannedRun, rate_text
from pipeline.study.study_results import (
    BestWithin,
    VariantResult,
    WorldResult,
    best_by_seconds,
    best_by_tokens,
    cut_reference,
    world_results,
)
from pipeline.study.study_row import Row, without_seed
from pipeline.text import count, number, printable

BEGIN = "<!-- results: written by `python -m flows.study report`; don't edit -->"
END = "<!-- end -->"
FIGURES = Path("study/figures")
"""Where the figures are, from the page."""
NONE = "–"
MAIN = "main"
_SPECIAL = "\\`*_[]|~#"


def write_report(plan: Plan, rows: Mapping[str, Row], clocks: Clocks, page: Path) -> None:
    """Write a study's results into its page, and its figures beside it.

    Args:
        rows: those that there are, by name.

    Raises:
        StoreError: the page's markers are not a pair.
        ValueError: rows that are compared can't be.
    """
    before, after = _around(page)
    worlds = world_results(plan, rows, clocks)
    figures = {world.name: list(figures_of_world(world)) for world in worlds}
    text = results_text(plan, rows, worlds, figures)
    drawn = [figure for of_world in figures.values() for figure in of_world]
    if any(world.main for world in worlds):
        drawn.append(readme_figure(worlds))
    folder = page.parent / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    for figure in drawn:
        _write(folder / f"{figure.name}.svg", svg_of(figure))
    _write(page, f"{before}{BEGIN}\n\n{text}\n{END}{after}".encode())


def _around(page: Path) -> tuple[str, str]:
    """Return what stands before and after the results; on a page without any they come last."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    places = (text.count(BEGIN), text.count(END))
    if places == (0, 0):
        return f"{text.rstrip()}\n\n".lstrip(), "\n"
    if places != (1, 1) or text.index(END) < text.index(BEGIN):
        raise StoreError(
            f"{page}: where do results go? Expected the lines {BEGIN} and {END} once each, in this "
            "order, or neither"
        )
    return text[: text.index(BEGIN)], text[text.index(END) + len(END) :]


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def results_text(
    plan: Plan,
    rows: Mapping[str, Row],
    worlds: Sequence[WorldResult],
    figures: Mapping[str, Sequence[Figure]],
) -> str:
    """Return the results as markdown.

    Args:
        figures: of each world.
    """
    runs = plan.runs()
    found = [rows[run.name] for run in runs if run.name in rows]
    parts = ["# Results", _preregistered(plan), *_state(plan, runs, rows)]
    if found:
        parts.append(_machines(found))
    if any(world.main for world in worlds):
        parts += ["## Hypotheses", *_hypotheses(plan, found)]
    elif found:
        parts.append("Of these only pilots: there is nothing to judge and to draw yet.")
    parts += _pilots(plan, worlds)
    for world in worlds:
        if world.compared:
            parts += [f"## {escaped(world.title)}", *_world(world, figures[world.name])]
    return "\n\n".join([*filter(None, parts), *_alarm_tables(worlds)]) + "\n"


def _alarm_tables(worlds: Sequence[WorldResult]) -> Iterator[str]:
    """Yield what alarms did in the runs of all groups that compare variants."""
    shown = [result for world in worlds for result in [*world.main, *world.others]]
    rows = [row for result in shown for row in result.done.rows]
    if not rows:
        return
    yield "## Alarms and losses"
    yield (
        f"In all {count(len(rows))} finished runs but pilots; `pipeline/study/alarm_study.py` says "
        "what a loss is, and which alarms precede it. Rules of steps:"
    )
    yield "\n".join(table_of(step_tallies(rows)))
    yield "Rules of evaluations, which see the loss itself:"
    yield "\n".join(table_of(evaluation_tallies(rows)))
    yield "Thresholds are chosen by `python -m flows.study tune`, which takes minutes."
    lost = [(row, loss) for row in rows if (loss := loss_of(row)) is not None]
    if lost:
        yield "The losses; alarms with the steps done when they were raised:"
        head = ["run", "accuracy fell between steps", "from", "to", "alarms"]
        yield table([head, *(_loss_line(row, loss) for row, loss in lost)])


def _loss_line(row: Row, loss: Loss) -> list[str]:
    alarms = [
        f"`{alarm.rule}` {count(alarm.done)} ({fate(alarm.done, loss)})" for alarm in raised_in(row)
    ]
    between = f"{count(loss.onset)} and {count(loss.shown)}"
    accuracies = (f"{100 * share:.1f}" for share in (loss.best, loss.now))
    return [f"`{row.name}`", between, *accuracies, ", ".join(alarms) or NONE]


def _preregistered(plan: Plan) -> str:
    if plan.preregistered is None:
        return ""
    return f"What stands above was committed before the first main run, as `{plan.preregistered}`."


def _state(plan: Plan, runs: Sequence[PlannedRun], rows: Mapping[str, Row]) -> Iterator[str]:
    yield f"{_n_of_m(runs, rows)} runs are finished."
    worlds = list(plan.worlds)
    lines = [["group", *(escaped(plan.worlds[world].title) for world in worlds)]]
    for group in dict.fromkeys(run.group for run in runs):
        parts = [[r for r in runs if (r.group, r.world) == (group, world)] for world in worlds]
        lines.append([group, *(_n_of_m(part, rows) if part else NONE for part in parts)])
    yield table(lines)


def _n_of_m(runs: Sequence[PlannedRun], rows: Mapping[str, Row]) -> str:
    return f"{count(sum(run.name in rows for run in runs))} of {count(len(runs))}"


def _machines(rows: Sequence[Row]) -> str:
    found = dict.fromkeys(str(row.made.get("processor", "unknown")) for row in rows)
    return f"Made on: {'; '.join(map(escaped, found))}."


def _hypotheses(plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    found = judgements(rows, _survival(plan))
    worlds = [world for world in plan.worlds if any(world in j.worlds for j in found)]
    titles = [escaped(plan.worlds[world].title) for world in worlds]
    lines = [["", "claim", "verdict", *titles]]
    lines += [
        [j.key, escaped(j.claim), f"**{j.verdict}**", *(j.worlds.get(w, NONE) for w in worlds)]
        for j in found
    ]
    yield table(lines)
    differences = [line for j in found for line in _differences(plan, j)]
    if differences:
        yield "What the verdicts rest on: differences in points, with 95% intervals."
        yield table([["", "world", "difference", "points", "seeds"], *differences])


def _survival(plan: Plan) -> str:
    """Return the variant with survival that the main runs have: the one that the pilots chose."""
    main = [name for group in plan.groups if group.name == MAIN for name in group.variants]
    return next((name for name in main if name.startswith(SURVIVAL)), SURVIVAL)


def _differences(plan: Plan, judgement: Judgement) -> Iterator[list[str]]:
    for part in judgement.parts:
        title = escaped(plan.worlds[part.world].title)
        points = interval_text(part.interval, signed=True)
        yield [judgement.key, title, escaped(part.what), points, count(part.seeds)]


def _world(world: WorldResult, figures: Sequence[Figure]) -> Iterator[str]:
    for group in world.compared:
        shown = [result for result in world.results if result.group == group]
        yield f"**{escaped(group)}.** {_seeds(shown)}"
        if any(result.finished for result in shown):
            reference = cut_reference(world, group)
            lines = [*shown, reference] if reference else shown
            yield table([["variant", *ACCURACY_COLUMNS], *map(_accuracy_line, lines)])
            yield table([["variant", *LAST_COLUMNS], *map(_last_line, lines)])
    if world.main:
        yield DROPS
        yield from _best_within(world.main, best_by_tokens(world.main), "sampled tokens")
        if (by_seconds := best_by_seconds(world.main)) is not None:
            yield from _best_within(world.main, by_seconds, "seconds of training")
    for figure in figures:
        path = (FIGURES / f"{figure.name}.svg").as_posix()
        yield f"![{escaped(figure.title)}]({path})"
        yield f"{escaped(figure.title)}. {escaped(figure.caption)}"
    compared = [result for result in world.results if result.group in world.compared]
    yield "Settings besides those of the world's configuration:"
    yield table([["group", "variant", "settings"], *map(_settings_line, compared)])


def _best_within(shown: Sequence[VariantResult], found: BestWithin, unit: str) -> Iterator[str]:
    yield f"Best accuracy within budgets of {unit}, shares of what all of these runs have spent:"
    heads = [f"{share} ({count(n)})" for share, n in zip(BUDGETS, found.budgets, strict=True)]
    cells = zip(shown, found.best, strict=True)
    lines = [[escaped(one.title), *map(interval_text, best)] for one, best in cells]
    yield table([["variant", *heads], *lines])


ACCURACY_COLUMNS = (
    *("at 1/6", "best within 1/6", "best within 1/2", "best", "last third", "worst drop"),
    "seeds",
)
"""Accuracy in percent; the drop in points."""
DROPS = (
    "The worst drop of a single variant is biased upward: noise alone makes drops, and resampling "
    "makes them larger. Differences between variants are not, or little."
)
LAST_COLUMNS = ("pass@1", "pass@2", "pass@4", "pass@8", "tokens", "format", "alarms")
"""What the last evaluation found; alarms are of the whole run."""
_PASSES = (1, 2, 4, 8)


def _seeds(shown: Sequence[VariantResult]) -> str:
    steps = " or ".join(count(n) for n in sorted({r.steps for v in shown for r in v.runs}))
    runs = [run for result in shown for run in result.runs]
    done = sum(len(result.finished.rows) for result in shown if result.finished)
    state = f"{count(done)} of {count(len(runs))} runs"
    return (
        f"{steps} steps, {state}. Accuracy in percent, mean over seeds and 95% interval; then the "
        "last evaluation, and in how many runs a rule raised an alarm."
    )


def _accuracy_line(result: VariantResult) -> list[str]:
    if result.finished is None:
        return [escaped(result.title), *[NONE] * (len(ACCURACY_COLUMNS) - 1), _finished(result)]
    found = result.finished.summary
    within = found.best_within
    cells = [
        found.accuracy["at_sixth"],
        within[Fraction(1, 6)],
        within[Fraction(1, 2)],
        within[Fraction(1)],
        found.accuracy["last_third"],
        found.accuracy["worst_drop"],
    ]
    return [escaped(result.title), *map(interval_text, cells), _finished(result)]


def _finished(result: VariantResult) -> str:
    done = len(result.finished.rows) if result.finished else 0
    return f"{count(done)} of {count(len(result.runs))}"


def _last_line(result: VariantResult) -> list[str]:
    if result.finished is None:
        return [escaped(result.title), *[NONE] * len(LAST_COLUMNS)]
    found = result.finished.summary
    passes = [found.pass_at.get(k) for k in _PASSES]
    return [
        escaped(result.title),
        *(NONE if cell is None else interval_text(cell) for cell in passes),
        number(found.response_tokens.mean),
        interval_text(found.format_rate),
        _alarms(result.finished.rows),
    ]


def _alarms(rows: Sequence[Row]) -> str:
    """Return each rule that fired, and in how many of the runs."""
    by_run = [{str(alarm["rule"]) for alarm in row.alarms} for row in rows]
    rules = sorted(set().union(*by_run))
    parts = [f"`{rule}` {sum(rule in of for of in by_run)} of {len(rows)}" for rule in rules]
    return ", ".join(parts) or NONE


def _pilots(plan: Plan, worlds: Sequence[WorldResult]) -> Iterator[str]:
    """Yield a table for each world's pilots, and one of what they say of survival."""
    found = [(world, pilots) for world in worlds if (pilots := pilots_of(world))]
    if not found:
        return
    yield "## Pilots"
    yield (
        "Accuracy in the last third, in percent, by learning rate. **Bold**: chosen by the rule, "
        "once all of a line are finished."
    )
    for world, pilots in found:
        rates = list(dict.fromkeys(rate for one in pilots for rate in one.late))
        lines = [_pilot_line(plan, one, rates) for one in pilots]
        yield table([[escaped(world.title), *rates], *lines])
        if others := list(_other_rates(plan, world.name, pilots)):
            yield f"The plan has other rates than the rule: {', '.join(others)}."
    if means := survival_means([pilots for _, pilots in found]):
        known = [share for share in means.values() if share is not None]
        most = max(known) if len(known) == len(means) else None
        yield "Settings of survival, each at its own rate: means over the worlds that piloted them."
        lines = [
            [escaped(plan.variants[variant].title), _pilot_cell(share, bold=share == most)]
            for variant, share in means.items()
        ]
        yield table([["variant", "mean"], *lines])


def _pilot_line(plan: Plan, pilots: Pilots, rates: Sequence[str]) -> list[str]:
    cells = [_pilot_cell(pilots.late.get(rate), bold=rate == pilots.chosen) for rate in rates]
    return [escaped(plan.variants[pilots.variant].title), *cells]


def _pilot_cell(share: float | None, bold: bool) -> str:
    if share is None:
        return NONE
    text = f"{100 * share:.1f}"
    return f"**{text}**" if bold else text


def _other_rates(plan: Plan, world: str, pilots: Sequence[Pilots]) -> Iterator[str]:
    """Yield the rates of a plan that the rule didn't choose."""
    for one in pilots:
        rate = plan.rates.get(world, {}).get(one.variant)
        if rate is not None and one.chosen not in (None, rate_text(rate)):
            yield f"{escaped(plan.variants[one.variant].title)} {rate_text(rate)}"


def _settings_line(result: VariantResult) -> list[str]:
    run = result.runs[0]
    return [
        run.group,
        f"`{run.variant}`",
        ", ".join(f"`{escaped(text, code=True)}`" for text in without_seed(run.settings)),
    ]


def interval_text(interval: Interval, signed: bool = False) -> str:
    """Return a share and its interval in percent, as in 61.2 (58.0 to 64.1)."""
    form = "+.1f" if signed else ".1f"
    mean, low, high = (format(100 * value + 0.0, form) for value in interval)
    return f"{mean} ({low} to {high})"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return a table of markdown; the first line is its head."""
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rest])


def escaped(text: str, code: bool = False) -> str:
    """Return text that says in markdown, also in a table, what it says.

    Args:
        code: it stands between backticks, where only those and a table's bars are special.
    """
    shown = printable(text)
    if code:
        return shown.replace("`", "'").replace("|", "\\|")
    spelled = "".join(f"\\{c}" if c in _SPECIAL else c for c in shown)
    return spelled.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
