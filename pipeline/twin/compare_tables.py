"""Where the tables of a run disagree with the twin: one readable line per number."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.twin import formulas
from pipeline.twin.float16_tables import is_half
from pipeline.twin.inputs import RolloutTwin, StepTwin, TeacherTwin, UpdateTwin
from pipeline.twin.tolerances import FLOAT16_RTOL, MASS_FLOOR, Array, Report, divergence_slack

NORM_RTOL = 1e-5  # of a float32 gradient, all parameters together, summed in float64
FLOAT32_NORM_RTOL = 1e-3  # the same, summed in float32 over not too many parameters
_SMALLEST = float(np.finfo(np.float32).tiny)  # below it float32 loses digits, and then the number
_LARGEST = float(np.finfo(np.float32).max)  # a raw weight beyond it is stored as this
ESTIMATOR = "sampled_token"  # not a divergence: it has a sign, and its mean two readings


def _by_rollout(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        grouped.setdefault(row["rollout_id"], []).append(row)
    return grouped


def _column(rows: Iterable[dict[str, Any]], name: str) -> Array:
    return np.asarray([row[name] for row in rows], dtype=np.float64)


def _token_rows(
    report: Report, name: str, table: pa.Table, twin: StepTwin
) -> list[tuple[RolloutTwin, TeacherTwin, list[dict[str, Any]]]]:
    """Pair a token table's rows with the taught rollouts; note missing and surplus rows."""
    grouped = _by_rollout(table)
    paired = []
    for rollout_id, row in twin.rollouts.items():
        rows = grouped.pop(rollout_id, [])
        count = len(row.response_ids) if row.teacher is not None else 0
        # Rollouts of the mix have weight 1: a weights table without them says the same.
        if name == "weights" and row.route == "mix" and not rows:
            continue
        if [entry["position"] for entry in rows] != list(range(count)):
            report.note(f"{name} (rows)", rollout_id, len(rows), f"{count}, numbered from 0")
        elif row.teacher is not None:
            paired.append((row, row.teacher, rows))
    for rollout_id in grouped:
        report.note(f"{name} (rows)", rollout_id, "rows", "no such rollout")
    return paired


def _tails(teacher: TeacherTwin) -> tuple[Tensor, Tensor] | None:
    if teacher.student_tail is None or teacher.teacher_tail is None:
        return None
    return teacher.student_tail, teacher.teacher_tail


def _compare_topk(
    report: Report,
    row: RolloutTwin,
    twin: TeacherTwin,
    rows: Sequence[dict[str, Any]],
    rounding: float,
) -> None:
    """Section 5: ids, log-probabilities at them, tails and JSD; ids that tie may be swapped.

    Args:
        rounding: relative rounding of the stored log-probabilities, beyond float32.
    """
    name, logs = row.rollout_id, report.log_error
    ids = torch.tensor([entry["topk_ids"] for entry in rows], dtype=torch.int64)
    vocabulary = twin.student_logps.shape[-1]
    if ids.shape != twin.topk_ids.shape:
        return report.note("topk_ids (shape)", name, tuple(ids.shape), tuple(twin.topk_ids.shape))
    if bool(((ids < 0) | (ids >= vocabulary)).any()):
        return report.note("topk_ids", name, "an id outside the vocabulary", f"0..{vocabulary - 1}")
    if any(len(set(kept)) < len(kept) for kept in ids.tolist()):
        report.note("topk_ids", name, "an id twice in a position", "distinct ids")
    student, teacher = twin.student_logps.gather(-1, ids), twin.teacher_logps.gather(-1, ids)
    report.check_close(
        "topk_ids (student log-probability)", name, student.numpy(), twin.student_topk, logs
    )
    both = {"student": student, "teacher": teacher}
    for who, expected in both.items():
        if rows and f"{who}_logprobs" in rows[0]:
            found = np.asarray([entry[f"{who}_logprobs"] for entry in rows], dtype=np.float64)
            allowed = logs + rounding * expected.abs()
            report.check_close(f"{who}_logprobs", name, found, expected, allowed)
        whole = ids.shape[-1] == vocabulary
        rest = torch.full(ids.shape[:1], -torch.inf, dtype=torch.float64)
        rest = rest if whole else formulas.tail(expected)
        slack = torch.zeros_like(rest) if whole else logs + MASS_FLOOR * report.floor / rest.exp()
        report.check_close(f"{who}_tail", name, _column(rows, f"{who}_tail"), rest, slack)
    s_tj = formulas.buckets(twin.student_logps, ids)
    q_tj = formulas.buckets(twin.teacher_logps, ids)
    jsd, found = formulas.divergence("jsd", 0.5, s_tj, q_tj), _column(rows, "jsd")
    own = formulas.entropy(s_tj)
    report.check_close(
        "jsd", name, found, jsd, divergence_slack(report, "jsd", jsd, own, _tails(twin))
    )
    for position in np.argwhere(found < 0.0).ravel():
        report.note("jsd", f"{name} [{position}]", found[position], "never below 0")
    return None


