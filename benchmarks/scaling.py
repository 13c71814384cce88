"""How a step's cost grows with rollouts and with their length, on a small policy of our own.

    python -m benchmarks.scaling [--quick] [--plot docs/images/scaling.png]

Times route + weigh + update with 32 to 1,024 rollouts of 64 tokens, and with 32 rollouts of 64 to
2,048 tokens; half of each group is correct. An exponent is the slope of a straight line through
log seconds over log size. Attention grows with the square of the length, so lengths at which it
takes over a fifth of the operations are measured and shown, but not fitted.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.fixture import write_fixture
from benchmarks.flops import Work, attention_share, network, ours
from benchmarks.ours import Job, measure
from benchmarks.report import Line, show

NETWORK = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
GROUP, PROMPT, CORRECT = 8, 64, 4
SHORT, FEW = 64, 32
ROLLOUTS = (32, 64, 128, 256, 512, 1024)
LENGTHS = (64, 128, 256, 512, 1024, 2048)
LIMIT = 1.1
BOUND = 0.2
PLOT = Path(__file__).resolve().parents[1] / "docs" / "images" / "scaling.png"


class Point(NamedTuple):
    """A measurement: its size, its seconds, and attention's share of its operations."""

    size: int
    seconds: float
    attention: float


class Series(NamedTuple):
    """Measurements over growing sizes."""

    name: str
    points: list[Point]

    @property
    def fitted(self) -> list[Point]:
        """Return the points at which attention takes less than `BOUND` of the operations."""
        return [p for p in self.points if p.attention < BOUND]

    @property
    def exponent(self) -> float:
        """Return the slope of log seconds over log size."""
        return _slope(self.fitted)

    @property
    def last(self) -> float:
        """Return the slope of the last two fitted points, where constant costs matter least."""
        return _slope(self.fitted[-2:])


def measure_series(quick: bool) -> list[Series]:
    """Measure both series."""
    rollouts, lengths = (ROLLOUTS[:3], LENGTHS[:3]) if quick else (ROLLOUTS, LENGTHS)
    by_number = [measure_point(number, SHORT, number, quick) for number in rollouts]
    by_length = [measure_point(FEW, length, length, quick) for length in lengths]
    return [
        Series(f"rollouts of {SHORT} tokens", by_number),
        Series(f"tokens of each of {FEW} rollouts", by_length),
    ]


def measure_point(rollouts: int, length: int, size: int, quick: bool) -> Point:
    """Measure one number of rollouts of one length."""
    groups = rollouts // GROUP
    with tempfile.TemporaryDirectory() as scratch:
        write_fixture(
            Path(scratch),
            NETWORK,
            prompts=groups,
            prompt_tokens=PROMPT,
            completion_tokens=length,
            correct=[CORRECT],
            group=GROUP,
        )
        job = Job(Path(scratch), "update", steps=1 if quick else 3, questions=groups)
        found = measure(job)
    seconds = found["median_wall_s"]["all"]
    work = Work(PROMPT, length, [CORRECT] * groups, GROUP)
    share = attention_share(ours(network(NETWORK), work))
    print(f"{rollouts} rollouts x {length} tokens: {seconds:.2f} s, attention {share:.0%}")
    return Point(size, seconds, share)


def plot(series: Sequence[Series], path: Path) -> None:
    """Draw seconds over size, both on logarithmic axes, with the fitted lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, one in zip(axes, series, strict=True):
        _draw(axis, one)
    figure.suptitle("Seconds of route + weigh + update in a step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(axis: Any, series: Series) -> None:
    sizes = np.array([p.size for p in series.points])
    seconds = np.array([p.seconds for p in series.points])
    fitted = np.array([p.size for p in series.fitted])
    middle = np.exp(np.mean([np.log(p.seconds / p.size**series.exponent) for p in series.fitted]))
    axis.loglog(
        fitted,
        middle * fitted**series.exponent,
        color="#9a9a9a",
        label=f"exponent {series.exponent:.2f}",
    )
    axis.loglog(sizes, seconds, "o", color="#1f6feb", label="measured")
    beyond = [p.size for p in series.points if p.attention >= BOUND]
    if beyond:
        start = float(np.sqrt(beyond[0] * fitted[-1]))
        axis.axvspan(start, sizes[-1] * 1.3, color="#f2e3d5", label=f"attention over {BOUND:.0%}")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if _near(t, seconds)]
    axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel(series.name)
    axis.set_ylabel("seconds")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)


def _near(tick: float, values: Any) -> bool:
    return bool(values.min() / 2 <= tick <= values.max() * 2)


def crossing() -> int:
    """Return the length from which attention takes over a fifth of the operations."""
    net = network(NETWORK)
    lengths = range(SHORT, 65_536, 16)
    return next(
        n for n in lengths if attention_share(ours(net, Work(PROMPT, n, [CORRECT], GROUP))) >= BOUND
    )


def scaling_lines(quick: bool, path: Path) -> tuple[list[Line], list[str]]:
    """Measure, plot, and return the table's lines and notes."""
    series = measure_series(quick)
    plot(series, path)
    print(f"plot: {path}")
    lines = [
        Line(
            work=f"step by {one.name}, {one.fitted[0].size:,} to {one.fitted[-1].size:,}",
            ours=f"{one.fitted[0].seconds:.2f} to {one.fitted[-1].seconds:.2f} s",
            ratio=f"exponent {one.exponent:.2f} (last two {one.last:.2f})",
            target=f"at most {LIMIT}",
            met=None if quick else one.exponent <= LIMIT,
        )
        for one in series
    ]
    shares = ", ".join(f"{p.size:,}: {p.attention:.0%}" for p in series[1].points)
    return lines, [
        f"Scaling: 2 layers, hidden {NETWORK['hidden_size']}, vocabulary {NETWORK['vocab_size']}, "
        f"prompt {PROMPT}, half of each group correct. Attention's share of the operations by "
        f"length: {shares}; it passes {BOUND:.0%} at {crossing():,} tokens."
    ]


def _slope(points: Sequence[Point]) -> float:
    sizes, seconds = ([getattr(p, name) for p in points] for name in ("size", "seconds"))
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    """Measure, plot and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes only, to try it out")
    parser.add_argument("--plot", type=Path, default=PLOT, help="picture to write")
    arguments = parser.parse_args()
    show(*scaling_lines(arguments.quick, arguments.plot))


if __name__ == "__main__":
    main()
