"""Whether training flattens pass@k: the last evaluation beside the one before training.

A policy can answer more often right and yet solve fewer questions: it gains at k = 1 and loses at
large k. The last evaluation counts, not the best one, which was chosen by its accuracy on these
very questions. Questions are paired by name, and k goes up to the answers that each of them has in
both evaluations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import NamedTuple

from pipeline.compare.seed_intervals import seeds_interval
from pipeline.run.metrics import Answers, Interval, answers_by, bootstrap
from pipeline.run.pass_at_k import distinct_at_k, ks_up_to, pass_at_k
from pipeline.run.run import Run

Pairs = Sequence[tuple[Answers, Answers]]
"""The answers to each question before training, and in the last evaluation."""


class Shift(NamedTuple):
    """A number before training and in the last evaluation, and the change from one to the other.

    All over the same questions. Of several seeds: the mean, and Student's t over seeds; of one:
    bootstrap over questions.
    """

    start: Interval
    last: Interval
    change: Interval


@dataclass(frozen=True)
class PassChange:
    """What training did to a row's pass@k.

    Attributes:
        steps: steps done at the last evaluation of each run, by its name.
        questions: those that both evaluations of a run have, of the run with the fewest.
        at: pass@k by k.
        distinct: different predictions among as many answers as the largest k.
    """

    steps: dict[str, int]
    questions: int
    at: dict[int, Shift]
    distinct: Shift

    @property
    def flattens(self) -> bool:
        """Return whether pass@1 has clearly risen, and pass@k of the largest k clearly fallen."""
        return self.at[1].change.low > 0 > self.at[max(self.at)].change.high


def pass_change(runs: Mapping[str, Run]) -> PassChange | None:
    """Compare pass@k at the end and at the start of some runs, seeds of one method.

    Runs without an evaluation before training, or without a later one of the same questions,
    don't count; None: none counts.
    """
    lasts = {name: max(run.steps_of("evaluations"), default=0) for name, run in runs.items()}
    pairs = {
        name: _pairs(run, lasts[name])
        for name, run in runs.items()
        if lasts[name] > 0 and run.has("evaluations", 0)
    }
    pairs = {name: found for name, found in pairs.items() if found}
    if not pairs:
        return None
    seeds = list(pairs.values())
    most = min(len(answers) for found in seeds for pair in found for answers in pair)
    return PassChange(
        {name: lasts[name] for name in pairs},
        min(map(len, seeds)),
        {k: _shift(seeds, partial(_pass_at, k=k)) for k in ks_up_to(most)},
        _shift(seeds, lambda answers: distinct_at_k([p for p, _ in answers], most), most),
    )


def _pairs(run: Run, last: int) -> Pairs:
    start, end = (answers_by(run.read("evaluations", n), "prompt_id") for n in (0, last))
    return [(answers, end[question]) for question, answers in start.items() if question in end]


def _pass_at(answers: Answers, k: int) -> float:
    return pass_at_k(len(answers), sum(correct for _, correct in answers), k)


def _shift(
    seeds: Sequence[Pairs], measure: Callable[[Answers], float], highest: float = 1.0
) -> Shift:
    """Return the shift of a measure between 0 and `highest`."""
    start, last = ([[measure(pair[i]) for pair in pairs] for pairs in seeds] for i in (0, 1))
    change = [
        [after - before for before, after in zip(*both, strict=True)]
        for both in zip(start, last, strict=True)
    ]
    return Shift(
        _interval(start, 0.0, highest),
        _interval(last, 0.0, highest),
        _interval(change, -highest, highest),
    )


def _interval(seeds: Sequence[Sequence[float]], lowest: float, highest: float) -> Interval:
    if len(seeds) == 1:
        return bootstrap(seeds[0])
    return seeds_interval([fmean(values) for values in seeds], lowest, highest)
