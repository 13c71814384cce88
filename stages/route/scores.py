"""The scoring passes of a step: the student's, and the teacher's where a rollout needs it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.distributed.ranks import FirstError, size, together, turns
from pipeline.errors import NumericalError
from pipeline.forward.distributions import buckets_NC, jsd_N
from pipeline.forward.packing import TokenSequence, consecutive_slices
from pipeline.forward.projection import Distribution
from pipeline.forward.scoring import (
    Forward,
    fair_budget,
    idle_pass,
    score_student,
    score_teacher,
)
from pipeline.policy.policy import Policy

_JSD_ALPHA = 0.5

Floats = npt.NDArray[np.float32]
Report = Callable[[int], None]


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout's tokens as far as they were scored; arrays are [T] or [T, K], float32, nats."""

    old_logprobs_T: Floats
    student_entropy_T: Floats
    teacher: "TaughtTokens | None" = None


@dataclass(frozen=True)
class TaughtTokens:
    """What the table `teacher` holds of one rollout."""

    topk_ids_TK: npt.NDArray[np.int32]
    teacher_logprobs_TK: Floats
    student_logprobs_TK: Floats
    teacher_tail_T: Floats
    student_tail_T: Floats
    entropy_T: Floats
    teacher_logprob_T: Floats
    student_logprob_T: Floats
    jsd_T: Floats


@dataclass(frozen=True)
class ScoringJob:
    """One rollout to score: the student's sequence and, if it is taught, the teacher's prompt."""

    rollout_id: str
    sequence: TokenSequence
    temperature: float
    teacher_prompt_ids: list[int] | None


def score_rollouts(
    policy: Policy,
    jobs: Sequence[ScoringJob],
    kept: int,
    budget: int,
    megabytes: float,
    report: Report,
) -> tuple[dict[str, ScoredRollout], int]:
    """Score every job, on all ranks; taught ones get K = `kept` logits of student and teacher.

    Args:
        budget: tokens of one forward pass.
        megabytes: memory for the logits of one chunk of positions.
        report: called with the number of response tokens after each pass.

    Returns:
        The scores by rollout, and the positions that went through the networks.

    Raises:
        NumericalError: a log-probability is not finite.
    """
    parts = together(
        _score_part,
        policy,
        jobs,
        kept,
        budget,
        megabytes,
        report=lambda tokens: report(tokens * size()),
    )
    scored = {rollout_id: found for part, _ in parts for rollout_id, found in part.items()}
    return scored, sum(computed for _, computed in parts)


def _score_part(
    policy: Policy,
    jobs: Sequence[ScoringJob],
    kept: int,
    budget: int,
    megabytes: float,
    report: Report = lambda tokens: None,
) -> tuple[dict[str, ScoredRollout], int]:
    """Score this rank's share of the jobs: one pass of every `size()`."""
    forward = policy.forward(megabytes)
    scored: dict[str, ScoredRollout] = {}
    computed, failed = 0, FirstError()
    plain = [job for job in jobs if job.teacher_prompt_ids is None]
    taught = [job for job in jobs if job.teacher_prompt_ids is not None]
    with policy.passing():
        for batch in turns(_batches(plain, [j.sequence for j in plain], budget, forward)):
            if batch is None:
                idle_pass(policy.model, forward)
                continue
            with failed.kept():
                scored |= _score_plain(policy, batch, forward)
            computed += forward.tokens([job.sequence for job in batch])
            report(_tokens(batch))
        for batch in turns(_batches(taught, list(map(_before_teacher, taught)), budget, forward)):
            if batch is None:
                for model in (policy.model, *[c.model for c in policy.teacher_components()]):
                    idle_pass(model, forward)
                continue
            with failed.kept():
                scored |= _score_taught(policy, batch, kept, forward)
            computed += forward.tokens([job.sequence for job in batch])
            computed += forward.tokens([_before_teacher(job) for job in batch])
            report(2 * _tokens(batch))
    failed.expect_none()
    return scored, computed


def _score_plain(
    policy: Policy, batch: Sequence[ScoringJob], forward: Forward
) -> dict[str, ScoredRollout]:
    student = _student(policy, batch, 1, forward)
    _expect_finite(batch, student.logprob_N, "student")
    return {
        job.rollout_id: ScoredRollout(
            _array(student.logprob_N[part]), _array(student.entropy_N[part])
        )
        for job, part in zip(batch, _by_rollout(batch), strict=True)
    }


