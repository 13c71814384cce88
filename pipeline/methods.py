"""The methods in one place (docs/method.md, sections 3, 9 and 13).

A method is its routing rule, whether a teacher is shown anything, and whether the teacher only
distributes the advantage. What a route's tokens count is in `weigh`, their loss in `update`, which
both read the decision from the tables and know no method:

    route   rows in `weights`   loss of a token
    grpo    none                GRPO with A
    grpo    weight c            GRPO with A c                          rlsd
    sdpo    weight w            w SDPO
    sdpo    and reward_weight   w SDPO + reward_weight GRPO            survival, handed over
    mix     weight 1 or none    lambda GRPO + (1 - lambda) SDPO
    none    none                0, and the rollout leaves N
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Method = Literal[
    "srpo", "grpo", "sdpo", "sdpo_incorrect_only", "sdpo_correct_only", "advantage_mix", "rlsd"
]
Route = Literal["grpo", "sdpo", "mix", "none"]


@dataclass(frozen=True)
class MethodRules:
    """What a method decides of a judged rollout.

    Attributes:
        route: from c_i and m_i.
        has_teacher: whether teacher prompts are made.
        distributes: the teacher says how much of its advantage each token of a GRPO-routed rollout
            gets (section 13).
    """

    route: Callable[[bool, bool], Route]
    has_teacher: bool = True
    distributes: bool = False


METHODS: dict[Method, MethodRules] = {
    "srpo": MethodRules(lambda correct, taught: "sdpo" if taught and not correct else "grpo"),
    "grpo": MethodRules(lambda correct, taught: "grpo", has_teacher=False),
    "sdpo": MethodRules(lambda correct, taught: "sdpo" if taught else "none"),
    "sdpo_incorrect_only": MethodRules(
        lambda correct, taught: "sdpo" if taught and not correct else "none"
    ),
    "sdpo_correct_only": MethodRules(
        lambda correct, taught: "sdpo" if taught and correct else "none"
    ),
    "advantage_mix": MethodRules(lambda correct, taught: "mix"),
    "rlsd": MethodRules(lambda correct, taught: "grpo", distributes=True),
}


def credit_lambda(method: Method, start: float, steps: int, step: int) -> float:
    """Return lambda_s = start max(0, 1 - s / steps) (section 13); 0 for all but rlsd."""
    return start * max(0.0, 1.0 - step / steps) if METHODS[method].distributes else 0.0


def asks_teacher(route: str, advantage: float, credit: float) -> bool:
    """Tell whether the loss of a rollout that has a teacher asks it anything."""
    return route in ("sdpo", "mix") or (route == "grpo" and credit * advantage != 0)
