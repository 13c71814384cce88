"""Why a run's accuracy fell: when, what moved before, on which tokens, and where to read on.

A row says when accuracy fell, which alarms came, and what moved among the numbers it keeps. Where
the run's folder is at hand, its tables tell correct rollouts from wrong ones: what their teachers
wanted otherwise, and the tokens at which most of it stands.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipeline.audit.token_texts import TokenTexts
from pipeline.health.shifts import PAST, RECENT, WINDOW, Point, shift
from pipeline.methods import METHODS
from pipeline.run.run import Run
from pipeline.study.alarm_study import AHEAD, Fate, Loss, fate, loss_of, raised_in
from pipeline.study.curve_measures import accuracy
from pipeline.study.study_row import SERIES, Row
from pipeline.study.study_row import WINDOW as ROW_WINDOW
from pipeline.survival import OFF_PATH, log_survival_of
from pipeline.text import command

OF_MEANS = ("correct_tokens_mean", "jsd_mean")
"""Of a row's means over steps, those that are explained with."""
DIVERGENCES = ("jsd correct", "jsd wrong", "entropy correct", "entropy wrong", "heard correct")
"""Numbers that need the run's tables."""
MOVED = 1.25
"""A number has moved if it has grown, or shrunk, by this factor and by more than its noise."""
TOKENS, ROLLOUTS = 8, 3
"""How many tokens and rollouts are named, of correct rollouts and of wrong ones."""

Series = Mapping[str, Sequence[float | None]]
"""Of each number its value at each step."""


class Moved(NamedTuple):
    """A number of the steps around a fall: means over as many steps as the fall took.

    Attributes:
        start: the run's first steps.
        before: those before the evaluation after which accuracy fell.
        during: those from there to the evaluation that shows the fall.
        after: those after it.
        at: first step, of those in which an alarm would have preceded the fall, at which the number
            left its past, as `pipeline.health.shifts` tells; None if it didn't.
    """

    name: str
    start: float | None
    before: float | None
    during: float | None
    after: float | None
    at: int | None


class Token(NamedTuple):
    """A token, and where the weighted divergence, sum of w * jsd, of some rollouts stands.

    Attributes:
        share: of the weighted divergence of these rollouts' tokens.
        times: how often it was sampled.
        off_path: share of its own that stands where the teacher would not have come (S < 0.1).
    """

    text: str
    share: float
    times: int
    off_path: float


class Rollout(NamedTuple):
    """A rollout with much weighted divergence.

    Attributes:
        share: of the weighted divergence of its step.
        position: of the token with the most, from 0.
        text: that token.
        command: shows the rollout.
    """

    name: str
    share: float
    position: int
    text: str
    command: str


class Heard(NamedTuple):
    """What teachers wanted otherwise of correct or of wrong rollouts."""

    correct: bool
    tokens: list[Token]
    rollouts: list[Rollout]


@dataclass(frozen=True)
class Explanation:
    """What is known about a run's fall.

    Attributes:
        fall: the loss; if there is none, the largest fall; None if accuracy never fell.
        lost: whether it is a loss (`alarm_study`).
        alarms: rule, steps done when it was raised, and what it was to the loss.
        moved: numbers of the steps around the fall.
        heard: of the steps before and during the fall; empty without a run folder, and without
            anything distilled.
    """

    name: str
    fall: Loss | None
    lost: bool
    alarms: list[tuple[str, int, Fate]]
    moved: list[Moved]
    heard: list[Heard]


def explain(row: Row, run: Run | None = None) -> Explanation:
    """Explain a run's fall from its row, and from its tables where its folder is at hand."""
    loss = loss_of(row)
    fall = loss or largest_fall(row)
    alarms = [(rule, done, fate(done, loss)) for rule, done in raised_in(row)]
    if fall is None:
        return Explanation(row.name, None, False, alarms, [], [])
    series = row_series(row)
    if run is not None:
        series |= divergences(run, len(row.steps), _steps_around(fall))
    moved = [_moved(name, values, fall) for name, values in series.items()]
    around = range(max(0, 2 * fall.onset - fall.shown), fall.shown)
    heard = [] if run is None else heard_in(run, around)
    return Explanation(row.name, fall, loss is not None, alarms, moved, heard)


