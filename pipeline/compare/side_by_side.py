"""Methods side by side: what each of them would have done with the same rollouts.

Gradients and their numbers are computed elsewhere (`stages.update.token_gradients` defines them);
here they are put together, and a failed and a correct rollout are chosen to be shown.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FAILED, CORRECT, NOT_JUDGED = "failed", "correct", "not judged"
OUTCOMES = (FAILED, CORRECT, NOT_JUDGED)


@dataclass(frozen=True)
class Sample:
    """A rollout, which all methods share.

    Attributes:
        outcome: one of OUTCOMES.
        question: the last message of its prompt.
        token_ids, texts: of its T response tokens.
    """

    rollout_id: str
    group: int
    outcome: str
    reward: float
    question: str
    token_ids: list[int]
    texts: list[str]


@dataclass(frozen=True)
class Effect:
    """What a method does with one rollout, by token [T]; zeros where it has no gradient.

    Attributes:
        route: what became of it.
        loss_T: token losses / N; all of a mini-batch's add up to L.
        size_T: length of the gradient with respect to the logits.
        push_T: rate at which log s(y_t) grows along the negative gradient: above 0 the token
            becomes likelier, below 0 less likely.
    """

    route: str
    loss_T: Floats
    size_T: Floats
    push_T: Floats


@dataclass(frozen=True)
class MethodGradient:
    """The gradient of one method's L.

    Attributes:
        label: the method; with its run's name where several have it.
        run: its run's folder.
        tokens: N.
        norm: Euclidean, of all that is trained, in float64.
        recorded_norm: the one that the run's update recorded; None: it hasn't made any.
        effects: what it does with each rollout, in the order of the samples.
    """

    label: str
    run: str
    tokens: int
    norm: float
    recorded_norm: float | None
    effects: list[Effect]

    @property
    def loss(self) -> float:
        """Return L."""
        return math.fsum(float(value) for e in self.effects for value in e.loss_T)

    def shares(self, of: Callable[[Effect], Floats]) -> list[float]:
        """Return each rollout's part of the sum of absolute values; zeros if there is none."""
        sums = [float(np.abs(of(effect)).sum()) for effect in self.effects]
        total = math.fsum(sums)
        return [one / total if total > 0 else 0.0 for one in sums]


@dataclass(frozen=True)
class SideBySide:
    """Methods over the rollouts of the first optimizer update of a step.

    Attributes:
        policy_version: of the policy that starts the step, at which all gradients are taken.
        cosines: between the gradients of methods i and j; None where one of them is 0.
    """

    step: int
    policy_version: str
    samples: list[Sample]
    methods: list[MethodGradient]
    cosines: list[list[float | None]]
    warnings: list[str]

    def chosen(self) -> list[int]:
        """Return which samples to show: a failed and a correct one, if there are any.

        Both are of one question if that can be; the more of the methods' gradients they are in,
        the better, and the earlier of equals.
        """
        learning = [
            sum(bool(method.effects[i].size_T.any()) for method in self.methods)
            for i in range(len(self.samples))
        ]
        failed, correct = (
            [i for i, sample in enumerate(self.samples) if sample.outcome == outcome]
            for outcome in (FAILED, CORRECT)
        )
        pairs = [
            [i, j]
            for i in failed
            for j in correct
            if self.samples[i].group == self.samples[j].group
        ]
        if pairs:
            return max(pairs, key=lambda pair: sum(learning[i] for i in pair))
        return [max(of, key=lambda i: learning[i]) for of in (failed, correct) if of]


@dataclass(frozen=True)
class OutcomePart:
    """What a method does with the rollouts of one outcome.

    Attributes:
        loss_share, size_share: their part of the sum of |loss| and of sizes over all tokens.
        raising, lowering: the parts of `size_share` on tokens that become likelier, less likely.
    """

    outcome: str
    rollouts: int
    loss_share: float
    size_share: float
    raising: float
    lowering: float


def parts_of(found: SideBySide, method: MethodGradient) -> list[OutcomePart]:
    """Return what a method does with failed and correct rollouts, and with those not judged."""
    losses, sizes = method.shares(lambda e: e.loss_T), method.shares(lambda e: e.size_T)
    total = math.fsum(float(effect.size_T.sum()) for effect in method.effects)
    parts = []
    for outcome in OUTCOMES:
        members = [i for i, sample in enumerate(found.samples) if sample.outcome == outcome]
        effects = [method.effects[i] for i in members]
        raising, lowering = (
            math.fsum(float(e.size_T[sign * e.push_T > 0].sum()) for e in effects) / (total or 1.0)
            for sign in (1, -1)
        )
        loss_share, size_share = (math.fsum(of[i] for i in members) for of in (losses, sizes))
        if members:
            found_here = (len(members), loss_share, size_share, raising, lowering)
            parts.append(OutcomePart(outcome, *found_here))
    return parts


def cosine(dot: float, norm: float, other: float) -> float | None:
    """Return dot / (norm other) in [-1, 1]; None if a norm is 0."""
    product = norm * other
    return max(-1.0, min(1.0, dot / product)) if product > 0 else None


def side_by_side_record(found: SideBySide) -> dict[str, Any]:
    """Return all of it for JSON: samples, and the methods' numbers in their order."""
    return {
        "step": found.step,
        "policy_version": found.policy_version,
        "warnings": found.warnings,
        "cosines": found.cosines,
        "samples": [vars(sample) for sample in found.samples],
        "methods": [_method_record(found, method) for method in found.methods],
    }


def _method_record(found: SideBySide, method: MethodGradient) -> dict[str, Any]:
    shares = (method.shares(lambda e: e.loss_T), method.shares(lambda e: e.size_T))
    return {
        "method": method.label,
        "run": method.run,
        "tokens": method.tokens,
        "loss": method.loss,
        "norm": method.norm,
        "recorded_norm": method.recorded_norm,
        "outcomes": [vars(part) for part in parts_of(found, method)],
        "rollouts": [
            {
                "rollout_id": sample.rollout_id,
                "route": effect.route,
                "loss": float(effect.loss_T.sum()),
                "loss_share": loss_share,
                "size_share": size_share,
                "push": float(effect.push_T.sum()),
                "token_loss": effect.loss_T.tolist(),
                "token_size": effect.size_T.tolist(),
                "token_push": effect.push_T.tolist(),
            }
            for sample, effect, loss_share, size_share in zip(
                found.samples, method.effects, *shares, strict=True
            )
        ],
    }


def labels(methods: Sequence[str], names: Sequence[str]) -> list[str]:
    """Name methods, given each one's run: by the method, with the run where two are equal."""
    return [
        method if methods.count(method) == 1 else f"{method} ({name})"
        for method, name in zip(methods, names, strict=True)
    ]
