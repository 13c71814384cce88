"""Generate: questions to rollouts, with token ids and the engine's log-probabilities as drawn."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.config import Config
from pipeline.engine import sampling_settings
from pipeline.sampled import sample_columns
from pipeline.schemas import ROLLOUTS
from pipeline.stage import Handles, Output, Stage


def run(tables: Mapping[str, pa.Table], config: Config, handles: Handles) -> Output:
    """Sample `generate.rollouts` responses to each question of the step."""
    settings = config.generate
    columns = sample_columns("", settings.rollouts, sampling_settings(settings), handles)
    tokens = sum(map(len, columns["response_ids"]))
    facts = {**_facts(columns), **(handles.engine.facts if handles.engine else {})}
    return Output({"rollouts": pa.table(columns, schema=ROLLOUTS)}, facts, tokens)


def _facts(columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    cut = columns["finish_reason"].count("length")
    return {"truncated": cut, "rollouts": len(columns["rollout_id"])}


STAGE = Stage(
    name="generate",
    version=2,
    sections=("generate",),
    reads=(),
    writes=("rollouts",),
    uses=frozenset({"seed", "questions", "policy", "engine"}),
    run=run,
)
