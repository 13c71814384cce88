"""The health rules against a study: which alarms came before which losses of accuracy.

A *loss*. Let a_0, a_1, … be a run's accuracies in the order of its evaluations, and b the best of
those before evaluation j. Evaluation j lies low if a_j <= b - d_j, where d_j is the larger of
`FALL` and the width of a_j's 95% interval over its questions, 2 * 1.96 * s / sqrt(n), s being the
deviation (n - 1) of the n questions' shares of correct answers. A run's loss is shown by its first
evaluation j that lies low and isn't made up: of the two evaluations after it, or as many as there
are, none comes above b - d_j. What is above by less than 1e-9, far less than one answer makes,
counts as equal. A run has one loss or none; later falls are not counted. Its onset is the
evaluation before j: the fall came in the steps from there to j.

An *alarm* counts at the number of steps done when it was raised, r: s + 1 for one that needs the
record of step s, n for one of the evaluation after n steps. Each rule raises at most one in a run.
Where evaluation j shows the loss after S steps, and evaluation j - `AHEAD`, or the first, was after
p steps, the alarm

- *precedes* it if p <= r <= S; its lead is S - r steps;
- is *late* if r > S;
- is *false* otherwise: there is no loss, or r < p.

A loss that a rule didn't precede is *missed* by it. Rules of evaluations see the fall itself, so
they are counted apart from rules of steps. Of several rules together the first alarm of a run
counts, since that is the one that `run.on_alarm` acts on.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.errors import StoreError
from pipeline.health import findings
from pipeline.health.findings import Sign
from pipeline.health.rules import EVALUATION_RULES, STEP_RULES, AtStep, Rule
from pipeline.methods import METHODS, credit_lambda
from pipeline.study.curve_measures import accuracy
from pipeline.study.resampling import Floats
from pipeline.study.study_row import WINDOW, Row

FALL = 0.10
"""Of accuracy: what a fall is at least."""
_ROUNDING = 1e-9
"""Of accuracy: what sums of binary fractions may lack of it, as in 0.3 - 0.1 < 0.2."""
GRACE = 2
"""Evaluations within which a fall may be made up."""
AHEAD = 3
"""Evaluations by which an alarm may be ahead of a loss."""
TOGETHER = "any severe one"
NOT_AGAIN = ("engine_mismatch", "verifier_fails", "gold_told")
"""Rules of steps that can't be run again over a row, which lacks what they read. They look for
faults of engine, verifier and task; rows have their alarms."""
GRIDS: Mapping[str, Sequence[Mapping[str, float]]] = {
    "format_falls": [
        {"FORMAT_SHARE": 1 - drop, "FORMAT_DROP": drop} for drop in (0.15, 0.05, 0.10, 0.25)
    ],
    "length_grows": [{"LENGTH_GROWTH": growth} for growth in (2.0, 1.25, 1.5, 3.0)],
    "length_shrinks": [{"LENGTH_SHARE": share} for share in (0.5, 0.8, 0.65, 0.35)],
    "demonstrations_shrink": [
        {"DEMONSTRATION_RATIO": ratio, "RATIO_DROP": drop, "DEMONSTRATION_SHARE": share}
        for ratio, drop, share in ((0.7, 0.15, 0.8), (0.9, 0.05, 0.9), (0.8, 0.10, 0.9))
    ],
    "teacher_entropy_collapses": [{"COLLAPSED": share} for share in (0.25, 0.75, 0.5, 0.1)],
    "duplicate_responses": [{"DUPLICATES": share} for share in (0.3, 0.05, 0.1, 0.5)],
    "off_path": [
        {"OFF_PATH_SHARE": share, "OFF_PATH_FALL": fall}
        for share in (0.5, 0.3, 0.4, 0.6, 0.7)
        for fall in (0.05, 0.02, 0.10)
    ],
}
"""Of each severe rule of steps the thresholds that are tried: the present ones first."""

Fate = Literal["precedes", "late", "false"]


class Loss(NamedTuple):
    """A loss of accuracy.

    Attributes:
        since: steps done at the evaluation from which on an alarm precedes it.
        onset: steps done at the evaluation before the fall.
        shown: steps done at the evaluation that shows it.
        best: best accuracy before.
        now: accuracy of the evaluation that shows it.
    """

    since: int
    onset: int
    shown: int
    best: float
    now: float


class Raised(NamedTuple):
    """An alarm: its rule, and how many steps were done when it was raised."""

    rule: str
    done: int


@dataclass(frozen=True)
class Tally:
    """What a rule, or several together, did in a number of runs.

    Attributes:
        name: of the rule, or of the rules together.
        runs: how many there were.
        losses: how many of them had a loss.
        leads: steps ahead, of each loss that was preceded.
        late, false: how many alarms were that.
    """

    name: str
    runs: int
    losses: int
    leads: tuple[int, ...]
    late: int
    false: int

    @property
    def raised(self) -> int:
        """Return how many runs raised it."""
        return len(self.leads) + self.late + self.false

    @property
    def missed(self) -> int:
        """Return how many losses it didn't precede."""
        return self.losses - len(self.leads)

    @property
    def score(self) -> int:
        """Return losses preceded minus false alarms."""
        return len(self.leads) - self.false