def _compare_teacher(report: Report, twin: StepTwin, table: pa.Table) -> None:
    rounding = FLOAT16_RTOL if is_half(table) else 0.0
    for row, teacher, rows in _token_rows(report, "teacher", table, twin):
        expected = {
            "entropy": teacher.entropy,
            "student_logprob": teacher.student_logprob,
            "teacher_logprob": teacher.teacher_logprob,
        }
        for name, values in expected.items():
            what = f"teacher.{name}"
            report.check_close(what, row.rollout_id, _column(rows, name), values, report.log_error)
        _compare_topk(report, row, teacher, rows, rounding)


def _compare_weights(report: Report, twin: StepTwin, table: pa.Table) -> None:
    """Sections 6, 13 and 15; a mean that is 1 is so as exactly as float32 weights sum."""
    means: dict[int, list[Array]] = {}
    for row, teacher, rows in _token_rows(report, "weights", table, twin):
        name, relative = row.rollout_id, _raw_error(report, twin, teacher)
        report.check_close(
            "weights.entropy", name, _column(rows, "entropy"), teacher.entropy, report.log_error
        )
        raw, weights = teacher.raw_weights.clamp(max=_LARGEST), teacher.weights
        slack = relative * raw + _SMALLEST
        report.check_close("raw_weight", name, _column(rows, "raw_weight"), raw, slack)
        slack = _weight_error(report, twin, row, teacher) * weights + _SMALLEST
        report.check_close("weight", name, _column(rows, "weight"), weights, slack)
        _compare_survival(report, twin, name, teacher, rows)
        if twin.settings.survival in ("off", "weight") and not row.credited:
            means.setdefault(row.mini_batch, []).append(_column(rows, "weight"))
    for batch, found in means.items():
        mean = float(np.concatenate(found).mean())
        report.check_close("weight (mean)", f"mini-batch {batch}", [mean], [1.0], 10 * report.floor)


def _survival_error(report: Report, teacher: TeacherTwin) -> Tensor:
    """Return the relative error allowed of S: that of two log-probabilities per token before."""
    before = torch.arange(len(teacher.survival), dtype=torch.float64)
    return 2 * report.log_error * before


def _raw_error(report: Report, twin: StepTwin, teacher: TeacherTwin) -> Tensor:
    """Return the relative error allowed of raw weights, [T]."""
    # Those of rlsd are a ratio of two probabilities.
    scale = {"srpo": twin.settings.beta, "rlsd": 2.0}.get(twin.settings.method, 0.0)
    own = torch.full_like(teacher.entropy, scale * report.log_error)
    return own + _survival_error(report, teacher) if twin.settings.survival == "weight" else own


def _weight_error(report: Report, twin: StepTwin, row: RolloutTwin, teacher: TeacherTwin) -> Tensor:
    """Return the relative error allowed of weights, [T]: the raw weight's, and its mean's."""
    if row.credited:
        return _raw_error(report, twin, teacher)  # 1 - lambda + lambda w errs by no more than w
    batch = [r.teacher for r in twin.rollouts.values() if r.mini_batch == row.mini_batch]
    taught = [other for other in batch if other is not None]
    errors = torch.cat([_raw_error(report, twin, other) for other in taught])
    raw = torch.cat([other.raw_weights for other in taught])
    found = _raw_error(report, twin, teacher) + (errors * raw).sum() / raw.sum()
    lost = twin.settings.survival in ("unnormalised", "hand_over")
    return found + _survival_error(report, teacher) if lost else found