def _score_taught(
    policy: Policy, batch: Sequence[ScoringJob], kept: int, forward: Forward
) -> dict[str, ScoredRollout]:
    student = _student(policy, batch, kept, forward)
    teacher = score_teacher(
        policy.teacher_components(),
        [_before_teacher(job) for job in batch],
        _temperatures_N(batch, forward.device),
        student.ids_NK,
        forward,
    )
    # After both passes, which all ranks make together.
    _expect_finite(batch, student.logprob_N, "student")
    _expect_finite(batch, teacher.logprob_N, "teacher")
    jsd = _jsd_N(student, teacher, policy.vocabulary)
    return {
        job.rollout_id: _taught(student, teacher, jsd, part)
        for job, part in zip(batch, _by_rollout(batch), strict=True)
    }


def _jsd_N(student: Distribution, teacher: Distribution, vocabulary: int) -> Tensor:
    whole = student.ids_NK.shape[-1] == vocabulary
    value_N = jsd_N(
        buckets_NC(student.logprobs_NK, None if whole else student.log_tail_N),
        buckets_NC(teacher.logprobs_NK, None if whole else teacher.log_tail_N),
        _JSD_ALPHA,
    )
    return value_N.clamp(min=0)  # rounding makes it negative where both agree


def _student(
    policy: Policy, batch: Sequence[ScoringJob], kept: int, forward: Forward
) -> Distribution:
    sequences = [job.sequence for job in batch]
    temperature_N = _temperatures_N(batch, forward.device)
    return score_student(policy.model, sequences, temperature_N, kept, forward)


def _taught(
    student: Distribution, teacher: Distribution, jsd: Tensor, part: slice
) -> ScoredRollout:
    tokens = TaughtTokens(
        topk_ids_TK=student.ids_NK[part].cpu().numpy().astype(np.int32),
        teacher_logprobs_TK=_array(teacher.logprobs_NK[part]),
        student_logprobs_TK=_array(student.logprobs_NK[part]),
        teacher_tail_T=_array(teacher.log_tail_N[part]),
        student_tail_T=_array(student.log_tail_N[part]),
        entropy_T=_array(teacher.entropy_N[part]),
        teacher_logprob_T=_array(teacher.logprob_N[part]),
        student_logprob_T=_array(student.logprob_N[part]),
        jsd_T=_array(jsd[part]),
    )
    return ScoredRollout(tokens.student_logprob_T, _array(student.entropy_N[part]), teacher=tokens)


def _expect_finite(batch: Sequence[ScoringJob], logprob_N: Tensor, who: str) -> None:
    if bool(torch.isfinite(logprob_N).all()):
        return
    broken = [
        job.rollout_id
        for job, part in zip(batch, _by_rollout(batch), strict=True)
        if not bool(torch.isfinite(logprob_N[part]).all())
    ]
    raise NumericalError(f"the {who}'s log-probabilities are not finite in {', '.join(broken[:5])}")


def _batches(
    jobs: Sequence[ScoringJob], sequences: Sequence[TokenSequence], budget: int, forward: Forward
) -> list[list[ScoringJob]]:
    passes = forward.batches(sequences, fair_budget(budget, forward, sequences))
    return [[jobs[i] for i in members] for members in passes]


def _before_teacher(job: ScoringJob) -> TokenSequence:
    """Return what the teacher sees: the same response after its own prompt."""
    return TokenSequence(job.teacher_prompt_ids or [], job.sequence.response_ids)


def _by_rollout(batch: Sequence[ScoringJob]) -> list[slice]:
    return consecutive_slices([len(job.sequence.response_ids) for job in batch])


def _temperatures_N(batch: Sequence[ScoringJob], device: torch.device) -> Tensor:
    values = [j.temperature for j in batch for _ in j.sequence.response_ids]
    return torch.tensor(values, dtype=torch.float32, device=device)


def _tokens(batch: Sequence[ScoringJob]) -> int:
    return sum(len(job.sequence.response_ids) for job in batch)


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.float().cpu().numpy()
    return array