@dataclass(frozen=True)
class Tuned:
    """A rule whose thresholds were chosen on the runs with odd seeds.

    Attributes:
        tried: thresholds and score on odd seeds, in the order of the grid.
        chosen: the thresholds with the highest score; the first of equals.
        odd, even: with the chosen ones, on the runs that chose and on the others.
        odd_before, even_before: with the present ones.
    """

    rule: str
    tried: tuple[tuple[Mapping[str, float], int], ...]
    chosen: Mapping[str, float]
    odd: Tally
    even: Tally
    odd_before: Tally
    even_before: Tally


def loss_of(row: Row) -> Loss | None:
    """Return a run's loss of accuracy, or None."""
    shares, done = accuracy(row), row.evaluated_steps
    curve = [float(mean) for mean in shares.mean(axis=1)]
    for j in range(1, len(curve)):
        best = max(curve[:j])
        limit = best - max(FALL, _width(shares[j])) + _ROUNDING
        if all(later <= limit for later in curve[j : j + 1 + GRACE]):
            return Loss(done[max(0, j - AHEAD)], done[j - 1], done[j], best, curve[j])
    return None


def _width(shares: Floats) -> float:
    """Return the width of a mean's 95% interval."""
    if len(shares) < 2:
        return math.inf
    return float(2 * 1.96 * shares.std(ddof=1) / math.sqrt(len(shares)))


def raised_in(row: Row) -> list[Raised]:
    """Return the alarms that a run raised, in their order."""
    return [Raised(str(alarm["rule"]), int(alarm["raised"])) for alarm in row.alarms]


def fate(done: int, loss: Loss | None) -> Fate:
    """Tell what an alarm was that was raised after so many steps."""
    if loss is None or done < loss.since:
        return "false"
    return "precedes" if done <= loss.shown else "late"


def tally(name: str, runs: Sequence[tuple[Loss | None, int | None]]) -> Tally:
    """Count what became of one alarm per run.

    Args:
        runs: of each its loss, and how many steps were done when the alarm was raised, if it was.
    """
    fates = [(fate(done, loss), loss, done) for loss, done in runs if done is not None]
    leads = [loss.shown - done for what, loss, done in fates if what == "precedes" and loss]
    return Tally(
        name,
        runs=len(runs),
        losses=sum(loss is not None for loss, _ in runs),
        leads=tuple(leads),
        late=sum(what == "late" for what, _, _ in fates),
        false=sum(what == "false" for what, _, _ in fates),
    )


def tally_rules(rows: Sequence[Row], name: str, rules: Sequence[str]) -> Tally:
    """Count what became of each run's first alarm of one rule, or of several together."""
    runs = []
    for row in rows:
        times = [alarm.done for alarm in raised_in(row) if alarm.rule in rules]
        runs.append((loss_of(row), min(times, default=None)))
    return tally(name, runs)


def step_tallies(rows: Sequence[Row]) -> list[Tally]:
    """Return what each rule of steps did, and then all severe ones together."""
    severe = [rule.name for rule in STEP_RULES if rule.severe]
    each = [tally_rules(rows, rule.name, [rule.name]) for rule in STEP_RULES]
    return [*each, tally_rules(rows, TOGETHER, severe)]


def evaluation_tallies(rows: Sequence[Row]) -> list[Tally]:
    """Return what each rule of evaluations did, which sees the loss itself."""
    return [tally_rules(rows, rule.name, [rule.name]) for rule in EVALUATION_RULES]


