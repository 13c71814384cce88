"""The gate on the mismatch between engine and trainer: no optimizer step from wrong samples."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.errors import NumericalError
from stages.update.batch import FlatBatch

_SHOWN = 5
_TEXT = 20


def expect_near(
    batch: FlatBatch, gap_N: Tensor, limit: float, decode: Callable[[Sequence[int]], str]
) -> None:
    """Refuse tokens whose log-probabilities by engine and trainer differ by more than `limit`.

    The first pass with such a token ends the step, so its count is that of the step so far.

    Args:
        gap_N: log pi_old - log pi_engine, nats; NaN where the trainer has no value of its own.
        decode: text of token ids, special ones too.

    Raises:
        NumericalError: some do; the worst are named.
    """
    apart_N = gap_N.abs()
    beyond = int((apart_N > limit).sum())
    if not beyond:
        return
    worst = torch.topk(apart_N.nan_to_num(nan=-1.0), min(beyond, _SHOWN)).indices.tolist()
    tokens = "; ".join(_named(batch, index, float(gap_N[index]), decode) for index in worst)
    raise NumericalError(
        f"engine and trainer differ by more than generate.max_logprob_gap = {limit:g} nats in "
        f"{beyond} of the step's tokens computed so far, the worst: {tokens}; the update is "
        "discarded, the rollouts are saved: check the engine's weights, precision and sampling "
        "settings, and look at the rollouts with srpo audit"
    )


def _named(batch: FlatBatch, index: int, gap: float, decode: Callable[[Sequence[int]], str]) -> str:
    """Say which token it is, and both log-probabilities."""
    pairs = zip(batch.rollouts, batch.slices(), strict=True)
    rollout, part = next((r, p) for r, p in pairs if p.start <= index < p.stop)
    token, engine = int(batch.targets_N[index]), float(batch.sampled_logprob_N[index])
    text = decode([token])[:_TEXT]
    return (
        f"{rollout.rollout_id} position {index - part.start}, token {token} {text!r}, "
        f"engine {engine:.4f}, trainer {engine + gap:.4f}"
    )
