"""What must hold in every table, checked before it is committed.

Each check names the first row that breaks it. Tables are checked with those they were made from.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError

Tables = Mapping[str, pa.Table]
_MEAN_TOLERANCE = 1e-5


def check_table(name: str, tables: Tables) -> None:
    """Check the invariants of table `name`.

    Raises:
        StoreError: naming the table, the invariant and the first rollout that breaks it.
    """
    _CHECKS[name](tables)


def _rollouts(tables: Tables) -> None:
    table = tables["rollouts"]
    ids = table.column("rollout_id").to_pylist()
    _require("rollouts", "rollout_id is unique", ids, [len(set(ids)) == len(ids)] * len(ids))
    tokens = pc.list_value_length(table.column("response_ids"))
    logprobs = pc.list_value_length(table.column("sampled_logprobs"))
    _require("rollouts", "one log-probability per token", ids, pc.equal(tokens, logprobs))
    values = pc.list_flatten(table.column("sampled_logprobs")).to_numpy()
    owners = np.repeat(np.array(ids, dtype=object), tokens.to_numpy())
    _require("rollouts", "log-probabilities in (-inf, 0]", owners, _in(values, -np.inf, 1e-6))
    prompt = pc.list_value_length(table.column("prompt_ids"))
    _require("rollouts", "prompts are not empty", ids, pc.greater(prompt, 0))


def _verdicts(tables: Tables) -> None:
    table = tables["verdicts"]
    _same_order("verdicts", tables)
    ids = table.column("rollout_id").to_pylist()
    rewards = table.column("reward").to_numpy()
    _require("verdicts", "rewards in [0, 1]", ids, (rewards >= 0) & (rewards <= 1))


def _routes(tables: Tables) -> None:
    table = tables["routes"]
    _same_order("routes", tables)
    ids = table.column("rollout_id").to_pylist()
    correct = dict(zip(ids, table.column("correct").to_pylist(), strict=True))
    teachers = table.column("teacher_rollout_id").to_pylist()
    own = [teacher != own for teacher, own in zip(teachers, ids, strict=True)]
    _require("routes", "nobody teaches itself", ids, own)
    right = [teacher is None or correct.get(teacher, False) for teacher in teachers]
    _require("routes", "teachers are correct rollouts of the step", ids, right)
    known = [route in ("grpo", "sdpo", "mix", "none") for route in table["route"].to_pylist()]
    _require("routes", "route is grpo, sdpo, mix or none", ids, known)
    groups = table.column("group").to_numpy()
    sums = np.bincount(groups, weights=table.column("advantage").to_numpy().astype(np.float64))
    sizes = np.bincount(groups)
    balanced = np.abs(sums) <= 1e-5 * np.maximum(sizes, 1)
    _require("routes", "advantages sum to 0 in a group", ids, balanced[groups])


def _scores(tables: Tables) -> None:
    table, rollouts = tables["scores"], tables["rollouts"]
    _same_order("scores", tables)
    ids = table.column("rollout_id").to_pylist()
    tokens = pc.list_value_length(rollouts.column("response_ids")).to_numpy()
    for column in ("old_logprobs", "student_entropy"):
        found = pc.list_value_length(table.column(column)).to_numpy()
        _require("scores", f"{column}: none or all", ids, (found == 0) | (found == tokens))


def _teacher(tables: Tables) -> None:
    table, routes, rollouts = tables["teacher"], tables["routes"], tables["rollouts"]
    tokens = pc.list_value_length(rollouts.column("response_ids")).to_pylist()
    taught = [
        (rollout_id, count)
        for rollout_id, count, route, available in zip(
            routes.column("rollout_id").to_pylist(),
            tokens,
            routes.column("route").to_pylist(),
            routes.column("teacher_available").to_pylist(),
            strict=True,
        )
        if available and route in ("sdpo", "mix")
    ]
    expected = [rollout_id for rollout_id, count in taught for _ in range(count)]
    if table.column("rollout_id").to_pylist() != expected:
        raise StoreError("teacher: its rows are not the tokens of the taught rollouts, in order")
    positions = [p for _, count in taught for p in range(count)]
    _require("teacher", "positions count up", expected, table["position"].to_numpy() == positions)
    for column, low, high in (
        ("entropy", -1e-6, np.inf),
        ("jsd", 0.0, np.log(2) + 1e-3),
        ("teacher_logprob", -np.inf, 1e-6),
        ("student_logprob", -np.inf, 1e-6),
    ):
        values = table.column(column).to_numpy()
        _require("teacher", f"{column} in range", expected, _in(values, low, high))
    for column in ("teacher_tail", "student_tail"):
        values = table.column(column).to_numpy()
        _require("teacher", f"{column} is no NaN and at most 0", expected, values <= 0)


def _weights(tables: Tables) -> None:
    table, teacher, routes = tables["weights"], tables["teacher"], tables["routes"]
    ids = table.column("rollout_id").to_pylist()
    if ids != teacher.column("rollout_id").to_pylist():
        raise StoreError("weights: its rows are not those of teacher")
    batch_of = dict(
        zip(routes["rollout_id"].to_pylist(), routes["mini_batch"].to_pylist(), strict=True)
    )
    weight = table.column("weight").to_numpy().astype(np.float64)
    _require("weights", "weights are finite and not negative", ids, _in(weight, 0, np.inf))
    if not ids:
        return
    batches = np.array([batch_of[i] for i in ids])
    counts = np.maximum(np.bincount(batches), 1)
    means = np.bincount(batches, weights=weight) / counts
    exact = np.abs(means - 1) <= _MEAN_TOLERANCE
    _require("weights", "their mean in a mini-batch is 1", ids, exact[batches])


def _updates(tables: Tables) -> None:
    table = tables["updates"]
    _same_order("updates", tables)
    ids = table.column("rollout_id").to_pylist()
    batches = table.column("mini_batch").to_numpy()
    sums = np.bincount(batches, weights=table.column("share").to_numpy())
    whole = (np.abs(sums - 1) <= 1e-9) | (sums == 0)
    _require("updates", "shares of a mini-batch sum to 1", ids, whole[batches])
    loss = table.column("loss_sum").to_numpy()
    _require("updates", "losses are finite", ids, np.isfinite(loss))


def _evaluations(tables: Tables) -> None:
    table = tables["evaluations"]
    ids = table.column("rollout_id").to_pylist()
    _require("evaluations", "rollout_id is unique", ids, [len(set(ids)) == len(ids)] * len(ids))
    rewards = table.column("reward").to_numpy()
    _require("evaluations", "rewards in [0, 1]", ids, (rewards >= 0) & (rewards <= 1))


def _same_order(name: str, tables: Tables) -> None:
    found = tables[name].column("rollout_id").to_pylist()
    if found != tables["rollouts"].column("rollout_id").to_pylist():
        raise StoreError(f"{name}: its rollout_ids are not those of rollouts, in their order")


def _in(values: npt.NDArray[np.floating], low: float, high: float) -> npt.NDArray[np.bool_]:
    return np.asarray((values >= low) & (values <= high) & np.isfinite(values))


def _require(
    table: str,
    invariant: str,
    ids: npt.ArrayLike,
    holds: npt.ArrayLike | pa.ChunkedArray,
) -> None:
    mask = np.asarray(holds, dtype=bool)
    if not mask.all():
        first = int(np.argmin(mask))
        rollout = np.asarray(ids, dtype=object)[first]
        raise StoreError(f"{table}: broken invariant: {invariant}; first at {rollout}")


_CHECKS: dict[str, Callable[[Tables], None]] = {
    "rollouts": _rollouts,
    "verdicts": _verdicts,
    "routes": _routes,
    "scores": _scores,
    "teacher": _teacher,
    "weights": _weights,
    "updates": _updates,
    "evaluations": _evaluations,
}
