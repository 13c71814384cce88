"""What k answers to a question are good for, estimated without bias from all that there are."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def pass_at_k(answers: int, correct: int, k: int) -> float:
    """Return the share of a question's sets of k answers that hold a correct one.

    1 - C(n - c, k) / C(n, k) for c correct ones of n answers, in whole numbers up to the one
    division (arXiv:2107.03374, equation 1). Its mean over samples of n answers is pass@k itself;
    the mean of 1 - (1 - c / n)^k is lower for k > 1.

    Raises:
        ValueError: not 0 <= correct <= answers, or not 1 <= k <= answers.
    """
    if not (0 <= correct <= answers and 1 <= k <= answers):
        raise ValueError(
            f"pass@{k} of {answers} answers, {correct} of them correct: expected 1 to {answers} "
            f"for k, and 0 to {answers} correct ones"
        )
    sets = math.comb(answers, k)
    return (sets - math.comb(answers - correct, k)) / sets


def distinct_at_k(predictions: Sequence[str], k: int) -> float:
    """Return the mean number of different predictions in a question's sets of k answers.

    A set holds a prediction with the chance that pass@k would have if that one were correct.

    Args:
        predictions: one for each answer, compared as texts; "" is none.

    Raises:
        ValueError: not 1 <= k <= the number of answers.
    """
    counts = Counter(predictions)
    return math.fsum(
        pass_at_k(len(predictions), times, k) for text, times in counts.items() if text
    )


def ks_up_to(answers: int) -> list[int]:
    """Return the powers of two up to a number of answers, and that number itself."""
    powers = [1 << bit for bit in range(answers.bit_length())]
    return powers if powers[-1] == answers else [*powers, answers]


def ks_of(record: Mapping[str, Any]) -> list[int]:
    """Return each k of which an evaluation's record has pass@k, ascending."""
    return [int(k) for key in record if (k := key.removeprefix("pass_at_")).isdecimal()]
