"""The paper's step times from lengths and routing shares, and what our own steps would cost.

    python -m benchmarks.step_times [--response 700] [--write docs/SCALING.md]

Formulas are in `benchmarks.cost`. The paper's nine step times depend on response lengths that were
not published, so the growth of GRPO's is fitted. The table says which constants are fitted to which
of the nine; the others are predicted from the published accuracies. Nothing is measured here and no
GPU is needed: plans for our own steps rest on assumed rates.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.cost import MODELS, Gpus, Load, reference_step, shares
from benchmarks.plans import plans
from benchmarks.report import Sheet, sheets_markdown, show_sheets, write

HOURS = (1, 5, 10)
PAPER = {
    "GRPO": (71.0, 82.4, 91.5),
    "SDPO": (85.9, 83.9, 83.7),
    "SRPO": (83.4, 78.3, 75.8),
}
"""Seconds per step, Qwen3-8B (docs/method.md, section 10)."""
CORRECT = {
    "GRPO": (0.618, 0.725, 0.740),
    "SDPO": (0.648, 0.711, 0.711),
    "SRPO": (0.669, 0.755, 0.774),
}
"""Published accuracies, taken for the share of correct rollouts."""
AT_START = 0.5
H20 = Gpus(8, 148e12, 4.0e12)
"""What an account of the paper's first author's name reports (lasgroup/SDPO, issue 17)."""
H100 = Gpus(8, 989e12, 3.35e12)
STARTS = (400, 700, 1000)
METHODS = tuple(PAPER)
ROUNDS = 12
"""Of fitting; ten are enough for what is printed."""
ALL = tuple((method, hour) for method in METHODS for hour in HOURS)
GRPO_AND_A_TEACHER = (*(("GRPO", hour) for hour in HOURS), ("SDPO", 1))


class Constants(NamedTuple):
    """What is fitted: slowness always, growth where a variant lets responses grow.

    Attributes:
        slowness: the GPUs' peak rate over the rate reached; seconds of passes are linear in it.
        grpo, sdpo, srpo: tokens per hour by which the method's mean response grows.
    """

    slowness: float = 2.5
    grpo: float = 0
    sdpo: float = 0
    srpo: float = 0


class Assumed(NamedTuple):
    """What is neither published nor fitted: first mean length, longest over mean, GPUs."""

    start: float = 700
    longest: float = 4
    gpus: Gpus = H20


class Variant(NamedTuple):
    """A way to explain the nine times.

    Attributes:
        free: names of the constants that are fitted.
        targets: (method, hour) of the times they are fitted to.
        everywhere: SRPO's teacher scores all that SDPO's does, not only failed rollouts.
        mean: the published times are means since the start, not those at the hour.
    """

    name: str
    free: tuple[str, ...]
    targets: tuple[tuple[str, int], ...]
    everywhere: bool = False
    mean: bool = False


BASE = Variant("GRPO's responses grow", ("slowness", "grpo"), GRPO_AND_A_TEACHER)
GROWING = ("slowness", "grpo", "sdpo", "srpo")
VARIANTS = (
    BASE,
    BASE._replace(name="the same, times as means since the start", mean=True),
    Variant("all responses equally long", ("slowness",), GRPO_AND_A_TEACHER),
    Variant("each method's responses grow or shrink", GROWING, ALL),
    Variant(
        "the same, fitted to 1 h and 5 h",
        GROWING,
        tuple((method, hour) for method, hour in ALL if hour < 10),
    ),
    Variant("the same, SRPO's teacher scores correct ones too", GROWING, ALL, everywhere=True),
)


class Fit(NamedTuple):
    """A variant, its constants, and the seconds it gives for each (method, hour)."""

    variant: Variant
    constants: Constants
    seconds: dict[tuple[str, int], float]

    def error(self, method: str, hour: int) -> float:
        """Return the model's relative error."""
        return self.seconds[method, hour] / published(method, hour) - 1

    def in_order(self, hour: int) -> bool:
        """Return whether the three methods are ordered as the paper's times at an hour are."""
        ours = sorted(METHODS, key=lambda method: self.seconds[method, hour])
        return ours == sorted(METHODS, key=lambda method: published(method, hour))


