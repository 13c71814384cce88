"""Evaluate: k answers to every test question, judged; one table per evaluation."""

from collections.abc import Mapping

import pyarrow as pa

from pipeline.config.sections import Config
from pipeline.sampling.engine import sampling_settings
from pipeline.stage.answer_columns import asked_facts, sample_columns, verdict_columns
from pipeline.stage.contract import Handles, Output, Stage
from pipeline.tables.schemas import UNCLOSED_THINKING, schema_with


def run(tables: Mapping[str, pa.Table], config: Config, handles: Handles) -> Output:
    """Sample and judge `evaluate.rollouts` answers per question."""
    settings = config.evaluate
    columns = sample_columns("e", settings.rollouts, sampling_settings(settings), handles)
    del columns["sampled_logprobs"]
    columns |= verdict_columns(
        columns["task"],
        columns["response_text"],
        columns["reference"],
        columns.get(UNCLOSED_THINKING),
        config.verify,
        handles,
    )
    columns["response_tokens"] = [len(ids) for ids in columns["response_ids"]]
    tokens = sum(columns["response_tokens"])
    table = pa.table(columns, schema=schema_with("evaluations", columns))
    return Output({"evaluations": table}, asked_facts(handles.questions), tokens)


STAGE = Stage(
    name="evaluate",
    version=3,
    sections=("evaluate", "verify"),
    reads=(),
    writes=("evaluations",),
    uses=frozenset({"seed", "questions", "policy", "engine", "verifier"}),
    run=run,
)
