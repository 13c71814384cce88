"""What must hold in every table, checked before it is committed and whenever a run is checked.

Each check names the first row that breaks it. Tables are checked with those they were made from.
What depends on settings besides is checked by `pipeline.audit`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError
from pipeline.methods import asks_teacher
from pipeline.tables.rollout_index import RolloutSpans
from pipeline.tables.schemas import CREDIT_LAMBDA, REWARD_WEIGHT, SURVIVAL

Tables = Mapping[str, pa.Table]
Mask = npt.NDArray[np.bool_]
_MEAN_TOLERANCE = 1e-5
_CREDIT_TOLERANCE = 1e-6
_LOG_SLACK = 1e-6
_ROUTES = ("grpo", "sdpo", "mix", "none")


class Broken(NamedTuple):
    """An invariant that does not hold: of which table, in how many rows, where first.

    `rollout` is None where the rows themselves are not those that must be there.
    """

    table: str
    invariant: str
    rollout: str | None
    rows: int

    @property
    def message(self) -> str:
        """Return one line."""
        if self.rollout is None:
            return f"{self.table}: {self.invariant}"
        return f"{self.table}: broken invariant: {self.invariant}; first at {self.rollout}"


class Names(Protocol):
    """Rollout ids by row."""

    def __getitem__(self, row: int, /) -> str: ...


def check_table(name: str, tables: Tables) -> None:
    """Check the invariants of table `name`.

    Raises:
        StoreError: naming the table, the invariant and the first rollout that breaks it.
    """
    for broken in broken_invariants(name, tables):
        raise StoreError(broken.message)


def broken_invariants(name: str, tables: Tables) -> Iterator[Broken]:
    """Yield every invariant of table `name` that does not hold; see `NEEDS` for the others."""
    yield from _CHECKS[name](tables)


def require(table: str, invariant: str, names: Names, holds: npt.ArrayLike) -> Iterator[Broken]:
    """Yield the invariant unless it holds in every row."""
    mask = np.asarray(holds, dtype=bool)
    if not mask.all():
        first = names[int(np.argmin(mask))]
        yield Broken(table, invariant, first, int((~mask).sum()))


def within(values: npt.NDArray[np.floating], low: float, high: float) -> Mask:
    """Return which values are finite and in [low, high]."""
    return np.asarray((values >= low) & (values <= high) & np.isfinite(values))


def in_group(keys: Sequence[object] | npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Return each row's place among the sorted distinct keys."""
    return np.unique(np.asarray(keys), return_inverse=True)[1].astype(np.int64)


def taught_rollouts(rollouts: pa.Table, routes: pa.Table) -> list[tuple[str, int]]:
    """Return (rollout_id, response tokens) of the rollouts that the teacher must have scored."""
    lengths = pc.list_value_length(rollouts.column("response_ids")).to_pylist()
    columns = [
        *(routes.column(name).to_pylist() for name in ("rollout_id", "teacher_available")),
        *(routes.column(name).to_pylist() for name in ("route", "advantage")),
    ]
    rlsd = CREDIT_LAMBDA in routes.column_names
    credit = routes.column(CREDIT_LAMBDA).to_pylist() if rlsd else [0.0] * routes.num_rows
    rows = zip(*columns, credit, lengths, strict=True)
    return [(i, n) for i, m, *asked, n in rows if m and n and asks_teacher(*asked)]


def _rollouts(tables: Tables) -> Iterator[Broken]:
    yield from _samples("rollouts", tables["rollouts"])
    table = tables["rollouts"]
    ids = table.column("rollout_id").to_pylist()
    tokens = pc.list_value_length(table.column("response_ids")).to_numpy()
    logprobs = pc.list_value_length(table.column("sampled_logprobs")).to_numpy()
    yield from require("rollouts", "one log-probability per token", ids, tokens == logprobs)
    values = pc.list_flatten(table.column("sampled_logprobs")).to_numpy()
    owners = np.repeat(np.array(ids, dtype=object), logprobs)
    fine = within(values, -np.inf, _LOG_SLACK)
    yield from require("rollouts", "log-probabilities in (-inf, 0]", owners, fine)


def _evaluations(tables: Tables) -> Iterator[Broken]:
    table = tables["evaluations"]
    yield from _samples("evaluations", table)
    ids = table.column("rollout_id").to_pylist()
    yield from require("evaluations", "rewards in [0, 1]", ids, _in_unit(table.column("reward")))
    tokens = pc.list_value_length(table.column("response_ids")).to_numpy()
    equal = table.column("response_tokens").to_numpy() == tokens
    yield from require("evaluations", "response_tokens is the length of the response", ids, equal)


def _samples(name: str, table: pa.Table) -> Iterator[Broken]:
    ids = table.column("rollout_id").to_pylist()
    yield from require(name, "rollout_id is unique", ids, [len(set(ids)) == len(ids)] * len(ids))
    prompt = pc.list_value_length(table.column("prompt_ids")).to_numpy()
    yield from require(name, "prompts are not empty", ids, prompt > 0)