def published(method: str, hour: int) -> float:
    """Return the paper's seconds per step."""
    return PAPER[method][HOURS.index(hour)]


def correct_share(method: str, hours: float) -> float:
    """Return the share of correct rollouts: published at 1, 5 and 10 h, straight lines between."""
    return float(np.interp(hours, (0, *HOURS), (AT_START, *CORRECT[method])))


def taught_share(method: str, load: Load, everywhere: bool = False) -> float:
    """Return the share of the rollouts that the teacher scores."""
    found = shares(load.correct, load.group)
    if method == "GRPO":
        return 0.0
    return found.taught if method == "SRPO" and not everywhere else found.helped


def parts(
    method: str, hours: float, constants: Constants, assumed: Assumed, everywhere: bool = False
) -> tuple[float, float, float]:
    """Return sampling, student and teacher seconds of a step after so many hours."""
    growth = getattr(constants, method.lower())
    response = max(1.0, assumed.start + growth * hours)
    load = Load(response, correct_share(method, hours), longest=assumed.longest)
    taught = taught_share(method, load, everywhere)
    gpus = assumed.gpus._replace(reached=1 / constants.slowness)
    return reference_step(MODELS["Qwen3-8B"], gpus, load, taught)


def seconds_at(
    variant: Variant, constants: Constants, assumed: Assumed
) -> dict[tuple[str, int], float]:
    """Return the seconds of a step for each method and hour."""
    found: dict[tuple[str, int], float] = {}
    for method in METHODS:

        def step(hours: float, method: str = method) -> float:
            return sum(parts(method, hours, constants, assumed, variant.everywhere))

        times = means_until(step) if variant.mean else [step(hour) for hour in HOURS]
        found |= {(method, hour): time for hour, time in zip(HOURS, times, strict=True)}
    return found


def means_until(step: Callable[[float], float]) -> list[float]:
    """Take one step after the other; return the mean seconds of a step until each hour."""
    clock, done, means = 0.0, 0, []
    for hour in HOURS:
        while clock < hour * 3600:
            clock += step(clock / 3600)
            done += 1
        means.append(clock / done)
    return means


def fitted(variant: Variant, assumed: Assumed) -> Fit:
    """Fit a variant's constants by least squares (Levenberg and Marquardt)."""

    def constants(values: Sequence[float]) -> Constants:
        return Constants()._replace(**dict(zip(variant.free, values, strict=True)))

    def misses(values: np.ndarray) -> np.ndarray:
        found = seconds_at(variant, constants(values.tolist()), assumed)
        return np.array([found[target] - published(*target) for target in variant.targets])

    values = np.array([getattr(Constants(), name) for name in variant.free], dtype=float)
    missed, damping = misses(values), 1e-3
    for _ in range(ROUNDS):
        widths = 1e-5 * np.maximum(1, np.abs(values))
        slopes = np.array(
            [
                (misses(values + move) - missed) / width
                for move, width in zip(np.diag(widths), widths, strict=True)
            ]
        )
        square = slopes @ slopes.T
        step = np.linalg.solve(square + damping * np.diag(np.diag(square) + 1e-9), slopes @ missed)
        tried = misses(values - step)
        better = tried @ tried < missed @ missed
        damping = damping / 3 if better else damping * 4
        if better:
            values, missed = values - step, tried
    best = constants(values.tolist())
    return Fit(variant, best, seconds_at(variant, best, assumed))


