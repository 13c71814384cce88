"""Bank: earlier correct answers to the questions of a step (docs/method.md, section 12).

Of each question those of the newest step count that has any: no older one is ever chosen, so that
a bank is never larger than a step, however often its questions were asked.
"""

from collections.abc import Mapping

import pyarrow as pa

from pipeline.config.sections import Config
from pipeline.stage.contract import Handles, Output, Stage
from pipeline.tables.schemas import BANK


def run(tables: Mapping[str, pa.Table], config: Config, handles: Handles) -> Output:
    """Look for the step's questions in earlier steps, the newest first."""
    columns = (tables["rollouts"].column(name).to_pylist() for name in ("task", "prompt_id"))
    wanted = set(zip(*columns, strict=True))
    found = [BANK.empty_table()]
    for earlier in reversed(handles.earlier):
        known = wanted & earlier.demonstrating.keys()
        if known:
            rows = sorted(row for asked in known for row in earlier.demonstrating[asked])
            found.append(earlier.answers(rows))
            wanted -= known
        if not wanted:
            break
    return Output({"bank": pa.concat_tables(found)})


STAGE = Stage(
    name="bank",
    version=1,
    sections=(),
    reads=("rollouts",),
    writes=("bank",),
    uses=frozenset({"earlier"}),
    run=run,
)