def _verdicts(tables: Tables) -> Iterator[Broken]:
    table = tables["verdicts"]
    if broken := _other_order("verdicts", tables):
        yield broken
        return
    ids = table.column("rollout_id").to_pylist()
    yield from require("verdicts", "rewards in [0, 1]", ids, _in_unit(table.column("reward")))


def _bank(tables: Tables) -> Iterator[Broken]:
    table, rollouts = tables["bank"], tables["rollouts"]
    ids = table.column("rollout_id").to_pylist()
    yield from require("bank", "rollout_id is unique", ids, [len(set(ids)) == len(ids)] * len(ids))
    asked = set(zip(*(rollouts.column(c).to_pylist() for c in ("task", "prompt_id")), strict=True))
    kept = zip(*(table.column(c).to_pylist() for c in ("task", "prompt_id")), strict=True)
    yield from require("bank", "its questions are the step's", ids, [key in asked for key in kept])
    steps, now = table.column("step").to_numpy(), rollouts.column("step").to_numpy()
    yield from require("bank", "its steps are earlier ones", ids, steps < now[:1].repeat(len(ids)))


def _routes(tables: Tables) -> Iterator[Broken]:
    table = tables["routes"]
    if broken := _other_order("routes", tables):
        yield broken
        return
    ids = table.column("rollout_id").to_pylist()
    named = zip(
        *(table[c].to_pylist() for c in ("teacher_source", "teacher_rollout_id")), strict=True
    )
    teachers = [None if source == "bank" else teacher for source, teacher in named]
    groups, places = table.column("group").to_pylist(), in_group(table.column("group").to_numpy())
    verdicts = zip(groups, table.column("correct").to_pylist(), strict=True)
    about = dict(zip(ids, verdicts, strict=True))
    own = [teacher != own for teacher, own in zip(teachers, ids, strict=True)]
    yield from require("routes", "nobody teaches itself", ids, own)
    right = [teacher is None or about.get(teacher, (0, False))[1] for teacher in teachers]
    yield from require("routes", "teachers are correct rollouts of the step", ids, right)
    siblings = [
        teacher is None or about.get(teacher, (group, False))[0] == group
        for teacher, group in zip(teachers, groups, strict=True)
    ]
    yield from require("routes", "teachers are of the same group", ids, siblings)
    known = [route in _ROUTES for route in table["route"].to_pylist()]
    yield from require("routes", "route is grpo, sdpo, mix or none", ids, known)
    sums = np.bincount(places, weights=table.column("advantage").to_numpy().astype(np.float64))
    balanced = np.abs(sums) <= 1e-5 * np.maximum(np.bincount(places), 1)
    yield from require("routes", "advantages sum to 0 in a group", ids, balanced[places])
    whole = _constant(table.column("mini_batch").to_numpy(), places)
    yield from require("routes", "mini-batches hold whole groups", ids, whole)


def _scores(tables: Tables) -> Iterator[Broken]:
    table, rollouts = tables["scores"], tables["rollouts"]
    if broken := _other_order("scores", tables):
        yield broken
        return
    ids = table.column("rollout_id").to_pylist()
    tokens = pc.list_value_length(rollouts.column("response_ids")).to_numpy()
    for column in ("old_logprobs", "student_entropy"):
        found = pc.list_value_length(table.column(column)).to_numpy()
        fine = (found == 0) | (found == tokens)
        yield from require("scores", f"{column}: none or all", ids, fine)


def _teacher(tables: Tables) -> Iterator[Broken]:
    table = tables["teacher"]
    spans = RolloutSpans(table)
    found = list(zip(spans.names, spans.counts.tolist(), strict=True))
    if found != taught_rollouts(tables["rollouts"], tables["routes"]):
        text = "its rows are not the tokens of the taught rollouts, in order"
        yield Broken("teacher", text, None, table.num_rows)
        return
    counted = table["position"].to_numpy() == spans.positions()
    yield from require("teacher", "positions count up", spans, counted)
    for column, low, high in (
        ("entropy", -_LOG_SLACK, np.inf),
        ("jsd", 0.0, np.log(2) + 1e-3),
        ("teacher_logprob", -np.inf, _LOG_SLACK),
        ("student_logprob", -np.inf, _LOG_SLACK),
    ):
        values = table.column(column).to_numpy()
        yield from require("teacher", f"{column} in range", spans, within(values, low, high))
    for column in ("teacher_tail", "student_tail"):
        values = table.column(column).to_numpy()
        yield from require("teacher", f"{column} is no NaN and at most 0", spans, values <= 0)


