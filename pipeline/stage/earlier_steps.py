"""The steps before the one at work, for the stage that looks back at them: `bank`."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.run.run import Run
from pipeline.stage.answer_columns import unfinished
from pipeline.stage.contract import Asked
from pipeline.tables.schemas import BANK

_COPIED = ("rollout_id", "task", "prompt_id", "step", "response_text")


class CommittedStep:
    """A step of a run or of its ancestors; its tables are opened when they are asked for.

    Which rows can demonstrate is read once and kept; texts are read whenever they are wanted.
    """

    def __init__(self, run: Run, step: int) -> None:
        self._run, self._step = run, step

    @cached_property
    def sha256(self) -> tuple[str, str]:
        """Return the SHA-256 of the step's rollouts and of its verdicts."""
        rollouts, verdicts = (self._run.manifest(t, self._step) for t in ("rollouts", "verdicts"))
        return rollouts.sha256, verdicts.sha256

    @cached_property
    def demonstrating(self) -> Mapping[Asked, Sequence[int]]:
        """Return the rows, ascending, of each question's answers that can demonstrate.

        They are correct, were judged, and don't end inside a think block (section 2).
        """
        rollouts = self._run.read("rollouts", self._step)
        verdicts = self._run.read("verdicts", self._step)
        columns = [
            *(rollouts.column(name).to_pylist() for name in ("task", "prompt_id")),
            *(verdicts.column(name).to_pylist() for name in ("correct", "error")),
        ]
        found: dict[Asked, list[int]] = {}
        for row, (task, prompt_id, correct, error, open_) in enumerate(
            zip(*columns, unfinished(rollouts), strict=True)
        ):
            if correct and error is None and not open_:
                found.setdefault((task, prompt_id), []).append(row)
        return found

    def answers(self, rows: Sequence[int]) -> pa.Table:
        """Return these rollouts as rows of `bank`."""
        rollouts = self._run.read("rollouts", self._step).select([*_COPIED, "response_ids"])
        taken = rollouts.take(pa.array(rows, pa.int64()))
        columns = {name: taken.column(name) for name in _COPIED}
        tokens = pc.list_value_length(taken.column("response_ids"))
        return pa.table({**columns, "response_tokens": tokens}, schema=BANK)
