"""What the table `updates` and its facts must be by docs/method.md, sections 7 to 9."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.check.rollout_tables import StepTables
from pipeline.tables.invariants import Broken, Mask, in_group, require, within
from pipeline.tables.rollout_index import RolloutSpans, stored_index

Doubles = npt.NDArray[np.float64]
_MISMATCH = ("max_logprob_gap", "mean_logprob_gap", "engine_kl", "tis_cut_fraction")
_STATISTICS = ("mean_ratio", "clipped_fraction", "mean_tis")
_DIVERGENCE_SLACK = 1e-4


def updates_rules(step: StepTables) -> Iterator[Broken]:
    """Check which rollouts were computed, their statistics, and the losses' sums."""
    table = step.tables["updates"]
    ids = table["rollout_id"].to_pylist()
    taught = _taught(step)
    distilled = taught & (np.asarray(table["route"].to_pylist()) != "grpo")
    computed = _flags(table["computed"])
    for what, holds in (
        ("computed exactly if there is a gradient", computed == _has_gradient(step, taught)),
        ("statistics exactly where computed", _statistics_fit(table, computed)),
        ("mean_divergence exactly where distilled", _filled(table, "mean_divergence") == distilled),
        ("loss_sum is 0 where nothing was computed", computed | (_doubles(table, "loss_sum") == 0)),
        ("log pi_old is live, stored or sampled as it must be", _sources_fit(step, computed)),
        *_ranges(step, table),
        *_live_losses(step, table, computed, taught),
    ):
        yield from require("updates", what, ids, holds)
    yield from _facts(step, table)


def _flags(column: pa.ChunkedArray) -> Mask:
    return np.asarray(column.to_pylist(), dtype=bool)


def _filled(table: pa.Table, name: str) -> Mask:
    return _flags(pc.is_valid(table[name]))


def _doubles(table: pa.Table, name: str) -> Doubles:
    """Return a column as float64; null is NaN."""
    return np.asarray(table[name].to_numpy(), dtype=np.float64)


def _taught(step: StepTables) -> Mask:
    index = stored_index(step.manifests["teacher"])
    return np.asarray([i in index for i in step.tables["updates"]["rollout_id"].to_pylist()], bool)


def _has_gradient(step: StepTables, taught: Mask) -> Mask:
    routes, tokens = step.tables["routes"], step.tables["updates"]["tokens"].to_numpy()
    by_reward = np.asarray([r in ("grpo", "mix") for r in routes["route"].to_pylist()], bool)
    by_reward &= routes["advantage"].to_numpy() != 0
    return np.asarray((tokens > 0) & (by_reward | taught))


def _statistics_fit(table: pa.Table, computed: Mask) -> Mask:
    sampled = _flags(pc.equal(table["old_source"], "sampled"))
    fine = np.ones(table.num_rows, dtype=bool)
    for name in _MISMATCH:
        fine = fine & (_filled(table, name) == (computed & ~sampled))
    for name in _STATISTICS:
        fine = fine & (_filled(table, name) == computed)
    return np.asarray(fine)


def _sources_fit(step: StepTables, computed: Mask) -> Mask:
    """Section 7: live if one update of the policy that sampled, else stored, else sampled."""
    table, origin = step.tables["updates"], step.manifests["updates"].origin
    sampled_by = set(step.tables["rollouts"]["policy_version"].to_pylist())
    one_update = len(set(table["mini_batch"].to_pylist())) == 1
    stored = pc.list_value_length(step.tables["scores"]["old_logprobs"]).to_numpy() > 0
    live = one_update and sampled_by == {origin.policy_version}
    expected = ["live" if live else "stored" if has else "sampled" for has in stored]
    found = zip(table["old_source"].to_pylist(), expected, strict=True)
    right = np.asarray([source == wanted for source, wanted in found], dtype=bool)
    return np.asarray(~computed | right)


def _ranges(step: StepTables, table: pa.Table) -> Iterator[tuple[str, Mask]]:
    settings = step.manifests["updates"].origin.settings_of("update")
    ranges = {
        "mean_ratio": (0.0, np.inf),
        "clipped_fraction": (0.0, 1.0),
        "mean_tis": (0.0, settings["tis_clip"] * (1 + 1e-6)),
        "max_logprob_gap": (0.0, np.inf),
        "mean_logprob_gap": (0.0, np.inf),
        "engine_kl": (0.0, np.inf),
        "tis_cut_fraction": (0.0, 1.0),
    }
    if settings["divergence"] != "sampled_token":
        highest = np.log(2) + 1e-3 if settings["divergence"] == "jsd" else np.inf
        ranges["mean_divergence"] = (-_DIVERGENCE_SLACK, highest)
    for name, (low, high) in ranges.items():
        values = _doubles(table, name)
        yield f"{name} in range", within(values, low, high) | ~_filled(table, name)
    largest = _doubles(table, "max_logprob_gap") * (1 + 1e-6)
    below = _doubles(table, "mean_logprob_gap") <= largest
    yield "mean_logprob_gap is at most the largest", below | ~_filled(table, "mean_logprob_gap")


