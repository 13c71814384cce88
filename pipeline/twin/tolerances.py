"""How far a right float32 number may be from the twin, and the list of those that are further.

A stored float32 is off by 6e-8 of its value, but the log-probability in it comes from a forward
pass in float32. Plain transformers passes over the demo policy (logits up to
17.6, one rounding of which is 1e-6) differ from the same passes in float64 by up to 1.7e-5, eager
or sdpa. So a log-probability has an absolute error of `LOG_FLOOR` times `floor` = 2.6e-5 however
small it is, which is a RELATIVE error of the probability, and from it follow:

- tail: log of a mass M that is 1 minus a float next to 1, measured to 4e-7 in those passes:
  `MASS_FLOOR` times `floor`, over M, on top of the above.
- divergence J: its first-order terms cancel. An error e of the logs moves a JSD by at most
  e sqrt(J / 2) + e^2 (Cauchy-Schwarz on J ~ sum of p d^2 / 8) and a KL by e (J + 3 sqrt(J))
  (Pinsker); a sum over p log p in float32 leaves `floor` (1 + H); and the error of the tail's mass
  counts by the derivative, |log s - log q| / 2 of the tails for the JSD.
  A JSD of 1e-9 is below that floor, so only its sign can be held to.
- float16 rows: 11 bits are kept, so a log-probability is off by `HALF` times itself at most.
- exp(-beta H) and ratios: the error of the exponent, as a relative error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]
LOG_FLOOR = 256.0
MASS_FLOOR = 10.0
HALF = 2.0**-11


@dataclass
class Report:
    """The disagreements found so far, and what is allowed.

    Attributes:
        numbers: numbers compared.
        worst: largest deviation, as a share of what is allowed there.
        where: what and whose it is.
    """

    rtol: float = 1e-5
    floor: float = 1e-7
    lines: list[str] = field(default_factory=list)
    numbers: int = 0
    worst: float = 0.0
    where: str = ""

    @property
    def logs(self) -> float:
        """Absolute error of a log-probability or an entropy, nats."""
        return LOG_FLOOR * self.floor

    def say(self, what: str, rollout: str, found: object, expected: object) -> None:
        """Note a disagreement."""
        self.lines.append(f"{what} {rollout}: found {found}, expected {expected}")

    def same(
        self,
        table: str,
        rollout: str,
        found: Mapping[str, object],
        expected: Mapping[str, object],
    ) -> None:
        """Note each column that is not exactly what it must be."""
        self.numbers += len(expected)
        for column, value in expected.items():
            if found[column] != value:
                self.say(f"{table}.{column}", rollout, found[column], value)

    def check(
        self,
        what: str,
        rollout: str,
        found: Sequence[float] | Array,
        expected: Tensor | Sequence[float],
        slack: Tensor | float,
    ) -> None:
        """Note each entry off by more than rtol |expected| + slack; NaN is always noted."""
        got = np.asarray(found, dtype=np.float64)
        want = torch.as_tensor(expected, dtype=torch.float64).numpy()
        if got.shape != want.shape:
            self.say(f"{what} (shape)", rollout, got.shape, want.shape)
            return
        allowed = self.rtol * np.abs(want) + torch.as_tensor(slack, dtype=torch.float64).numpy()
        with np.errstate(invalid="ignore"):
            off = np.abs(got - want)
            wrong = ~((got == want) | (off <= allowed))
        self._measure(f"{what} {rollout}", np.where(got == want, 0.0, off), allowed)
        for index in np.argwhere(wrong):
            at = tuple(index)
            relative = off[at] / max(abs(want[at]), np.finfo(np.float64).tiny)
            self.lines.append(
                f"{what} {rollout} [{', '.join(map(str, at))}]: found {got[at]:.9g}, "
                f"expected {want[at]:.9g}, relative error {relative:.2g}"
            )

    def _measure(self, what: str, off: Array, allowed: Array) -> None:
        """Count, and keep the largest deviation."""
        self.numbers += off.size
        shares = off / np.maximum(allowed, np.finfo(np.float64).tiny)
        worst = float(np.fmax.reduce(shares, axis=None, initial=0.0))
        if worst > self.worst:
            self.worst, self.where = worst, what


def divergence_slack(
    report: Report, name: str, value: Tensor, entropy: Tensor, tails: tuple[Tensor, Tensor] | None
) -> Tensor:
    """What float32 may do to a divergence; see the head of this file."""
    gap = torch.zeros_like(value) if tails is None else (tails[0] - tails[1]).abs()
    first, mass = (value.abs() / 2).sqrt(), gap / 2
    if name != "jsd":
        first, mass = value.abs() + 3 * value.abs().sqrt(), gap + gap.expm1()
    rounding = report.floor * (1.0 + entropy + MASS_FLOOR * mass)
    return report.logs * first + report.logs**2 + rounding