def _weights(tables: Tables) -> Iterator[Broken]:
    table, teacher, routes = tables["weights"], tables["teacher"], tables["routes"]
    if not table.column("rollout_id").equals(teacher.column("rollout_id")):
        yield Broken("weights", "its rows are not those of teacher", None, table.num_rows)
        return
    spans = RolloutSpans(table)
    for column in ("position", "entropy"):
        equal = table.column(column).to_numpy() == teacher.column(column).to_numpy()
        yield from require("weights", f"{column} is that of teacher", spans, equal)
    weight = table.column("weight").to_numpy().astype(np.float64)
    yield from require(
        "weights", "weights are finite and not negative", spans, within(weight, 0, np.inf)
    )
    if not spans.names:
        return
    if CREDIT_LAMBDA in routes.column_names:
        most = spans.column_of(routes, CREDIT_LAMBDA) + _CREDIT_TOLERANCE
        near = np.abs(weight - 1) <= most
        text = "factors of the advantage are within 1 - lambda and 1 + lambda"
        yield from require("weights", text, spans, near)
        return
    places = in_group(spans.column_of(routes, "mini_batch"))
    means = np.bincount(places, weights=weight) / np.maximum(np.bincount(places), 1)
    if SURVIVAL in table.column_names:
        yield from _survival(table, spans)
        low = means <= 1 + _MEAN_TOLERANCE
        yield from require("weights", "their mean in a mini-batch is at most 1", spans, low[places])
        return
    exact = np.abs(means - 1) <= _MEAN_TOLERANCE
    yield from require("weights", "their mean in a mini-batch is 1", spans, exact[places])


def _survival(table: pa.Table, spans: RolloutSpans) -> Iterator[Broken]:
    """S falls from 1 along each response, and what it leaves is handed over."""
    survival = table.column(SURVIVAL).to_numpy()
    yield from require("weights", "survival in [0, 1]", spans, within(survival, 0, 1))
    first = spans.positions() == 0
    yield from require("weights", "survival begins with 1", spans, ~first | (survival == 1))
    falls = first | (np.diff(survival, prepend=1) <= 0)
    yield from require("weights", "survival never rises", spans, falls)
    if REWARD_WEIGHT in table.column_names:
        rest = np.abs(table.column(REWARD_WEIGHT).to_numpy() - (1 - survival)) <= _LOG_SLACK
        yield from require("weights", "reward_weight is 1 - survival", spans, rest)


def _updates(tables: Tables) -> Iterator[Broken]:
    table = tables["updates"]
    if broken := _other_order("updates", tables):
        yield broken
        return
    ids = table.column("rollout_id").to_pylist()
    for column in ("route", "mini_batch"):
        equal = pc.equal(table.column(column), tables["routes"].column(column))
        yield from require("updates", f"{column} is that of routes", ids, equal)
    lengths = pc.list_value_length(tables["rollouts"].column("response_ids")).to_numpy()
    tokens = table.column("tokens").to_numpy()
    yield from require("updates", "tokens is the response's length", ids, tokens == lengths)
    counted = np.where([r != "none" for r in table["route"].to_pylist()], tokens, 0)
    places, share = in_group(table["mini_batch"].to_numpy()), table["share"].to_numpy()
    sums = np.bincount(places, weights=share)
    whole = (np.abs(sums - 1) <= 1e-9) | (sums == 0)
    yield from require("updates", "shares of a mini-batch sum to 1", ids, whole[places])
    total = np.maximum(np.bincount(places, weights=counted), 1)[places]
    exact = np.abs(share - counted / total) <= 1e-9
    yield from require("updates", "share is tokens / N, 0 for route none", ids, exact)
    loss = table.column("loss_sum").to_numpy()
    yield from require("updates", "losses are finite", ids, np.isfinite(loss))


def _other_order(name: str, tables: Tables) -> Broken | None:
    if tables[name].column("rollout_id").equals(tables["rollouts"].column("rollout_id")):
        return None
    text = "its rollout_ids are not those of rollouts, in their order"
    return Broken(name, text, None, tables[name].num_rows)


def _in_unit(column: pa.ChunkedArray) -> Mask:
    values = column.to_numpy()
    return np.asarray((values >= 0) & (values <= 1))


def _constant(values: npt.NDArray[np.generic], places: npt.NDArray[np.int64]) -> Mask:
    """Return in which rows a value is that of the first row of the same place."""
    first = np.unique(places, return_index=True)[1] if len(places) else np.zeros(0, dtype=int)
    return np.asarray(values == values[first][places])


_CHECKS: dict[str, Callable[[Tables], Iterator[Broken]]] = {
    "rollouts": _rollouts,
    "verdicts": _verdicts,
    "bank": _bank,
    "routes": _routes,
    "scores": _scores,
    "teacher": _teacher,
    "weights": _weights,
    "updates": _updates,
    "evaluations": _evaluations,
}
NEEDS = {
    "rollouts": (),
    "verdicts": ("rollouts",),
    "bank": ("rollouts",),
    "routes": ("rollouts", "verdicts"),
    "scores": ("rollouts", "routes"),
    "teacher": ("rollouts", "routes", "scores"),
    "weights": ("routes", "teacher"),
    "updates": ("rollouts", "routes", "scores", "teacher", "weights"),
    "evaluations": (),
}
"""The tables that the checks of a table read besides it."""
