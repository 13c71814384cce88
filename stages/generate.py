"""Generate: questions to rollouts, with token ids and the engine's log-probabilities as drawn."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.config.sections import Config
from pipeline.sampling.engine import sampling_settings
from pipeline.stage.answer_columns import asked_facts, sample_columns
from pipeline.stage.contract import Handles, Output, Stage
from pipeline.tables.schemas import schema_with


def run(tables: Mapping[str, pa.Table], config: Config, handles: Handles) -> Output:
    """Sample `generate.rollouts` responses to each question of the step."""
    settings = config.generate
    columns = sample_columns("", settings.rollouts, sampling_settings(settings), handles)
    tokens = sum(map(len, columns["response_ids"]))
    facts = {
        **_facts(columns),
        **asked_facts(handles.questions),
        **(handles.engine.facts if handles.engine else {}),
    }
    table = pa.table(columns, schema=schema_with("rollouts", columns))
    return Output({"rollouts": table}, facts, tokens)


def _facts(columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    cut = columns["finish_reason"].count("length")
    return {"truncated": cut, "rollouts": len(columns["rollout_id"])}


STAGE = Stage(
    name="generate",
    version=3,
    sections=("generate",),
    reads=(),
    writes=("rollouts",),
    uses=frozenset({"seed", "questions", "policy", "engine"}),
    run=run,
)
