"""Sections 1 to 3 and 9 of docs/method.md, a second time: rewards, siblings, routes, prompts.

Plain Python: nothing here knows a tensor, a table or the code that it checks.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

METHODS = ("srpo", "grpo", "sdpo", "sdpo_incorrect_only", "sdpo_correct_only", "advantage_mix")


class GroupAdvantages(NamedTuple):
    """Section 3: the numbers that a group of rewards gives."""

    mean: float
    std: float
    values: list[float]


def group_advantages(rewards: Sequence[float], scale: str) -> GroupAdvantages:
    """Section 3: A_i = r_i - mean, divided by (std + 1e-6) under `group_std`; std with n - 1.

    A group of one has no deviation: it gets 0, and its advantage is 0 either way.
    """
    mean = statistics.fmean(rewards)
    std = statistics.stdev(rewards) if len(rewards) > 1 else 0.0
    unit = std + 1e-6 if scale == "group_std" else 1.0
    return GroupAdvantages(mean, std, [(reward - mean) / unit for reward in rewards])


def sibling_of(
    demonstration: str, correct: Sequence[bool], lengths: Sequence[int], index: int
) -> int | None:
    """Section 2: the correct rollout of the group, not rollout `index`, that demonstrates to it."""
    best: int | None = None
    for j, good in enumerate(correct):
        longer = best is None or (demonstration == "longest" and lengths[j] > lengths[best])
        if good and j != index and longer:
            best = j
    return best


def route_of(method: str, correct: bool, available: bool) -> str:
    """Sections 3 and 9: the branch of a rollout with c_i = `correct` and m_i = `available`."""
    if method == "grpo":
        return "grpo"
    if method == "advantage_mix":
        return "mix"
    if method == "srpo":
        return "sdpo" if available and not correct else "grpo"
    wanted = {"sdpo": True, "sdpo_incorrect_only": not correct, "sdpo_correct_only": correct}
    return "sdpo" if available and wanted[method] else "none"


def without_thinking(text: str) -> str:
    """Section 2: drop each `<think>...</think>`, and all that comes before a lone `</think>`."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    return text.rpartition("</think>")[2]


def folded(turns: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Each system turn's text goes before the next user's, with an empty line between."""
    out: list[dict[str, str]] = []
    before = ""
    for turn in turns:
        if turn["role"] == "system":
            before += turn["content"] + "\n\n" if turn["content"].strip() else ""
        else:
            added = before if turn["role"] == "user" else ""
            out.append({"role": turn["role"], "content": added + turn["content"]})
            before = "" if turn["role"] == "user" else before
    return out


def teacher_question(question: str, demonstration: str, feedback: str | None = None) -> str:
    """Section 2: the user message that the teacher reads."""
    attempt = "\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
    added = "" if feedback is None else f"{attempt}{feedback}"
    return (
        f"{question}\nCorrect solution:\n\n{demonstration}{added}"
        "\n\nCorrectly solve the original question."
    )
