"""Methods side by side, made up: two groups of rollouts under two methods."""

import numpy as np

from pipeline.compare.side_by_side import (
    CORRECT,
    FAILED,
    NOT_JUDGED,
    Effect,
    MethodGradient,
    Sample,
    SideBySide,
)


def sample(number: int, group: int, outcome: str, texts: list[str], question: str = "q") -> Sample:
    """Return a rollout of step 3."""
    name = f"000003-{group:04d}-{number:02d}"
    return Sample(
        name, group, outcome, float(outcome == CORRECT), question, [7] * len(texts), texts
    )


def effect(route: str, loss: list[float], size: list[float], push: list[float]) -> Effect:
    """Return what a method does with a rollout."""
    return Effect(route, *(np.array(values) for values in (loss, size, push)))


def method(label: str, norm: float, effects: list[Effect]) -> MethodGradient:
    """Return a method that learns from five tokens."""
    return MethodGradient(label, f"runs/{label}", 5, norm, None, effects)


def side_by_side(question: str = "q", text: str = " a") -> SideBySide:
    """Return four rollouts: group 0 all failed, group 1 failed, correct, not judged."""
    samples = [
        sample(0, 0, FAILED, ["x"]),
        sample(0, 1, FAILED, [text, "b"], question),
        sample(1, 1, CORRECT, ["c", "d"]),
        sample(2, 1, NOT_JUDGED, ["e"]),
    ]
    none, nothing = effect("none", [0.0], [0.0], [0.0]), effect("grpo", [0.0], [0.0], [0.0])
    grpo = [
        nothing,
        effect("grpo", [0.1, 0.1], [1.0, 2.0], [-1.0, -4.0]),
        effect("grpo", [-0.2, -0.2], [3.0, 2.0], [9.0, 4.0]),
        none,
    ]
    sdpo = [
        nothing,
        effect("sdpo", [0.0, 0.5], [0.0, 4.0], [0.0, -2.0]),
        effect("grpo", [-0.25, -0.25], [3.0, 1.0], [9.0, 1.0]),
        none,
    ]
    methods = [method("grpo", 2.0, grpo), method("srpo", 1.0, sdpo)]
    return SideBySide(3, "000003-abc", samples, methods, [[1.0, 0.25], [0.25, None]], [])
