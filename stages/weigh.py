"""Weigh: w = exp(-beta H) over its mean in the mini-batch (docs/method.md, section 6)."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config.sections import Config
from pipeline.stage.contract import Handles, Output, Stage
from pipeline.tables.schemas import schema_with

Floats = npt.NDArray[np.float64]


def log_raw_weights_N(entropy_N: Floats, beta: float) -> Floats:
    """Return the log of the raw weight exp(-beta H) of each token's teacher entropy (nats)."""
    return -beta * entropy_N


def normalised_weights_N(log_raw_N: Floats, mini_batch_N: npt.NDArray[np.int64]) -> Floats:
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
    columns = {
        "rollout_id": teacher.column("rollout_id"),
        "position": teacher.column("position"),
        "entropy": teacher.column("entropy"),
        "raw_weight": np.exp(log_raw_N).astype(np.float32),
        "weight": normalised_weights_N(log_raw_N, mini_batch_N).astype(np.float32),
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