def largest_fall(row: Row) -> Loss | None:
    """Return the largest fall of accuracy below the best before, the first of equals."""
    curve = [float(mean) for mean in accuracy(row).mean(axis=1)]
    done = row.evaluated_steps
    falls = [(max(curve[:j]) - curve[j], -j) for j in range(1, len(curve))]
    depth, place = max(falls, default=(0.0, 0))
    if depth <= 0:
        return None
    j = -place
    return Loss(done[max(0, j - AHEAD)], done[j - 1], done[j], max(curve[:j]), curve[j])


def row_series(row: Row) -> dict[str, Sequence[float | None]]:
    """Return the numbers of a row by step; a mean over steps stands for each of them."""
    steps = range(len(row.steps))
    means = {key: [row.means[key][step // ROW_WINDOW] for step in steps] for key in OF_MEANS}
    return {**{key: row.series[key] for key in SERIES}, **means}


def _steps_around(fall: Loss) -> set[int]:
    """Return the steps of which tables are read: those that `Moved` looks at."""
    span, past = fall.shown - fall.onset, WINDOW + PAST + RECENT
    first, near = range(span), range(fall.since - past, fall.shown + span)
    return {*first, *near, *range(fall.onset - span, fall.onset)}


def divergences(run: Run, steps: int, among: Collection[int]) -> dict[str, Sequence[float | None]]:
    """Return, by step, what teachers wanted otherwise of correct rollouts and of wrong ones.

    Means over their taught tokens: `jsd correct`, `jsd wrong` and `entropy …` (nats); and `heard
    correct`, the share of the weighted divergence that stands on correct rollouts. None where none
    was taught, where the teacher's table was removed, and at steps that aren't `among` those asked.
    """
    empty = dict.fromkeys(DIVERGENCES)
    found = [
        _step_divergences(run, step) if step in among and _taught(run, step) else empty
        for step in range(steps)
    ]
    return {name: [values[name] for values in found] for name in DIVERGENCES}


def _step_divergences(run: Run, step: int) -> dict[str, float | None]:
    teacher, weights = run.read("teacher", step), run.read("weights", step)
    correct = _of_correct(teacher, run.read("routes", step))
    jsd, entropy = (_wide(teacher, name) for name in ("jsd", "entropy"))
    weighted = _wide(weights, "weight") * jsd
    total = weighted.sum()
    found = [_mean(values[mask]) for values in (jsd, entropy) for mask in (correct, ~correct)]
    heard = float(weighted[correct].sum() / total) if total > 0 else None
    return dict(zip(DIVERGENCES, [*found, heard], strict=True))


def _taught(run: Run, step: int) -> bool:
    """Tell whether anything was distilled in a step whose teacher table is still there."""
    if METHODS[run.config.route.method].distributes or not run.has("teacher", step):
        return False
    return run.has("weights", step) and run.manifest("teacher", step).rows > 0


def _of_correct(teacher: pa.Table, routes: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which rows are tokens of correct rollouts."""
    ids = routes["rollout_id"].to_pylist()
    right = dict(zip(ids, routes["correct"].to_pylist(), strict=True))
    return np.array([right[name] for name in teacher["rollout_id"].to_pylist()], dtype=bool)


def _wide(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    return np.asarray(table[name].to_numpy(), dtype=np.float64)


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _moved(name: str, values: Sequence[float | None], fall: Loss) -> Moved:
    span = fall.shown - fall.onset
    return Moved(
        name,
        _known_mean(values[:span]),
        _known_mean(values[max(0, fall.onset - span) : fall.onset]),
        _known_mean(values[fall.onset : fall.shown]),
        _known_mean(values[fall.shown : fall.shown + span]),
        _left_its_past(values, range(fall.since, fall.shown)),
    )


def _known_mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _left_its_past(values: Sequence[float | None], steps: range) -> int | None:
    """Return the first of some steps at which a number left the median of its near past."""
    points = [Point(step, value) for step, value in enumerate(values) if value is not None]
    for end, point in enumerate(points, start=1):
        if point.step in steps:
            near = points[max(0, end - WINDOW - PAST - RECENT) : end]
            for factor in (MOVED, 1 / MOVED):
                found = shift(near, factor, 0.0, ever=False)
                # A number that was 0 and still is lies on a limit of 0.
                if found is not None and found.onset in steps and found.now != found.was:
                    return found.onset
    return None


def heard_in(run: Run, steps: Iterable[int]) -> list[Heard]:
    """Return where the weighted divergence of some steps stands: on which tokens and rollouts.

    Correct rollouts come before wrong ones; those of which none was taught are left out.
    """
    parts = [_token_frame(run, step) for step in steps if _taught(run, step)]
    if not parts:
        return []
    texts = TokenTexts(run.tokenizer_path())
    tokens = pl.concat(parts)
    return [
        Heard(correct, _tokens(of, texts), _rollouts(run, of, texts))
        for correct in (True, False)
        if (of := tokens.filter(pl.col("correct") == correct))["weighted"].sum() > 0
    ]


def _token_frame(run: Run, step: int) -> pl.DataFrame:
    """Return a row per taught token of a step: rollout, position, token, and its part in it."""
    teacher, weights = run.read("teacher", step), run.read("weights", step)
    weighted = _wide(weights, "weight") * _wide(teacher, "jsd")
    responses = run.read("rollouts", step).select(["rollout_id", "response_ids"])
    sampled = (
        pl.DataFrame(responses.to_pydict())
        .with_columns(position=pl.int_ranges(pl.col("response_ids").list.len(), dtype=pl.Int32))
        .explode("response_ids", "position")
        .rename({"response_ids": "token"})
    )
    taught = pl.DataFrame(
        {
            "rollout_id": teacher["rollout_id"].to_pylist(),
            "position": teacher["position"].to_numpy(),
            "correct": _of_correct(teacher, run.read("routes", step)),
            "weighted": weighted,
            "share": weighted / weighted.sum() if weighted.sum() > 0 else weighted,
            "off_path": np.where(np.exp(log_survival_of(teacher)) < OFF_PATH, weighted, 0.0),
        }
    )
    return taught.join(sampled, on=["rollout_id", "position"], how="left", maintain_order="left")


def _tokens(tokens: pl.DataFrame, texts: TokenTexts) -> list[Token]:
    total = tokens["weighted"].sum()
    sums = tokens.group_by("token", maintain_order=True).agg(
        pl.col("weighted").sum(), pl.len().alias("times"), pl.col("off_path").sum()
    )
    most = sums.sort("weighted", descending=True, maintain_order=True).head(TOKENS)
    return [
        Token(texts(token), part / total, times, off_path / part if part > 0 else 0.0)
        for token, part, times, off_path in most.iter_rows()
    ]


def _rollouts(run: Run, tokens: pl.DataFrame, texts: TokenTexts) -> list[Rollout]:
    """Return the rollouts with the largest sums, each of another step."""
    first = pl.col("weighted").arg_max()
    sums = tokens.group_by("rollout_id", maintain_order=True).agg(
        pl.col("weighted").sum(),
        pl.col("share").sum(),
        pl.col("position").get(first),
        pl.col("token").get(first),
    )
    found: dict[str, Rollout] = {}
    most = sums.sort("weighted", descending=True, maintain_order=True).drop("weighted")
    for name, share, position, token in most.iter_rows():
        step = name.partition("-")[0]
        shown = command("audit", run.root, "--rollout", name)
        found.setdefault(step, Rollout(name, share, position, texts(token), shown))
    return list(found.values())[:ROLLOUTS]