def step_times(fit: Fit, assumed: Assumed) -> Sheet:
    """Return the paper's times beside the model's."""
    rows = []
    for method, hour in ALL:
        each = parts(method, hour, fit.constants, assumed)
        length = assumed.start + getattr(fit.constants, method.lower()) * hour
        taught = taught_share(method, Load(length, correct_share(method, hour)))
        rows.append(
            (
                f"{method}, {hour} h",
                f"{length:,.0f}",
                f"{correct_share(method, hour):.0%}",
                f"{taught:.0%}",
                *(f"{seconds:.1f}" for seconds in each),
                f"{sum(each):.1f}",
                f"{published(method, hour):.1f}",
                f"{fit.error(method, hour):+.1%}",
                "fitted" if (method, hour) in fit.variant.targets else "predicted",
            )
        )
    header = (
        "step", "response", "correct", "taught", "sample, s", "student, s", "teacher, s",
        "model, s", "paper, s", "error", "",
    )  # fmt: skip
    return Sheet("The paper's step times", header, rows)


def variants(fits: Sequence[Fit]) -> Sheet:
    """Return how well each variant does, and with how many constants."""
    rows = []
    for fit in fits:
        rest = [target for target in ALL if target not in fit.variant.targets]
        worst, unseen = (
            f"{max(abs(fit.error(*target)) for target in targets):.1%}" if targets else "none left"
            for targets in (fit.variant.targets, rest)
        )
        growth = (f"{getattr(fit.constants, name):+.0f}" for name in fit.variant.free[1:])
        constants = ", ".join([f"{1 / fit.constants.slowness:.2f}", *growth])
        order = ", ".join("yes" if fit.in_order(hour) else "no" for hour in HOURS)
        rows.append(
            (
                fit.variant.name,
                f"{len(fit.variant.free)} to {len(fit.variant.targets)}",
                constants,
                worst,
                unseen,
                order,
            )
        )
    header = (
        "explanation", "constants to times", "reached, tokens per h", "worst fitted",
        "worst predicted", "order at 1, 5, 10 h",
    )  # fmt: skip
    return Sheet("Explanations", header, rows)


def others() -> Sheet:
    """Return how the first explanation does under other assumptions."""
    rows = []
    for name, gpus in (("8 H20", H20), ("8 H100", H100)):
        for longest in (2, 4, 6):
            fits = [fitted(BASE, Assumed(start, longest, gpus)) for start in STARTS]
            reached = [1 / fit.constants.slowness for fit in fits]
            worst = [max(abs(fit.error(*target)) for target in ALL) for fit in fits]
            right = sum(all(fit.in_order(hour) for hour in HOURS) for fit in fits)
            rows.append(
                (
                    f"{name}, longest {longest} times the mean",
                    f"{min(reached):.2f} to {max(reached):.2f}",
                    f"{min(worst):.1%} to {max(worst):.1%}",
                    f"{right} of {len(fits)}",
                )
            )
    header = ("assumed", "reached", "worst error", "order right at all hours")
    starts = ", ".join(f"{start:,}" for start in STARTS)
    return Sheet(f"Other assumptions, mean response {starts} at the start", header, rows)


def sheets(start: float) -> list[Sheet]:
    """Return all tables for a mean response of `start` tokens."""
    assumed = Assumed(start)
    fits = [fitted(variant, assumed) for variant in VARIANTS]
    return [step_times(fits[0], assumed), variants(fits), others(), *plans(start)]


def main() -> None:
    """Print the tables, and write them."""
    parser = argparse.ArgumentParser(description="Step times, the paper's and ours, by formula.")
    parser.add_argument("--response", type=float, default=700, help="mean tokens of a response")
    parser.add_argument("--write", type=Path, help="page to write the tables to")
    arguments = parser.parse_args()
    if not 1 <= arguments.response <= 8192:
        parser.error(f"--response {arguments.response:g}: expected 1 to 8192 tokens")
    found = sheets(arguments.response)
    show_sheets(found)
    if arguments.write:
        write(arguments.write, sheets_markdown(found))


if __name__ == "__main__":
    main()
