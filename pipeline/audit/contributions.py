"""What each token contributed to the loss, from tables alone: float64, at the step's first policy.

METHOD.md, sections 5 and 7 to 9. With one update per step this is the loss that the update saw;
where the policy had moved since, or the engine's correction was not stored, it is an estimate, and
its distance from the recorded sum says how good.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_STORED_ALPHA = 0.5


@dataclass(frozen=True)
class TaughtTokens:
    """The teacher's side of a rollout: log-probabilities [T, K], log tails [T] and weights [T].

    Attributes:
        student_TK: None where they were not kept.
        jsd_T: the stored divergence, JSD at alpha = 0.5.
    """

    student_TK: Floats | None
    teacher_TK: Floats
    student_tail_T: Floats
    teacher_tail_T: Floats
    student_logprob_T: Floats
    teacher_logprob_T: Floats
    jsd_T: Floats
    weight_T: Floats


def token_losses_T(
    route: str,
    advantage: float,
    tis_T: Floats,
    log_ratio_T: Floats,
    taught: TaughtTokens | None,
    settings: dict[str, Any],
) -> Floats:
    """Return the loss of each token, before the division by N.

    Args:
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
    s_TB = np.concatenate([taught.student_TK, taught.student_tail_T[:, None]], axis=1)
    q_TB = np.concatenate([taught.teacher_TK, taught.teacher_tail_T[:, None]], axis=1)
    if kind == "forward_kl":
        return np.maximum(_kl_T(q_TB, s_TB), 0.0)
    if kind == "reverse_kl":
        return np.maximum(_kl_T(s_TB, q_TB), 0.0)
    alpha = settings["jsd_alpha"]
    with np.errstate(divide="ignore"):
        m_TB = np.log((1 - alpha) * np.exp(s_TB) + alpha * np.exp(q_TB))
    return np.asarray(np.maximum((1 - alpha) * _kl_T(s_TB, m_TB) + alpha * _kl_T(q_TB, m_TB), 0.0))


def shares_T(losses_T: Floats) -> Floats:
    """Return each token's part of the sum of absolute losses; zeros if there is none."""
    total = np.abs(losses_T).sum()
    return np.abs(losses_T) / total if total > 0 else np.zeros_like(losses_T)


def _grpo_T(ratio_T: Floats, advantage: float, settings: dict[str, Any]) -> Floats:
    inside_T = np.clip(ratio_T, 1 - settings["clip_low"], 1 + settings["clip_high"])
    loss_T = -np.minimum(ratio_T * advantage, inside_T * advantage)
    if settings["dual_clip"] is not None and advantage < 0:
        loss_T = np.minimum(loss_T, -settings["dual_clip"] * advantage)
    return np.asarray(loss_T)


def _kl_T(p_TB: Floats, q_TB: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        parts_TB = np.exp(p_TB) * (p_TB - q_TB)
    result: Floats = np.where(np.isneginf(p_TB), 0.0, parts_TB).sum(axis=1)
    return result
