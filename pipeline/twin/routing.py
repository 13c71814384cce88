"""Sections 1 to 3 and 9 of docs/method.md, a second time: rewards, siblings, routes, prompts.

Plain Python: nothing here knows a tensor, a table or the code that it checks.
"""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

METHODS = (
    *("srpo", "grpo", "sdpo", "sdpo_incorrect_only", "sdpo_correct_only", "advantage_mix"),
    "rlsd",
)


class GroupAdvantages(NamedTuple):
    """Section 3: the numbers that a group of rewards gives."""

    mean: float
    std: float
    values: list[float]


def group_advantages(
    rewards: Sequence[float], scale: str, judged: Sequence[bool] | None = None
) -> GroupAdvantages:
    """Section 3: A_i = r_i - mean, divided by (std + 1e-6) under `group_std`; std with n - 1.

    Section 1: rollouts that could not be judged are in no mean and have advantage 0. A group of one
    has no deviation: it gets 0, and its advantage is 0 either way. One of none has mean 0.
    """
    judged = [True] * len(rewards) if judged is None else judged
    known = [reward for reward, counts in zip(rewards, judged, strict=True) if counts]
    equal = len(set(known)) == 1  # their mean is what they are, rounding or not
    mean = known[0] if equal else statistics.fmean(known) if known else 0.0
    std = statistics.stdev(known) if len(known) > 1 else 0.0
    unit = std + 1e-6 if scale == "group_std" else 1.0
    pairs = zip(rewards, judged, strict=True)
    return GroupAdvantages(mean, std, [(r - mean) / unit if counts else 0.0 for r, counts in pairs])


def sibling_of(
    demonstration: str, able: Sequence[bool], lengths: Sequence[int], index: int
) -> int | None:
    """Section 2: the correct rollout of the group, not rollout `index`, that demonstrates to it.

    Args:
        demonstration: which one, of several.
        able: who is correct, and does not end inside a think block.
        lengths: of the responses, in tokens.
        index: of the rollout that is taught.
    """
    best: int | None = None
    for j, good in enumerate(able):
        longer = best is None or (demonstration == "longest" and lengths[j] > lengths[best])
        if good and j != index and longer:
            best = j
    return best


def route_of(method: str, correct: bool, available: bool, judged: bool = True) -> str:
    """Sections 3 and 9: the branch of a rollout with c_i = `correct` and m_i = `available`.

    Section 1: none where nobody could judge it.
    """
    if not judged:
        return "none"
    if method in ("grpo", "rlsd"):
        return "grpo"
    if method == "advantage_mix":
        return "mix"
    if method == "srpo":
        return "sdpo" if available and not correct else "grpo"
    wanted = {"sdpo": True, "sdpo_incorrect_only": not correct, "sdpo_correct_only": correct}
    return "sdpo" if available and wanted[method] else "none"


def credit_at(step: int, start: float, steps: int) -> float:
    """Section 13: lambda_s = start max(0, 1 - s / steps)."""
    return start * max(0.0, 1.0 - step / steps)


def ends_thinking(text: str, opened: bool) -> bool:
    """Section 2: whether a response ends inside a think block, which its prompt may have `opened`.

    The last tag decides; without any, the prompt does.
    """
    tags: list[str] = re.findall(r"</?think>", text)
    return tags[-1] == "<think>" if tags else opened


def without_thinking(text: str, keep_space: bool = False) -> str:
    """Section 2: drop each `<think>...</think>`, and all that comes before a lone `</think>`.

    White space after them goes, too; once it did not (`keep_space`).
    """
    if keep_space:
        return re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL).rpartition("</think>")[2]
    pieces = re.sub(r"<think>.*?</think>\s*", "", text, flags=re.DOTALL).split("</think>")
    return pieces[0] if len(pieces) == 1 else pieces[-1].lstrip()


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


def banked(
    bank: Iterable[Mapping[str, Any]], question: tuple[str, str], step: int, max_age: int | None
) -> Mapping[str, Any] | None:
    """Section 12: the newest step's rollout of a question, there the first; none that is too old.

    Args:
        bank: rows of the step's bank, in order.
        question: task and prompt_id.
        step: the step that is taught.
    """
    fresh = [
        row
        for row in bank
        if (row["task"], row["prompt_id"]) == question
        and (max_age is None or step - row["step"] <= max_age)
    ]
    newest = max((row["step"] for row in fresh), default=None)
    return next((row for row in fresh if row["step"] == newest), None)


SOLUTION = "{question}\nCorrect solution:\n\n{solution}\n\nCorrectly solve the original question."
FEEDBACK = (
    "{question}\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback}"
    "\n\nCorrectly solve the original question."
)
BOTH = (
    "{question}\nCorrect solution:\n\n{solution}\nThe following is feedback from your unsuccessful "
    "earlier attempt:\n\n{feedback}\n\nCorrectly solve the original question."
)


def teacher_question(
    question: str,
    solution: str | None,
    feedback: str | None = None,
    keep_blank: bool = False,
    templates: Mapping[str, str] | None = None,
) -> str:
    """Sections 2 and 12: the user message that the teacher reads, with a solution or feedback.

    Blank feedback adds nothing; once it did (`keep_blank`). Parts are put together between the
    placeholders of a template, so that no part is searched for placeholders.
    """
    own = {"solution": SOLUTION, "feedback": FEEDBACK, "both": BOTH, **(templates or {})}
    blank = feedback is None or not (keep_blank or feedback.strip())
    kind = "feedback" if solution is None else "solution" if blank else "both"
    parts = {"{question}": question, "{solution}": solution, "{feedback}": feedback}
    pieces = re.split(r"(\{question\}|\{solution\}|\{feedback\})", own[kind])
    return "".join(parts.get(piece, piece) or "" for piece in pieces)
