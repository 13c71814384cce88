"""Weigh: what each token counts that the teacher scored.

A distilled one w = exp(-beta H) over its mean in the mini-batch (docs/method.md, section 6); prefix
survival, S, comes on top where it is asked for (section 15). One of a rollout that learns from its
advantage counts as a factor of that (section 13).
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config.sections import Config, Survival
from pipeline.stage.contract import Handles, Output, Stage
from pipeline.survival import log_survival_of
from pipeline.tables.rollout_index import RolloutSpans
from pipeline.tables.schemas import CREDIT_LAMBDA, REWARD_WEIGHT, SURVIVAL, schema_with

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LARGEST_EXPONENT = float(np.log(np.float64(np.finfo(np.float32).max)))


def log_raw_weights_N(entropy_N: Floats, beta: float) -> Floats:
    """Return the log of the raw weight exp(-beta H) of each token's teacher entropy (nats)."""
    return -beta * entropy_N


def normalised_weights_N(log_raw_N: Floats, mini_batch_N: Ints) -> Floats:
    """Divide raw weights by their mean over all tokens of the same mini-batch.

    Omega holds every response token of every taught rollout of an optimizer step; the mean of the
    result over it is 1. The largest raw weight of a mini-batch is factored out first, so that a
    large beta underflows to weights of 0 and not to 0 / 0. No tokens at all give no weights.
    """
    weights_N = np.empty_like(log_raw_N)
    for mini_batch in np.unique(mini_batch_N):
        members = mini_batch_N == mini_batch
        scaled = np.exp(log_raw_N[members] - log_raw_N[members].max())
        weights_N[members] = scaled / scaled.mean()
    return weights_N


def entropy_columns(log_raw_N: Floats, mini_batch_N: Ints) -> dict[str, Floats]:
    """Return raw weights and weights (section 6)."""
    return {
        "raw_weight": np.exp(log_raw_N),
        "weight": normalised_weights_N(log_raw_N, mini_batch_N),
    }


def survival_columns(
    kind: Survival, log_raw_N: Floats, log_survival_N: Floats, mini_batch_N: Ints
) -> dict[str, Floats]:
    """Return the columns of section 15.

    `weight`: raw weights are exp(-beta H) S. `unnormalised`: raw weights stay, weights are S times
    what they were, so their mean is below 1. `hand_over`: besides, each token's advantage counts as
    far as the teacher does not.
    """
    survival_N = np.exp(log_survival_N)
    if kind == "weight":
        columns = entropy_columns(log_raw_N + log_survival_N, mini_batch_N)
    else:
        columns = entropy_columns(log_raw_N, mini_batch_N)
        columns["weight"] = columns["weight"] * survival_N
    columns[SURVIVAL] = survival_N
    if kind == "hand_over":
        columns[REWARD_WEIGHT] = 1 - survival_N
    return columns


def credit_columns(
    log_ratio_N: Floats, advantage_N: Floats, share_N: Floats, clip: float
) -> dict[str, Floats]:
    """Return the columns of section 13: w = exp(sign(A) Delta), and the token's factor of A.

    It is c = (1 - lambda) + lambda clip(w, 1 - clip, 1 + clip), never negative. A w beyond float32
    is its largest number: c is the same.

    Args:
        log_ratio_N: Delta = log q - log s of the sampled token at the step's start.
        advantage_N: A of its rollout.
        share_N: lambda of the step.
        clip: `weigh.credit_clip`.
    """
    raw_N = np.exp(np.minimum(np.sign(advantage_N) * log_ratio_N, _LARGEST_EXPONENT))
    return {
        "raw_weight": raw_N,
        "weight": (1 - share_N) + share_N * np.clip(raw_N, 1 - clip, 1 + clip),
    }


def run(tables: Mapping[str, pa.Table], config: Config, handles: Handles) -> Output:
    """Weigh every token that the teacher scored."""
    teacher, routes = tables["teacher"], tables["routes"]
    distributes = CREDIT_LAMBDA in routes.column_names
    weights = (_credited if distributes else _distilled)(teacher, routes, config)
    columns = {
        **{name: teacher.column(name) for name in ("rollout_id", "position", "entropy")},
        **{name: values.astype(np.float32) for name, values in weights.items()},
    }
    table = pa.table(columns, schema=schema_with("weights", columns))
    return Output({"weights": table}, tokens=teacher.num_rows)


def _distilled(teacher: pa.Table, routes: pa.Table, config: Config) -> dict[str, Floats]:
    """Weigh tokens that are distilled."""
    if config.weigh.beta is None:
        raise ValueError("weigh.beta is resolved when a configuration is loaded")
    entropy_N = teacher.column("entropy").to_numpy().astype(np.float64)
    log_raw_N = log_raw_weights_N(entropy_N, config.weigh.beta)
    mini_batch_N = RolloutSpans(teacher).column_of(routes, "mini_batch")
    if (kind := config.weigh.survival) == "off":
        return entropy_columns(log_raw_N, mini_batch_N)
    return survival_columns(kind, log_raw_N, log_survival_of(teacher), mini_batch_N)


def _credited(teacher: pa.Table, routes: pa.Table, config: Config) -> dict[str, Floats]:
    """Weigh tokens of rollouts that learn from their advantage."""
    logprobs = (teacher.column(f"{who}_logprob").to_numpy() for who in ("teacher", "student"))
    log_q_N, log_s_N = (column.astype(np.float64) for column in logprobs)
    spans = RolloutSpans(teacher)
    return credit_columns(
        log_q_N - log_s_N,
        spans.column_of(routes, "advantage"),
        spans.column_of(routes, CREDIT_LAMBDA),
        config.weigh.credit_clip,
    )


STAGE = Stage(
    name="weigh",
    version=1,
    sections=("weigh",),
    reads=("routes", "teacher"),
    writes=("weights",),
    uses=frozenset(),
    run=run,
)