def _compare_survival(
    report: Report, twin: StepTwin, name: str, teacher: TeacherTwin, rows: Sequence[dict[str, Any]]
) -> None:
    """Section 15: S, and what it hands over to the advantage."""
    slack = _survival_error(report, teacher) * teacher.survival
    wanted = {} if twin.settings.survival == "off" else {"survival": teacher.survival}
    if twin.settings.survival == "hand_over":
        wanted["reward_weight"] = 1.0 - teacher.survival
    for column in ("survival", "reward_weight"):
        has = bool(rows) and column in rows[0]
        if has != (column in wanted):
            report.note(f"weights.{column}", name, "a column" if has else "none", "the other")
        elif has:
            expected = wanted[column]
            allowed = slack + report.floor
            report.check_close(f"weights.{column}", name, _column(rows, column), expected, allowed)


def _compare_scores(report: Report, twin: StepTwin, table: pa.Table) -> None:
    for found in table.to_pylist():
        row = twin.rollouts[found["rollout_id"]]
        for name in ("old_logprobs", "student_entropy"):
            expected = getattr(row, name)
            if found[name]:
                report.check_close(
                    f"scores.{name}", row.rollout_id, found[name], expected, report.log_error
                )


def _update_slack(
    report: Report, twin: StepTwin, update: UpdateTwin, teacher: TeacherTwin
) -> Tensor:
    name = twin.settings.divergence
    return divergence_slack(report, name, update.divergences, teacher.entropy, _tails(teacher))


def _loss_slack(report: Report, twin: StepTwin, row: RolloutTwin) -> float:
    """Return the error allowed of a loss sum: the sum of its tokens', which need not cancel."""
    assert row.update is not None
    total = float(row.update.token_losses.abs().sum())
    slack = total * (report.rtol + 2 * report.log_error)
    if row.teacher is None:
        return slack
    if row.credited:  # the advantage moves by what its factor may, at most about twice this
        return slack + total * 4 * report.log_error
    if twin.settings.survival != "off":
        reinforced = abs(row.advantage) * row.update.ratios.clamp(min=1.0) * row.update.tis
        moved = _weight_error(report, twin, row, row.teacher) * row.update.token_losses.abs()
        moved = moved + _survival_error(report, row.teacher) * row.teacher.survival * reinforced
        slack += float(moved.sum())
    if twin.settings.divergence == ESTIMATOR:  # an error of d in (log s - log q) log s
        return slack + float(2 * report.log_error * row.teacher.student_logprob.abs().sum())
    kept = _update_slack(report, twin, row.update, row.teacher)
    return slack + float((row.teacher.weights * row.update.tis * kept).sum())


def _clipped_fractions(twin: StepTwin, row: RolloutTwin) -> tuple[list[float], float]:
    """Return two readings of the clipped fraction, and the share of tokens too close to call.

    A ratio counts if it is outside the interval, or only if the minimum takes its clipped term; of
    a taught token if it is above its cap, and as the others where its advantage counts, too.
    """
    assert row.update is not None
    rho, settings = row.update.ratios, twin.settings
    low, high, cap = 1.0 - settings.clip_low, 1.0 + settings.clip_high, settings.sdpo_ratio_clip
    outside = (rho < low) | (rho > high)
    active = (rho > high) if row.advantage > 0 else (rho < low) & (row.advantage < 0)
    dual = settings.dual_clip
    if row.advantage < 0 and dual is not None:
        active = active | (rho > dual)
    edges = [edge for edge in (low, high, cap, dual or 0.0) if edge > 0]
    near = torch.stack([(rho / edge - 1).abs() < 1e-4 for edge in edges]).any(0)
    if row.route == "sdpo":
        handed = torch.zeros_like(outside)
        if settings.survival == "hand_over" and row.teacher is not None:
            handed = row.teacher.survival < 1.0
            near = near | (handed & (row.teacher.survival > 1.0 - 1e-4))
        outside, active = ((rho > cap) | (handed & clipped) for clipped in (outside, active))
    return [float(x.double().mean()) for x in (outside, active)], float(near.double().mean())


