"""How much of the gold answers the feedback tells that teachers are shown."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.gold_share import gold_share

_HEAD = 40
"""Characters of a feedback by which it is found in a prompt, whose middle may be cut."""


def feedback_gold_shares(tables: Mapping[str, pa.Table]) -> npt.NDArray[np.float64]:
    """Return the gold share of each rollout's feedback.

    NaN: it has none, or no teacher is shown it.

    Args:
        tables: rollouts, verdicts and routes of a step.
    """
    columns = (
        *(tables["verdicts"][name] for name in ("feedback", "prediction")),
        *(tables["rollouts"][name] for name in ("reference", "response_text")),
        tables["routes"]["teacher_prompt_text"],
    )
    shares = [
        gold_share(feedback, reference, prediction, response)
        if (feedback or "").strip() and feedback.strip()[:_HEAD] in (prompt or "")
        else None
        for feedback, prediction, reference, response, prompt in zip(
            *(column.to_pylist() for column in columns), strict=True
        )
    ]
    return np.asarray(shares, dtype=np.float64)
