"""The bank of a step, made again from the earlier steps that a run has (docs/method.md, 12)."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from pipeline.check.run_files import Key, TableFile
from pipeline.errors import StoreError
from pipeline.tables.invariants import Broken, require
from pipeline.tables.mapped import MappedTable
from pipeline.tables.schemas import UNCLOSED_THINKING, Row
from pipeline.twin.routing import ends_thinking

Asked = tuple[str, str]
_COLUMNS = ("rollout_id", "task", "prompt_id", "step", "response_text")


class EarlierAnswers:
    """Which answers of each step can demonstrate, read once per step; texts are not kept.

    Args:
        tables: all tables of the run.
    """

    def __init__(self, tables: Mapping[Key, TableFile]) -> None:
        self._tables = tables
        self._able: dict[int, dict[Asked, list[int]] | str] = {}

    def lacking(self, step: int) -> str:
        """Name the first table of an earlier step that can't be read; empty: none."""
        answers = (self._of_step(earlier) for earlier in range(step))
        return next((found for found in answers if isinstance(found, str)), "")

    def newest(self, step: int, asked: Sequence[Asked]) -> list[Row]:
        """Return the rows that the bank of a step must have, in order."""
        rows: list[Row] = []
        left = dict.fromkeys(asked)
        for earlier in range(step - 1, -1, -1):
            able = self._of_step(earlier)
            assert not isinstance(able, str), able
            wanted = [question for question in left if question in able]
            places = sorted(row for question in wanted for row in able[question])
            rows += self._rows(earlier, places)
            left = {question: None for question in left if question not in able}
        return rows

    def _of_step(self, step: int) -> dict[Asked, list[int]] | str:
        if step not in self._able:
            self._able[step] = self._demonstrating(step)
        return self._able[step]

    def _demonstrating(self, step: int) -> dict[Asked, list[int]] | str:
        """Return the rows of each question that can demonstrate, or what is missing."""
        found: dict[Asked, list[int]] = {}
        for name in ("rollouts", "verdicts"):
            if (step, name) not in self._tables:
                return f"{name} of step {step} missing"
        try:
            rollouts, verdicts = (self._open(step, name) for name in ("rollouts", "verdicts"))
            says = UNCLOSED_THINKING in rollouts.column_names
            names = (*("task", "prompt_id", "response_text"), *([UNCLOSED_THINKING] * says))
            answers = rollouts.select(names).to_pylist()
            judged = verdicts.select(["correct", "error"]).to_pylist()
            for row, (answer, verdict) in enumerate(zip(answers, judged, strict=True)):
                text = answer["response_text"]
                open_ = answer[UNCLOSED_THINKING] if says else ends_thinking(text, False)
                if verdict["correct"] and verdict["error"] is None and not open_:
                    found.setdefault((answer["task"], answer["prompt_id"]), []).append(row)
        except (StoreError, ValueError, KeyError, pa.ArrowException):
            return f"tables of step {step} broken"
        return found

    def _rows(self, step: int, places: Sequence[int]) -> list[Row]:
        if not places:
            return []
        data = self._open(step, "rollouts").select([*_COLUMNS, "response_ids"])
        rows: list[Row] = data.take(pa.array(places)).to_pylist()
        return [
            {**{name: row[name] for name in _COLUMNS}, "response_tokens": len(row["response_ids"])}
            for row in rows
        ]

    def _open(self, step: int, name: str) -> pa.Table:
        entry = self._tables[step, name]
        return MappedTable(entry.owner.fetched(entry.path)).table


def bank_rules(
    step: int, rollouts: pa.Table, bank: pa.Table, known: EarlierAnswers
) -> Iterator[Broken]:
    """Yield what a bank has too much, too little or otherwise than the earlier steps."""
    columns = (rollouts.column(name).to_pylist() for name in ("task", "prompt_id"))
    expected = known.newest(step, list(zip(*columns, strict=True)))
    return _differences(bank.to_pylist(), expected)


def _differences(found: Sequence[Row], expected: Sequence[Row]) -> Iterator[Broken]:
    ids = [row["rollout_id"] for row in found]
    wanted = {row["rollout_id"]: row for row in expected}
    text = "it has the correct answers of the newest step before that has any to the same question"
    there = set(ids)
    yield from require("bank", text, list(wanted), [name in there for name in wanted])
    text = "it has no others"
    yield from require("bank", text, ids, [name in wanted for name in ids])
    both = [row for row in found if row["rollout_id"] in wanted]
    for column in (name for name in (*_COLUMNS, "response_tokens") if name != "rollout_id"):
        same = [row[column] == wanted[row["rollout_id"]][column] for row in both]
        names = [row["rollout_id"] for row in both]
        yield from require("bank", f"{column} is that of the rollout", names, same)
    if there == wanted.keys() and ids != list(wanted):
        text = "its newest step stands first, each in the order of its table"
        yield Broken("bank", text, None, len(ids))
