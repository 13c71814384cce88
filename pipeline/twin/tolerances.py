"""How far a correct float32 number may lie from the twin's, and a report of those further away.

A stored float32 is off by 6e-8 of its value, but a log-probability comes from a whole forward pass
in float32. Plain transformers passes over the demo policy (logits up to 17.6, where one rounding is
1e-6) differ from the same passes in float64 by up to 1.7e-5, eager or sdpa. So a log-probability
has an absolute error of `LOG_FLOOR` times `floor` = 2.6e-5, however small it is. That is a RELATIVE
error of the probability, from which the others follow:

- tail: the log of a mass M, which is 1 minus a float close to 1. Its error was measured as up to
  4e-7 in those passes; it counts as `MASS_FLOOR` times `floor`, over M, on top of the above.
- divergence J: its first-order terms cancel. An error e of the logs moves a JSD by at most
  e sqrt(J / 2) + e^2 (Cauchy-Schwarz on J ~ sum of p d^2 / 8) and a KL by e (J + 3 sqrt(J))
  (Pinsker); a sum over p log p in float32 leaves `floor` (1 + H); and the error of the tail's mass
  counts by the derivative, |log s - log q| / 2 of the tails for the JSD.
  A JSD of 1e-9 is below that floor, so only its sign can be checked.
- float16 rows: 11 bits remain, so a log-probability is off by at most `FLOAT16_RTOL` of itself.
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
FLOAT16_RTOL = 2.0**-11


@dataclass
class Report:
    """The disagreements found so far, and the errors that are allowed.

    Attributes:
        rtol: relative error allowed of any number.
        floor: absolute error of a float32 sum; the other floors are multiples of it.
        lines: one per disagreement.
        numbers: numbers compared.
        worst: largest deviation, as a share of what is allowed there.
        where: the name and the rollout of that number.
    """

    rtol: float = 1e-5
    floor: float = 1e-7
    lines: list[str] = field(default_factory=list)
    numbers: int = 0
    worst: float = 0.0
    where: str = ""

    @property
    def log_error(self) -> float:
        """Absolute error allowed of a log-probability or an entropy, nats."""
        return LOG_FLOOR * self.floor

    def note(self, what: str, rollout: str, found: object, expected: object) -> None:
        """Note a disagreement."""
        self.lines.append(f"{what} {rollout}: found {found}, expected {expected}")

    def check_equal(
        self,
        table: str,
        rollout: str,
        found: Mapping[str, object],
        expected: Mapping[str, object],
    ) -> None:
        """Note each column whose value is not exactly the expected one."""
        self.numbers += len(expected)
        for column, value in expected.items():
            if found[column] != value:
                self.note(f"{table}.{column}", rollout, found[column], value)

    def check_close(
        self,
        what: str,
        rollout: str,
        found: Sequence[float] | Array,
        expected: Tensor | Sequence[float],
        slack: Tensor | float,
    ) -> None:
        """Note each entry that is off by more than rtol |expected| + slack; NaN always is."""
        got = np.asarray(found, dtype=np.float64)
        want = torch.as_tensor(expected, dtype=torch.float64).numpy()
        if got.shape != want.shape:
            self.note(f"{what} (shape)", rollout, got.shape, want.shape)
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
        """Count the numbers, and keep the largest deviation."""
        self.numbers += off.size
        shares = off / np.maximum(allowed, np.finfo(np.float64).tiny)
        worst = float(np.fmax.reduce(shares, axis=None, initial=0.0))
        if worst > self.worst:
            self.worst, self.where = worst, what


def divergence_slack(
    report: Report, name: str, value: Tensor, entropy: Tensor, tails: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Return the error that float32 may cause in a divergence; the head of this file derives it."""
    gap = torch.zeros_like(value) if tails is None else (tails[0] - tails[1]).abs()
    first, mass = (value.abs() / 2).sqrt(), gap / 2
    if name != "jsd":
        first, mass = value.abs() + 3 * value.abs().sqrt(), gap + gap.expm1()
    rounding = report.floor * (1.0 + entropy + MASS_FLOOR * mass)
    return report.log_error * first + report.log_error**2 + rounding
