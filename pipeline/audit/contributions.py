"""What each token of a rollout adds to the loss, from tables alone (METHOD.md, sections 5 to 9).

Plain float64 numpy, a second implementation beside the stage's: values are those at the policy that
starts the step. Arrays are [T] over response tokens; with B, the K kept ids and the tail.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import UpdateSection

Array = npt.NDArray[np.float64]

_RATIO_CLAMP = 20.0


@dataclass(frozen=True)
class Taught:
    """The teacher's side of a rollout: buckets, the sampled token, weights."""

    student_TB: Array
    teacher_TB: Array
    student_T: Array
    teacher_T: Array
    weight_T: Array


@dataclass(frozen=True)
class Evidence:
    """What is known of a rollout.

    Attributes:
        tokens: T.
        computed: false: the rollout has no gradient and adds 0.
        sampled_T: the engine's log-probabilities; None if the correction is 1 by definition,
            because log pi_old is the engine's.
        old_T: log pi_old; None if not recorded: then ratio and correction are taken as 1.
        current_T: log pi at the start of the step; None: taken as log pi_old.
    """

    tokens: int
    route: str
    computed: bool
    advantage: float
    sampled_T: Array | None
    old_T: Array | None
    current_T: Array | None
    taught: Taught | None


@dataclass(frozen=True)
class TokenLosses:
    """Token losses before the division by N; `tis_T` is None where it is not known."""

    loss_T: Array
    tis_T: Array | None


def token_losses(evidence: Evidence, settings: UpdateSection) -> TokenLosses:
    """Return the losses of a rollout's tokens, with weights and corrections (section 8)."""
    ones_T = np.ones(evidence.tokens)
    if evidence.old_T is None or evidence.sampled_T is None:
        tis_T = None if evidence.old_T is None else ones_T
    else:
        tis_T = truncated_T(evidence.old_T - evidence.sampled_T, settings.tis_clip)
    if not evidence.computed or evidence.route == "none":
        return TokenLosses(0 * ones_T, tis_T)
    gap_T = 0 * ones_T
    if evidence.old_T is not None and evidence.current_T is not None:
        gap_T = evidence.current_T - evidence.old_T
    by_reward_T = grpo_T(gap_T, evidence.advantage, settings)
    by_teacher_T = 0 * ones_T
    if evidence.taught is not None:
        correction_T = truncated_T(gap_T, settings.sdpo_ratio_clip)
        by_teacher_T = evidence.taught.weight_T * correction_T * distilled_T(evidence, settings)
    loss_T = {
        "grpo": by_reward_T,
        "sdpo": by_teacher_T,
        "mix": settings.mix_lambda * by_reward_T + (1 - settings.mix_lambda) * by_teacher_T,
    }[evidence.route]
    return TokenLosses(loss_T * (ones_T if tis_T is None else tis_T), tis_T)


def grpo_T(log_ratio_T: Array, advantage: float, settings: UpdateSection) -> Array:
    """Return -min(rho A, clip(rho) A), with the dual clip where A < 0 (section 7)."""
    ratio_T = np.exp(np.clip(log_ratio_T, -_RATIO_CLAMP, _RATIO_CLAMP))
    clipped_T = np.clip(ratio_T, 1 - settings.clip_low, 1 + settings.clip_high)
    loss_T = -np.minimum(ratio_T * advantage, clipped_T * advantage)
    if settings.dual_clip is not None and advantage < 0:
        loss_T = np.minimum(loss_T, -settings.dual_clip * advantage)
    return np.asarray(loss_T)


def distilled_T(evidence: Evidence, settings: UpdateSection) -> Array:
    """Return the distillation loss before weight and corrections (section 5)."""
    taught = evidence.taught
    assert taught is not None
    if settings.divergence == "sampled_token":
        return (taught.student_T - taught.teacher_T) * taught.student_T
    s_TB, q_TB, alpha = taught.student_TB, taught.teacher_TB, settings.jsd_alpha
    if settings.divergence == "forward_kl":
        value_T = kl_T(q_TB, s_TB)
    elif settings.divergence == "reverse_kl":
        value_T = kl_T(s_TB, q_TB)
    else:
        m_TB = np.logaddexp(s_TB + np.log(1 - alpha), q_TB + np.log(alpha))
        value_T = (1 - alpha) * kl_T(s_TB, m_TB) + alpha * kl_T(q_TB, m_TB)
    return np.maximum(value_T, 0)


def kl_T(log_p_TB: Array, log_q_TB: Array) -> Array:
    """Return KL(p || q) over buckets, in nats; empty buckets of p add 0."""
    present_TB = log_p_TB > -np.inf
    gap_TB = np.subtract(log_p_TB, log_q_TB, out=np.zeros_like(log_p_TB), where=present_TB)
    return np.asarray((np.exp(log_p_TB) * gap_TB).sum(axis=-1))


def truncated_T(log_ratio_T: Array, cap: float) -> Array:
    """Return min(exp(log ratio), cap), an importance weight."""
    return np.exp(np.minimum(log_ratio_T, np.log(cap)))


def shares_T(loss_T: Array) -> Array:
    """Return |loss| over the sum of |loss|; zeros if all losses are 0."""
    sizes_T = np.abs(loss_T)
    total = float(sizes_T.sum())
    return sizes_T / total if total else sizes_T