def _live_losses(
    step: StepTables, table: pa.Table, computed: Mask, taught: Mask
) -> Iterator[tuple[str, Mask]]:
    """With pi_old live every ratio is 1, and a GRPO loss is -A times the sum of the corrections.

    Where a teacher distributes A, each token's correction counts by its factor.
    """
    live = computed & _flags(pc.equal(table["old_source"], "live"))
    yield "ratios are 1 where log pi_old is live", ~live | (_doubles(table, "mean_ratio") == 1)
    rewarded = live & _flags(pc.equal(table["route"], "grpo"))
    advantage, losses = _doubles(step.tables["routes"], "advantage"), _doubles(table, "loss_sum")
    corrections = _doubles(table, "mean_tis") * table["tokens"].to_numpy()
    near = np.isclose(losses, -advantage * corrections, rtol=1e-5, atol=1e-6)
    yield "loss_sum is -A times the sum of the corrections", ~(rewarded & ~taught) | near
    credited = rewarded & taught
    if credited.any():
        near = np.isclose(losses, -advantage * _credited_corrections(step), rtol=1e-5, atol=1e-6)
        yield "loss_sum is -A times the sum of the factors' corrections", ~credited | near


def _credited_corrections(step: StepTables) -> Doubles:
    """Return the sum of factor times correction of each rollout; 0 of those without a teacher.

    Section 7: the correction is min(exp(log pi_old - log pi_engine), cap); with pi_old live, log
    pi_old is the student's stored value.
    """
    teacher, rollouts = step.tables["teacher"], step.tables["rollouts"]
    ids = rollouts["rollout_id"].to_pylist()
    spans = RolloutSpans(teacher)
    rows = [ids.index(name) for name in spans.names]
    sampled = pc.list_flatten(rollouts["sampled_logprobs"].take(pa.array(rows, type=pa.int64())))
    gap = _doubles(teacher, "student_logprob") - sampled.to_numpy()
    cap = step.manifests["updates"].origin.settings_of("update")["tis_clip"]
    correction = np.minimum(np.exp(np.minimum(gap, 20)), cap)
    places = np.repeat(rows, spans.counts)
    weighted = correction * _doubles(step.tables["weights"], "weight")
    sums = np.bincount(places, weights=weighted, minlength=len(ids))
    return np.asarray(sums, dtype=np.float64)


def _facts(step: StepTables, table: pa.Table) -> Iterator[Broken]:
    """N, loss and learning rate of each optimizer update."""
    facts = step.manifests["updates"].facts
    routed = np.asarray([r != "none" for r in table["route"].to_pylist()], dtype=bool)
    places = in_group(table["mini_batch"].to_numpy())
    tokens = np.bincount(places, weights=np.where(routed, table["tokens"].to_numpy(), 0))
    losses = np.bincount(places, weights=_doubles(table, "loss_sum")) / np.maximum(tokens, 1)
    for name, expected in (
        ("tokens", tokens),
        ("loss", losses),
        ("learning_rate", _learning_rate(step)),
    ):
        found = np.atleast_1d(np.asarray(facts[name], dtype=np.float64))
        want = np.atleast_1d(expected)
        if found.shape != want.shape or not np.allclose(found, want, rtol=1e-7, atol=1e-12):
            text = f"fact {name} is {facts[name]}, the rows say {want.tolist()}"
            yield Broken("updates", text, None, table.num_rows)
    norms: Any = np.asarray(facts["grad_norm"], dtype=np.float64)
    if norms.shape != tokens.shape or not (np.isfinite(norms) & (norms >= 0)).all():
        text = f"fact grad_norm is {facts['grad_norm']}, not one finite number per mini-batch"
        yield Broken("updates", text, None, table.num_rows)


def _learning_rate(step: StepTables) -> float:
    """Section 10: lr min(1, (s + 1) / warm-up)."""
    settings: Mapping[str, Any] = step.manifests["updates"].origin.settings_of("update")
    warmup = settings["warmup_steps"]
    scale = min(1.0, (step.step + 1) / warmup) if warmup else 1.0
    return float(settings["learning_rate"] * scale)
