"""Evidence: which rollouts show what a rule found, the most telling first."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.health.leaks import feedback_gold_shares
from pipeline.survival import OFF_PATH, log_survival_of

LARGEST = 5
Tables = Mapping[str, pa.Table]


class Selector(NamedTuple):
    """Chooses a rule's evidence from tables.

    Attributes:
        choose: returns rollout ids, the most telling first.
        condition, sort: options of `srpo audit` that list all of the evidence; empty if none do.
    """

    choose: Callable[[Tables], Sequence[str]]
    condition: str = ""
    sort: str = ""


def evidence_of(name: str, tables: Tables) -> tuple[str, ...]:
    """Return the ids of up to five rollouts."""
    return tuple(SELECTORS[name].choose(tables)[:LARGEST])


def _spread(table: pa.Table, mask: Any) -> list[str]:
    """Return rollouts under a mask, one of each group, then the second of each, and so on."""
    chosen = table.filter(mask)
    ids = chosen["rollout_id"].to_pylist()
    seen: dict[str, int] = defaultdict(int)
    turns = []
    for name in ids:
        group = name.rpartition("-")[0]
        turns.append((seen[group], name))
        seen[group] += 1
    return [name for _, name in sorted(turns)]


def _largest(table: pa.Table, values: npt.ArrayLike) -> list[str]:
    """Return the rollouts with the largest values; those without one are left out."""
    numbers = np.asarray(values, dtype=np.float64)
    order = np.argsort(-np.nan_to_num(numbers, nan=-np.inf), kind="stable")
    ids = table["rollout_id"].to_pylist()
    return [ids[i] for i in order[:LARGEST] if np.isfinite(numbers[i])]


def _lengths(tables: Tables) -> npt.NDArray[np.float64]:
    lengths = pc.list_value_length(tables["rollouts"]["response_ids"]).to_numpy()
    return np.asarray(lengths, dtype=np.float64)


def _format(tables: Tables) -> list[str]:
    verdicts = tables["verdicts"]
    broken = pc.invert(verdicts["format_ok"])
    return _spread(verdicts, pc.and_(broken, pc.is_null(verdicts["error"])))


def _evaluated_format(tables: Tables) -> list[str]:
    answers = tables["evaluations"]
    broken = pc.invert(answers["format_ok"])
    return _spread(answers, pc.and_(broken, pc.is_null(answers["error"])))


def _evaluated_errors(tables: Tables) -> list[str]:
    return _spread(tables["evaluations"], pc.is_valid(tables["evaluations"]["error"]))


def _evaluated_wrong(tables: Tables) -> list[str]:
    """Return wrong answers, first those to the questions that lost most since the best state."""
    now = tables["evaluations"]
    before = _shares(tables["best_evaluations"]) if "best_evaluations" in tables else {}
    shares = _shares(now)
    lost = {prompt: before.get(prompt, 0.0) - share for prompt, share in shares.items()}
    prompt_of = dict(zip(now["rollout_id"].to_pylist(), now["prompt_id"].to_pylist(), strict=True))
    wrong = _spread(now, pc.invert(now["correct"]))
    first = {prompt_of[name]: name for name in reversed(wrong)}
    return sorted(first.values(), key=lambda name: (-lost[prompt_of[name]], name))


def _shares(evaluations: pa.Table) -> dict[str, float]:
    grouped = pa.table(
        {"prompt": evaluations["prompt_id"], "correct": pc.cast(evaluations["correct"], pa.int8())}
    ).group_by("prompt")
    means = grouped.aggregate([("correct", "mean")])
    return dict(zip(means["prompt"].to_pylist(), means["correct_mean"].to_pylist(), strict=True))


def _longest(tables: Tables) -> list[str]:
    return _largest(tables["rollouts"], _lengths(tables))


def _shortest(tables: Tables) -> list[str]:
    return _largest(tables["rollouts"], -_lengths(tables))


def _truncated(tables: Tables) -> list[str]:
    return _spread(tables["rollouts"], pc.equal(tables["rollouts"]["finish_reason"], "length"))


def _surest(tables: Tables) -> list[str]:
    """Return the taught rollouts whose teacher is surest."""
    teacher = tables["teacher"]
    means = (
        pa.table({"id": teacher["rollout_id"], "entropy": teacher["entropy"]})
        .group_by("id")
        .aggregate([("entropy", "mean")])
    )
    pairs = zip(means["entropy_mean"].to_pylist(), means["id"].to_pylist(), strict=True)
    return [name for _, name in sorted(pairs)]


def _wrong(tables: Tables) -> list[str]:
    verdicts = tables["verdicts"]
    wrong = pc.invert(verdicts["correct"])
    return _spread(verdicts, pc.and_(wrong, pc.is_null(verdicts["error"])))


def _demonstrations(tables: Tables) -> list[str]:
    """Return the shortest responses that demonstrate."""
    teachers = tables["routes"]["teacher_rollout_id"].drop_null().unique()
    among = pc.is_in(tables["rollouts"]["rollout_id"], teachers).to_numpy(zero_copy_only=False)
    return _largest(tables["rollouts"], np.where(among, -_lengths(tables), np.nan))


def _duplicates(tables: Tables) -> list[str]:
    """Return rollouts with the text that was given to the most questions."""
    rollouts = tables["rollouts"]
    texts, groups = rollouts["response_text"].to_pylist(), rollouts["group"].to_pylist()
    answered: dict[str, set[int]] = defaultdict(set)
    for text, group in zip(texts, groups, strict=True):
        answered[text].add(group)
    commonest = max(answered, key=lambda text: len(answered[text]))
    return _spread(rollouts, pa.array([text == commonest for text in texts]))


def _off_path(tables: Tables) -> list[str]:
    """Return the taught rollouts with the most weighted divergence off the teacher's path."""
    teacher, weights = tables["teacher"], tables["weights"]
    parts = weights["weight"].to_numpy().astype(np.float64) * teacher["jsd"].to_numpy()
    off = np.where(np.exp(log_survival_of(teacher)) < OFF_PATH, parts, 0.0)
    table = pa.table({"rollout_id": teacher["rollout_id"], "off": off})
    sums = table.group_by("rollout_id", use_threads=False).aggregate([("off", "sum")])
    return _largest(sums, sums["off_sum"].to_numpy())


