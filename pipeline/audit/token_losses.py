"""The loss of each token of a rollout, from tables alone: float64, at the step's first policy.

docs/method.md, sections 5, 7 to 9, 13 and 15. With one update per step this is the loss that the
update saw;
where the policy had moved since, or the engine's correction was not stored, it is an estimate:
`losses_of` says why, and how far its sum is from the recorded one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipeline.audit.stored_logprobs import is_rounded, keeps_student, kept_TK
from pipeline.run.run import Run
from pipeline.tables.schemas import REWARD_WEIGHT, Row

Floats = npt.NDArray[np.float64]

_STORED_ALPHA = 0.5


@dataclass(frozen=True)
class TaughtTokens:
    """The teacher's side of a rollout: log-probabilities [T, K], log tails [T] and weights [T].

    Attributes:
        student_TK: None where they were not kept.
        jsd_T: the stored divergence, JSD at alpha = 0.5.
        reward_weight_T: weights of the GRPO loss beside the teacher's; None: it has none.
    """

    student_TK: Floats | None
    teacher_TK: Floats
    student_tail_T: Floats
    teacher_tail_T: Floats
    student_logprob_T: Floats
    teacher_logprob_T: Floats
    jsd_T: Floats
    weight_T: Floats
    reward_weight_T: Floats | None = None


@dataclass(frozen=True)
class Losses:
    """Token losses [T], before the division by N.

    Attributes:
        loss_T: None where they need the student's K log-probabilities, which were not kept.
        tis_T: correction from engine to trainer; None if not recorded: then its recorded mean
            stands for it.
        difference: sum of `loss_T` less the recorded sum; None without them.
        note: why tables alone don't determine the losses; empty if they do.
    """

    loss_T: Floats | None
    tis_T: Floats | None
    difference: float | None
    note: str


def losses_of(
    run: Run,
    row: Row,
    route: Row | None,
    update: Row | None,
    columns: dict[str, npt.NDArray[np.floating]],
    teacher: pa.Table | None,
) -> Losses | None:
    """Return the losses of a rollout's tokens at the policy that starts the step.

    Args:
        row, route, update: the rollout in `rollouts`, `routes` and `updates`.
        columns: what is recorded per token, by field of `TokenRecord`.
        teacher: its rows of `teacher`, if it was taught.

    Returns:
        None where the step is not that far.
    """
    weight = columns.get("weight", columns.get("credit"))
    if route is None or update is None or (teacher is not None and weight is None):
        return None
    settings = run.manifest("updates", row["step"]).origin.settings_of("update")
    sampled_T = columns["sampled_logprob"].astype(np.float64)
    now = columns.get("old_logprob", columns.get("student_logprob"))
    now_T = None if now is None else now.astype(np.float64)
    log_ratio_T, tis_T = np.zeros_like(sampled_T), np.ones_like(sampled_T)
    known = True
    if update["old_source"] == "sampled":
        log_ratio_T = log_ratio_T if now_T is None else now_T - sampled_T
    elif now_T is not None:
        tis_T = np.exp(np.minimum(now_T - sampled_T, np.log(settings["tis_clip"])))
    else:
        known = False
    mean_tis = np.float64(1.0 if known else update["mean_tis"] or 1.0)
    loss_T: Floats | None = np.zeros_like(sampled_T)
    advantage: float | Floats = route["advantage"]
    if "credit" in columns:
        advantage = advantage * columns["credit"].astype(np.float64)
    distilled = teacher if "credit" not in columns else None
    taught = None if distilled is None else _taught(distilled, columns)
    if taught is not None and not knows_divergence(taught, settings):
        loss_T = None
    elif update["computed"]:
        loss_T = token_losses_T(
            route["route"], advantage, tis_T * mean_tis, log_ratio_T, taught, settings
        )
    doubted = update["computed"] and loss_T is not None
    return Losses(
        loss_T=loss_T,
        tis_T=tis_T if known else None,
        difference=None if loss_T is None else float(loss_T.sum()) - update["loss_sum"],
        note="; ".join(_doubts(run, row, update, known, teacher)) if doubted else "",
    )


def _doubts(run: Run, row: Row, update: Row, known: bool, teacher: pa.Table | None) -> list[str]:
    """Say what stands between the tables and the exact losses."""
    step, sampled_by = row["step"], row["policy_version"]
    updated = run.manifest("updates", step).origin.policy_version
    found = []
    if not known:
        found.append(
            "the engine-to-trainer correction of each token was not recorded (its mean was): "
            'route.rescore = "all" records it'
        )
    first = run.read("updates", step)["mini_batch"].to_numpy().min()
    if update["mini_batch"] > first:
        found.append(
            f"optimizer update {update['mini_batch'] - first + 1} of the step: earlier ones had "
            "moved the policy, these are the losses before them"
        )
    if teacher is not None and update["route"] != "grpo" and is_rounded(teacher):
        found.append("log-probabilities rounded to float16 (route.kept_dtype)")
    if teacher is not None:
        scored_by = run.manifest("teacher", step).origin.policy_version
        if scored_by != updated:
            found.append(f"off-policy: scored by policy {scored_by}, updated was {updated}")
    elif sampled_by != updated:
        found.append(
            f"off-policy: sampled by policy {sampled_by}, updated was {updated}; their ratio is "
            "not recorded and taken as 1"
        )
    return found


def batch_tokens_of(run: Run, step: int, mini_batch: int) -> int:
    """Return N of a mini-batch: the response tokens of its rollouts that learn."""
    columns = run.read("updates", step).select(["mini_batch", "route", "tokens"])
    frame = pl.DataFrame(columns).filter(mini_batch=mini_batch).filter(pl.col("route") != "none")
    return int(frame["tokens"].sum())


def _taught(teacher: pa.Table, columns: Mapping[str, npt.NDArray[np.floating]]) -> TaughtTokens:
    def wide(name: str) -> Floats:
        return np.asarray(teacher[name].to_numpy(), dtype=np.float64)

    student_TK = kept_TK(teacher, "student_logprobs") if keeps_student(teacher) else None
    handed_T = columns.get(REWARD_WEIGHT)
    return TaughtTokens(
        student_TK=None if student_TK is None else student_TK.astype(np.float64),
        teacher_TK=kept_TK(teacher, "teacher_logprobs").astype(np.float64),
        student_tail_T=wide("student_tail"),
        teacher_tail_T=wide("teacher_tail"),
        student_logprob_T=wide("student_logprob"),
        teacher_logprob_T=wide("teacher_logprob"),
        jsd_T=wide("jsd"),
        weight_T=columns["weight"].astype(np.float64),
        reward_weight_T=None if handed_T is None else handed_T.astype(np.float64),
    )


def token_losses_T(
    route: str,
    advantage: float | Floats,
    tis_T: Floats,
    log_ratio_T: Floats,
    taught: TaughtTokens | None,
    settings: dict[str, Any],
) -> Floats:
    """Return the loss of each token, before the division by N.

    Args:
        advantage: the rollout's, or each token's.
        tis_T: the correction from engine to trainer.
        log_ratio_T: log of the step's first policy over pi_old; 0 on-policy.
        settings: the section `update` as the manifest records it.
    """
    ratio_T = np.exp(np.clip(log_ratio_T, -20, 20))
    reinforced_T = _grpo_T(ratio_T, advantage, settings)
    distilled_T = np.zeros_like(reinforced_T)
    if taught is not None:
        correction_T = np.minimum(ratio_T, settings["sdpo_ratio_clip"])
        distilled_T = taught.weight_T * correction_T * divergence_T(taught, settings)
        if taught.reward_weight_T is not None:
            distilled_T = distilled_T + taught.reward_weight_T * reinforced_T
    by_route = {
        "grpo": reinforced_T,
        "sdpo": distilled_T,
        "mix": settings["mix_lambda"] * reinforced_T + (1 - settings["mix_lambda"]) * distilled_T,
    }
    return np.asarray(tis_T * by_route.get(route, np.zeros_like(reinforced_T)))


def knows_divergence(taught: TaughtTokens, settings: dict[str, Any]) -> bool:
    """Tell whether what is kept of a rollout determines its distillation loss."""
    kind = settings["divergence"]
    stored = kind == "sampled_token" or (kind == "jsd" and settings["jsd_alpha"] == _STORED_ALPHA)
    return stored or taught.student_TK is not None


def divergence_T(taught: TaughtTokens, settings: dict[str, Any]) -> Floats:
    """Return the distillation loss per token: a divergence over K + 1 buckets, or its estimator.

    Without the student's log-probabilities the stored JSD stands for it; see `knows_divergence`.
    """
    kind = settings["divergence"]
    if kind == "sampled_token":
        gap_T = taught.student_logprob_T - taught.teacher_logprob_T
        return np.asarray(gap_T * taught.student_logprob_T)
    if taught.student_TK is None:
        return taught.jsd_T
    s_TC = np.concatenate([taught.student_TK, taught.student_tail_T[:, None]], axis=1)
    q_TC = np.concatenate([taught.teacher_TK, taught.teacher_tail_T[:, None]], axis=1)
    if kind == "forward_kl":
        return np.maximum(_kl_T(q_TC, s_TC), 0.0)
    if kind == "reverse_kl":
        return np.maximum(_kl_T(s_TC, q_TC), 0.0)
    alpha = settings["jsd_alpha"]
    with np.errstate(divide="ignore"):
        m_TC = np.log((1 - alpha) * np.exp(s_TC) + alpha * np.exp(q_TC))
    return np.asarray(np.maximum((1 - alpha) * _kl_T(s_TC, m_TC) + alpha * _kl_T(q_TC, m_TC), 0.0))


def shares_T(losses_T: Floats) -> Floats:
    """Return each token's part of the sum of absolute losses; zeros if there is none."""
    total = np.abs(losses_T).sum()
    return np.abs(losses_T) / total if total > 0 else np.zeros_like(losses_T)


def _grpo_T(ratio_T: Floats, advantage: float | Floats, settings: dict[str, Any]) -> Floats:
    inside_T = np.clip(ratio_T, 1 - settings["clip_low"], 1 + settings["clip_high"])
    loss_T = -np.minimum(ratio_T * advantage, inside_T * advantage)
    if settings["dual_clip"] is None:
        return np.asarray(loss_T)
    capped_T = np.minimum(loss_T, -settings["dual_clip"] * advantage)
    return np.where(np.less(advantage, 0), capped_T, loss_T)


def _kl_T(p_TC: Floats, q_TC: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        parts_TC = np.exp(p_TC) * (p_TC - q_TC)
    result: Floats = np.where(np.isneginf(p_TC), 0.0, parts_TC).sum(axis=1)
    return result
