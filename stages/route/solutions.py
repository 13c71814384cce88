"""Where a teacher's solution comes from: sibling, bank, task (docs/method.md, section 12)."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from pipeline.config.sections import RouteSection, TeacherSource
from pipeline.errors import StoreError
from pipeline.stage.contract import Handles
from pipeline.tables.schemas import BANK, Row
from stages.route.decisions import demonstrating_sibling
from stages.route.teacher_prompt import without_thinking


class Solution(NamedTuple):
    """A solution that a teacher can be shown.

    Attributes:
        rollout_id, step: of the rollout that it is, if it is one.
    """

    source: TeacherSource
    text: str
    rollout_id: str | None = None
    step: int | None = None


class Group(NamedTuple):
    """The rollouts of a question: which were judged, are correct, are able to demonstrate."""

    members: Sequence[Row]
    judged_G: list[bool]
    correct_G: list[bool]
    able_G: list[bool]


class Sources:
    """The sources of a step, in the order of `route.sources`; the first with a solution gives it.

    Args:
        bank: earlier correct rollouts of the step's questions, if `route.sources` has them.

    Raises:
        StoreError: the bank is a source, and there is none.
    """

    def __init__(self, settings: RouteSection, handles: Handles, bank: pa.Table | None) -> None:
        if "bank" in settings.sources and bank is None:
            raise StoreError(
                f"step {handles.step} has no table bank, which route.sources names: make it with "
                f"srpo stage bank --run RUN --step {handles.step}"
            )
        self._settings, self._handles = settings, handles
        kept = BANK.empty_table() if bank is None else bank
        self._bank = _by_question(kept, settings.bank_max_age, handles.step)
        self._find: Mapping[TeacherSource, Callable[[Group, int], Solution | None]] = {
            "sibling": self._sibling,
            "bank": self._banked,
            "solution": self._worked,
            "gold": self._gold,
        }

    def solution(self, group: Group, index: int) -> Solution | None:
        """Return what a rollout's teacher is shown; None: no source has a solution."""
        found = (self._find[source](group, index) for source in self._settings.sources)
        return next((solution for solution in found if solution is not None), None)

    def _sibling(self, group: Group, index: int) -> Solution | None:
        lengths = [len(row["response_ids"]) for row in group.members]
        order = self._settings.demonstration
        sibling = demonstrating_sibling(order, group.able_G, lengths, index)
        if sibling is None:
            return None
        row = group.members[sibling]
        text = without_thinking(row["response_text"])
        return Solution("sibling", text, row["rollout_id"], self._handles.step)

    def _banked(self, group: Group, index: int) -> Solution | None:
        return self._bank.get(_question(group.members[index]))

    def _worked(self, group: Group, index: int) -> Solution | None:
        text = self._handles.solutions.get(_question(group.members[index]))
        return None if text is None else Solution("solution", text)

    def _gold(self, group: Group, index: int) -> Solution | None:
        row = group.members[index]
        worded = self._handles.golds.get(row["task"])
        return None if worded is None else Solution("gold", worded(row["reference"]))


def _question(row: Row) -> tuple[str, str]:
    return row["task"], row["prompt_id"]


def _by_question(bank: pa.Table, max_age: int | None, step: int) -> dict[tuple[str, str], Solution]:
    """Return the demonstration of each question: the newest step's, there the first in order."""
    chosen: dict[tuple[str, str], Solution] = {}
    for row in bank.to_pylist():
        too_old = max_age is not None and step - row["step"] > max_age
        best = chosen.get(_question(row))
        if not too_old and (best is None or row["step"] > (best.step or 0)):
            text = without_thinking(row["response_text"])
            chosen[_question(row)] = Solution("bank", text, row["rollout_id"], row["step"])
    return chosen