def _mismatch(twin: StepTwin, gap: Tensor, slack: float) -> dict[str, tuple[Tensor, float]]:
    """Return statistics of the engine's gap, each with its error if the gap is off by `slack`."""
    tilt = float((gap.clamp(max=20.0).exp() - 1).abs().max())
    over = gap.exp() / twin.settings.tis_clip
    near = float(((over - 1).abs() < 1e-4).double().mean())
    return {
        "max_logprob_gap": (gap.abs().max(), slack),
        "mean_logprob_gap": (gap.abs().mean(), slack),
        "engine_kl": (formulas.engine_kl(gap).mean(), slack * (tilt + slack)),
        "tis_cut_fraction": ((over > 1).double().mean(), near + 1e-6),
    }


def _compare_statistics(
    report: Report, twin: StepTwin, row: RolloutTwin, found: dict[str, Any]
) -> None:
    """Check the nullable columns of `updates`, which are null if no gradient was computed."""
    assert row.update is not None
    name, logs, update = row.rollout_id, report.log_error, row.update
    expected: dict[str, tuple[Tensor, float]] = {
        "mean_ratio": (update.ratios.mean(), 2 * logs * float(update.ratios.mean())),
        "mean_tis": (update.tis.mean(), 2 * logs * float(update.tis.mean())),
        **_mismatch(twin, update.logprob_gap, 2 * logs),
    }
    if row.teacher is not None and not row.credited and twin.settings.divergence != ESTIMATOR:
        values = update.divergences
        kept = _update_slack(report, twin, update, row.teacher).mean()
        expected["mean_divergence"] = (values.mean(), float(kept))
    for column, (value, slack) in expected.items():
        if found[column] is not None:
            report.check_close(f"updates.{column}", name, [found[column]], value.reshape(1), slack)
    fraction = found["clipped_fraction"]
    readings, near = _clipped_fractions(twin, row)
    if fraction is not None and min(abs(fraction - value) for value in readings) > near + 1e-6:
        report.note("updates.clipped_fraction", name, fraction, f"one of {readings}")


def _compare_updates(report: Report, twin: StepTwin, table: pa.Table) -> None:
    grouped = _by_rollout(table)
    if sorted(grouped) != sorted(twin.rollouts) or len(grouped) != table.num_rows:
        report.note(
            "updates (rows)", "all", table.num_rows, f"one for each of {len(twin.rollouts)}"
        )
    for name, row in twin.rollouts.items():
        if name not in grouped:
            continue
        found, count = grouped[name][0], len(row.response_ids)
        share = count / twin.batch_tokens[row.mini_batch] if row.route != "none" else 0.0
        exact = {"route": row.route, "mini_batch": row.mini_batch, "tokens": count}
        report.check_equal("updates", name, found, exact)
        report.check_close("updates.share", name, [found["share"]], [share], 0.0)
        if row.route == "none":
            report.check_close("updates.loss_sum", name, [found["loss_sum"]], [0.0], 0.0)
        if row.update is None:
            continue
        loss, slack = row.update.loss_sum.reshape(1), _loss_slack(report, twin, row)
        report.check_close("updates.loss_sum", name, [found["loss_sum"]], loss, slack)
        if found["computed"]:
            _compare_statistics(report, twin, row, found)
        elif row.teacher is not None or abs(row.advantage) > report.floor:
            report.note("updates.computed", name, False, "true: there is a gradient")


def compare(
    report: Report,
    twin: StepTwin,
    teacher_table: pa.Table | None,
    weights_table: pa.Table | None,
    updates_table: pa.Table | None,
    scores_table: pa.Table | None,
) -> None:
    """Note each disagreement of the tables with the twin, one line each; None skips a table."""
    checks = [
        (_compare_teacher, teacher_table),
        (_compare_weights, weights_table),
        (_compare_updates, updates_table),
        (_compare_scores, scores_table),
    ]
    for check, table in checks:
        if table is not None:
            check(report, twin, table)


