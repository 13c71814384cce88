"""Code, as in the task `code`, with the share of tests that pass as the reward.

A reward in between tells apart answers that a group's all-or-nothing rewards can't: GRPO's
advantage learns from that. It also pays for special cases. Tests behind one that ends the program
count as failed. Correct still means a reward of `verify.success_threshold`.
"""

from data.code import load
from data.code_tests import judging
from pipeline.task import Verdict

__all__ = ["VERIFIER", "hint", "load", "verify"]
"""The parts of a task."""

VERIFIER = "code_share/1"


def verify(response: str, reference: str) -> Verdict:
    """Judge the code of a response; the reward is the share of its assertions that hold.

    Args:
        response: what the policy wrote; any text at all.
        reference: the tests as JSON text, as `load` writes them.
    """
    return judging.judge(response, reference, share=True)


def hint(response: str, reference: str) -> str | None:
    """Return the feedback on a response without what its tests expect; it is not run again."""
    return judging.hint(response, reference, share=True)
