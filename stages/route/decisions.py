"""Who learns how: advantages, demonstrations and m_i, routes (docs/method.md, sections 2, 3, 9)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.config.sections import Demonstration
from pipeline.methods import METHODS, Method, Route
from pipeline.seeds import permutation

_STD_FLOOR = 1e-6


class GroupStatistics(NamedTuple):
    """Rewards of one group of G rollouts, reduced."""

    mean: float
    std: float
    advantages_G: list[float]


def group_statistics(
    rewards_G: Sequence[float], scaled: bool, judged_G: Sequence[bool] | None = None
) -> GroupStatistics:
    """Return mean, deviation (n - 1; 0 for one rollout) and advantages of a group.

    A_i = r_i - mean(r), divided by (std(r) + 1e-6) if `scaled`. Equal rewards give exactly 0.

    Args:
        judged_G: which rollouts could be judged; None: all. The others leave mean and deviation and
            have advantage 0; with no judged rollout, the mean is 0.
    """
    judged = np.ones(len(rewards_G), dtype=bool) if judged_G is None else np.asarray(judged_G)
    rewards = np.asarray(rewards_G, dtype=np.float64)[judged]
    if not rewards.size or rewards.max() == rewards.min():
        mean = float(rewards[0]) if rewards.size else 0.0
        return GroupStatistics(mean, 0.0, [0.0] * len(rewards_G))
    mean, std = float(rewards.mean()), float(rewards.std(ddof=1))
    scale = std + _STD_FLOOR if scaled else 1.0
    advantages = np.zeros(len(rewards_G))
    advantages[judged] = (rewards - mean) / scale
    return GroupStatistics(mean, std, advantages.tolist())


def demonstrating_sibling(
    demonstration: Demonstration, able_G: Sequence[bool], tokens_G: Sequence[int], index: int
) -> int | None:
    """Return the rollout of the group, other than `index`, that demonstrates to it.

    Args:
        demonstration: the first one in group order, or the longest (section 11: short correct
            siblings teach shortness), the first of equals.
        able_G: which rollouts can demonstrate: correct ones that don't end inside a think block.
        tokens_G: lengths of the responses.
    """
    candidates = [j for j, able in enumerate(able_G) if able and j != index]
    if demonstration == "longest":
        return max(candidates, key=lambda j: (tokens_G[j], -j), default=None)
    return next(iter(candidates), None)


def teacher_available(method: Method, shown: bool, prompt_fits: bool) -> bool:
    """Return m_i: whether a teacher has something to be shown about a rollout (section 2).

    Args:
        shown: there is a solution or feedback for it.
        prompt_fits: the teacher prompt with it could be made within the limit. `grpo` makes none,
            and only records that there would be something.
    """
    return shown and (prompt_fits or not METHODS[method].has_teacher)


def route_of(method: Method, correct: bool, available: bool, judged: bool = True) -> Route:
    """Return a rollout's route: that of its method; none where nobody could judge it (section 1).

    srpo: z^SDPO = (1 - c) m, all others GRPO (Table 7).
    """
    return METHODS[method].route(correct, available) if judged else "none"


def reason_of(
    route: Route, correct: bool, available: bool, notes: Sequence[str], judged: bool = True
) -> str:
    """Say in words why a rollout has its route, and what happened on the way."""
    if not judged:
        return "; ".join(["not judged: left out", *notes])
    state = "correct" if correct else "wrong"
    sibling = "teacher available" if available else "no teacher"
    effect = {
        "grpo": "learns from its advantage",
        "sdpo": "learns from the teacher",
        "mix": "learns from advantage and teacher" if available else "learns from its advantage",
        "none": "left out",
    }[route]
    return "; ".join([f"{state}, {sibling}: {effect}", *notes])


def group_note(correct_G: Sequence[bool], index: int) -> str | None:
    """Name the groups whose composition decides: all right, all wrong, one correct.

    Args:
        correct_G: of the rollouts that could be judged; `index` is a place among them.
    """
    right = sum(correct_G)
    if right == len(correct_G):
        return "all-right group"
    if right == 0:
        return "all-wrong group"
    if right == 1 and correct_G[index]:
        return "sole correct rollout, cannot teach itself"
    return None


def mini_batches(groups: int, size: int | None, run_seed: int, step: int) -> list[int]:
    """Return the mini-batch of each group: whole groups, in a seeded order, `size` at a time."""
    if size is None or size >= groups:
        return [0] * groups
    batches = [0] * groups
    for place, group in enumerate(permutation(run_seed, "mini_batch", groups, step)):
        batches[group] = place // size
    return batches