def compare_rollouts(
    report: Report, twin: StepTwin, rollouts_table: pa.Table, same_policy: bool
) -> None:
    """Note prompts and texts that the tokenizer gives differently, and sampled log-probabilities.

    Args:
        same_policy: whether the twin's starting policy is the one that sampled. Only then are
            log-probabilities compared, and only of float32 samples from the whole distribution.
    """
    for found in rollouts_table.to_pylist():
        row = twin.rollouts[found["rollout_id"]]
        exact = {"prompt_ids": row.rendered_ids, "response_text": row.decoded}
        report.check_equal("rollouts", row.rollout_id, found, exact)
        whole = found["top_p"] == 1 and found["top_k"] == 0
        if same_policy and whole and found["engine"] == "transformers":
            assert row.old_logprobs is not None
            logprobs = found["sampled_logprobs"]
            name = "rollouts.sampled_logprobs"
            report.check_close(name, row.rollout_id, logprobs, row.old_logprobs, report.log_error)


def compare_routes(report: Report, twin: StepTwin, routes_table: pa.Table) -> None:
    """Sections 1-3: note disagreements on verdicts, advantages, siblings, routes and prompts.

    The twin never shortens prompts. Where its own is over the limit, the table must hold a shorter
    one or no teacher. Method `grpo` has no teacher.
    """
    for found in routes_table.to_pylist():
        row = twin.rollouts[found["rollout_id"]]
        exact = {"correct": row.correct, "route": row.route}
        limit = twin.settings.max_teacher_prompt_length
        over = limit is not None and len(row.teacher_prompt_ids or ()) > limit
        if twin.settings.method != "grpo" and (found["teacher_available"] or not over):
            exact |= {"teacher_available": row.available, "teacher_rollout_id": row.demonstrator}
            exact |= {"teacher_source": row.source}
        if found["teacher_prompt_ids"] and not over:
            exact["teacher_prompt_ids"] = row.teacher_prompt_ids
        if found["teacher_prompt_text"] is not None and not over:
            exact["teacher_prompt_text"] = row.teacher_prompt_text
        if twin.settings.method == "rlsd":
            credit = "routes.credit_lambda"
            report.check_close(credit, row.rollout_id, [found["credit_lambda"]], [row.credit], 0.0)
        if limit is not None and len(found["teacher_prompt_ids"]) > limit:
            report.note("routes.teacher_prompt_ids", row.rollout_id, "too many", f"at most {limit}")
        report.check_equal("routes", row.rollout_id, found, exact)
        for column in ("advantage", "group_mean", "group_std", "reward"):
            report.check_close(
                f"routes.{column}",
                row.rollout_id,
                [found[column]],
                [getattr(row, column)],
                report.floor,
            )


def compare_facts(report: Report, twin: StepTwin, facts: Mapping[str, Sequence[float]]) -> None:
    """Section 8: note N, loss and gradient norm of each update that the twin knows."""
    for number, batch in twin.batches.items():
        name, rows = f"update {number}", [r for r in twin.rollouts.values() if r.update]
        mine = [row for row in rows if row.mini_batch == number]
        slack = sum(_loss_slack(report, twin, row) for row in mine) / max(batch.tokens, 1)
        norm = sum(float(g.square().sum()) for g in batch.gradient.values()) ** 0.5
        report.check_close("N", name, [facts["tokens"][number]], [batch.tokens], 0.0)
        report.check_close("loss", name, [facts["loss"][number]], [batch.loss], slack)
        rtol = FLOAT32_NORM_RTOL if twin.settings.float32_norm else NORM_RTOL
        report.check_close("grad_norm", name, [facts["grad_norm"][number]], [norm], rtol * norm)


def compare_gradients(twin_grad: Mapping[str, Tensor], found_grad: Mapping[str, Tensor]) -> float:
    """Return the norm of the difference over that of the twin's gradient, all parameters at once.

    Two zero gradients differ by 0; any other gradient differs from a zero one by infinity.
    """
    if set(twin_grad) != set(found_grad):
        raise ValueError(f"parameters differ: {sorted(set(twin_grad) ^ set(found_grad))}")
    off = sum(
        float((found_grad[name].double() - value.double()).square().sum())
        for name, value in twin_grad.items()
    )
    size = sum(float(value.double().square().sum()) for value in twin_grad.values())
    if size == 0.0:
        return 0.0 if off == 0.0 else float("inf")
    return float((off / size) ** 0.5)