def _loss(tables: Tables) -> list[str]:
    return _largest(tables["updates"], np.abs(tables["updates"]["loss_sum"].to_numpy()))


def _gap(tables: Tables) -> list[str]:
    gaps = pc.fill_null(tables["updates"]["max_logprob_gap"], float("nan"))
    return _largest(tables["updates"], gaps.to_numpy())


def _failed(tables: Tables) -> list[str]:
    return _spread(tables["verdicts"], pc.is_valid(tables["verdicts"]["error"]))


def _told_gold(tables: Tables) -> list[str]:
    """Return the rollouts whose teachers are told most of the gold answer."""
    shares = feedback_gold_shares(tables)
    return _largest(tables["rollouts"], np.where(shares > 0, shares, np.nan))


SELECTORS: Mapping[str, Selector] = {
    "format": Selector(_format, "not format_ok and error is null"),
    "evaluated_format": Selector(_evaluated_format),
    "evaluated_errors": Selector(_evaluated_errors),
    "evaluated_wrong": Selector(_evaluated_wrong),
    "longest": Selector(_longest),
    "shortest": Selector(_shortest),
    "truncated": Selector(_truncated, "finish_reason = 'length'"),
    "surest": Selector(_surest),
    "wrong": Selector(_wrong, "not correct and not teacher_available and error is null"),
    "demonstrations": Selector(_demonstrations),
    "duplicates": Selector(_duplicates),
    "off_path": Selector(_off_path),
    "largest_loss": Selector(_loss),
    "largest_gap": Selector(_gap, "max_logprob_gap > 0.5", "-max_logprob_gap"),
    "verifier_errors": Selector(_failed, "error is not null"),
    "told_gold": Selector(
        _told_gold,
        "feedback_gold_share > 0 and teacher_available",
        "-feedback_gold_share",
    ),
}
