"""Weigh: w = exp(-beta H) over its mean in the mini-batch (docs/method.md, section 6).

Prefix survival, S, comes on top where it is asked for (section 15).
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config.sections import Config, Survival
from pipeline.stage.contract import Handles, Output, Stage
from pipeline.survival import log_survival_of
from pipeline.tables.schemas import REWARD_WEIGHT, SURVIVAL, schema_with

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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


def run(tables: Mapping[str, pa.Table], config: Config, handles: Handles) -> Output:
    """Weigh every token that the teacher scored."""
    if config.weigh.beta is None:
        raise ValueError("weigh.beta is resolved when a configuration is loaded")
    teacher, routes = tables["teacher"], tables["routes"]
    mini_batches = dict(
        zip(
            routes.column("rollout_id").to_pylist(),
            routes.column("mini_batch").to_pylist(),
            strict=True,
        )
    )
    rollout_ids = teacher.column("rollout_id").to_pylist()
    entropy_N = teacher.column("entropy").to_numpy().astype(np.float64)
    log_raw_N = log_raw_weights_N(entropy_N, config.weigh.beta)
    mini_batch_N = np.array([mini_batches[i] for i in rollout_ids], dtype=np.int64)
    if (kind := config.weigh.survival) == "off":
        weights = entropy_columns(log_raw_N, mini_batch_N)
    else:
        weights = survival_columns(kind, log_raw_N, log_survival_of(teacher), mini_batch_N)
    columns = {
        **{name: teacher.column(name) for name in ("rollout_id", "position", "entropy")},
        **{name: values.astype(np.float32) for name, values in weights.items()},
    }
    table = pa.table(columns, schema=schema_with("weights", columns))
    return Output({"weights": table}, tokens=teacher.num_rows)


STAGE = Stage(
    name="weigh",
    version=1,
    sections=("weigh",),
    reads=("routes", "teacher"),
    writes=("weights",),
    uses=frozenset(),
    run=run,
)