def table_of(tallies: Sequence[Tally]) -> list[str]:
    """Return a Markdown table, a rule a line."""
    severe = {rule.name for rule in STEP_RULES if rule.severe}
    severe |= {rule.name for rule in EVALUATION_RULES if rule.severe} | {TOGETHER}
    lines = [
        "| rule | severe | raised | losses preceded | median lead, steps | false | late | missed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for t in tallies:
        lead = f"{median(t.leads):g}" if t.leads else "–"
        acts = "yes" if t.name in severe else ""
        lines.append(
            f"| {t.name.replace('_', ' ')} | {acts} | {t.raised} of {t.runs} "
            f"| {len(t.leads)} of {t.losses} | {lead} | {t.false} | {t.late} | {t.missed} |"
        )
    return lines


def tuning_table_of(tuned: Sequence[Tuned]) -> list[str]:
    """Return a Markdown table, a rule a line: losses preceded and false alarms, on either half."""
    lines = [
        "| rule | present | chosen on odd seeds | odd, present | odd, chosen | even, present "
        "| even, chosen |",
        "|---|---|---|---|---|---|---|",
    ]
    for t in tuned:
        values = ", ".join(f"{value:g}" for value in t.tried[0][0].values())
        chosen = ", ".join(f"{name} {value:g}" for name, value in t.chosen.items())
        halves = (t.odd_before, t.odd, t.even_before, t.even)
        results = " | ".join(f"{len(h.leads)} of {h.losses}, {h.false} false" for h in halves)
        lines.append(f"| {t.rule.replace('_', ' ')} | {values} | {chosen} | {results} |")
    return lines


def records_of(row: Row) -> list[dict[str, Any]]:
    """Return a run's records of steps as the rules of steps read them, but for `NOT_AGAIN`.

    Numbers have a row's digits. No verdict is taken to have failed; the method is that of the
    row's settings, else srpo.

    Raises:
        StoreError: the row has no step.
    """
    if not row.steps:
        raise StoreError(f"row {row.name}: expected the numbers of its steps, found none")
    settings = dict(setting.split("=", 1) for setting in row.settings)
    method: Any = settings.get("route.method", "srpo")
    start = float(settings.get("route.credit_lambda", 0.5))
    last = int(settings.get("route.credit_steps", 50))
    rollouts = _rollouts(row)
    records = []
    for step in range(len(row.steps)):
        credit = credit_lambda(method, start, last, step)
        distributes = METHODS[method].distributes
        record = {key: values[step] for key, values in row.series.items()}
        record |= {"step": step, "rollouts": rollouts, "judged": rollouts}
        record |= {"distils": credit > 0 if distributes else METHODS[method].has_teacher}
        records.append(record | ({"credit_lambda": credit} if distributes else {}))
    return records


def _rollouts(row: Row) -> int:
    """Return how many rollouts a step has: its tokens over their mean."""
    lengths = np.array(row.series["response_tokens_mean"], dtype=np.float64)
    tokens = np.array(row.means["tokens"], dtype=np.float64)
    windows = [lengths[start : start + WINDOW] for start in range(0, len(lengths), WINDOW)]
    return round(float(tokens.sum() / sum(window.mean() for window in windows)))


def found_again(
    rule: Rule[AtStep], records: Sequence[Mapping[str, Any]]
) -> tuple[int, Sign] | None:
    """Run a rule of steps over records, one after the other, until it finds something.

    Over a row's it finds what it found in the run, but for what rounding changes.

    Returns:
        How many steps are done by then, and what it found; None if it finds nothing.
    """
    for done in range(1, len(records) + 1):
        if (sign := rule.find(records[:done])) is not None:
            return done, sign
    return None


@contextmanager
def thresholds(values: Mapping[str, float]) -> Iterator[None]:
    """Let rules compare with other thresholds than their own, for as long as this lasts."""
    before = {name: getattr(findings, name) for name in values}
    try:
        for name, value in values.items():
            setattr(findings, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(findings, name, value)


def tune(rows: Sequence[Row]) -> list[Tuned]:
    """Choose thresholds on the runs with odd seeds, and count on the others what they do there."""
    halves = [[row for row in rows if row.seed % 2 == odd] for odd in (1, 0)]
    of_halves = [[(loss_of(row), records_of(row)) for row in half] for half in halves]
    return [_tuned(rule, *of_halves) for rule in STEP_RULES if rule.name in GRIDS]


Half = Sequence[tuple[Loss | None, Sequence[Mapping[str, Any]]]]


def _tuned(rule: Rule[AtStep], odd: Half, even: Half) -> Tuned:
    grid = GRIDS[rule.name]
    on_odd = [_tally_again(rule, values, odd) for values in grid]
    best = max(range(len(grid)), key=lambda n: (on_odd[n].score, -n))
    return Tuned(
        rule.name,
        tuple((values, t.score) for values, t in zip(grid, on_odd, strict=True)),
        chosen=grid[best],
        odd=on_odd[best],
        even=_tally_again(rule, grid[best], even),
        odd_before=on_odd[0],
        even_before=_tally_again(rule, grid[0], even),
    )


def _tally_again(rule: Rule[AtStep], values: Mapping[str, float], half: Half) -> Tally:
    with thresholds(values):
        again = [(loss, found_again(rule, records)) for loss, records in half]
    return tally(rule.name, [(loss, found[0] if found else None) for loss, found in again])
