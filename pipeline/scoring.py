"""Forward passes over saved tokens, with the output projection in chunks.

A pass never holds [tokens, vocabulary] for a micro-batch: hidden states of response positions are
gathered first, then projected `chunk` positions at a time; with gradients, each chunk's logits are
recomputed in the backward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.distributions import entropy_N, log_softmax_NV, log_tail_N


class TokenSequence(NamedTuple):
    """A prompt and the response tokens that are scored after it."""

    prompt_ids: list[int]
    response_ids: list[int]


class Component(NamedTuple):
    """One model of a logit mixture: its network and its coefficient."""

    model: Any
    coefficient: float


class StudentScores(NamedTuple):
    """The student's view of N response tokens; K logits are kept where asked for."""

    logprob_N: Tensor
    entropy_N: Tensor
    topk_ids_NK: Tensor
    topk_logprobs_NK: Tensor
    log_tail_N: Tensor


class TeacherScores(NamedTuple):
    """The teacher's view of the same tokens, at the student's K ids."""

    logprob_N: Tensor
    entropy_N: Tensor
    topk_logprobs_NK: Tensor
    log_tail_N: Tensor


@dataclass(frozen=True)
class Forward:
    """How forward passes run: where, in which precision, and how many positions at a time."""

    device: torch.device
    bfloat16: bool
    chunk: int

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices so that each group's padded size (longest x count) keeps within `budget`.

    Longest first, ties in order, so that padding is small. A sequence longer than the budget is a
    group of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def consecutive_slices(lengths: Sequence[int]) -> list[slice]:
    """Return where each of some sequences lies when they stand one after the other."""
    ends = list(accumulate(lengths))
    return [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]


def response_hidden_ND(model: Any, sequences: Sequence[TokenSequence], forward: Forward) -> Tensor:
    """Return the hidden states that predict each response token, sequence after sequence.

    Position p of a sequence predicts token p + 1, so response token t is predicted at
    len(prompt) + t - 1. Sequences are padded on the right, which causal attention never sees.
    """
    longest = max(len(s.prompt_ids) + len(s.response_ids) for s in sequences)
    ids_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    wanted_BT = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, (prompt, response) in enumerate(sequences):
        total = len(prompt) + len(response)
        ids_BT[row, :total] = torch.tensor(prompt + response)
        mask_BT[row, :total] = 1
        wanted_BT[row, len(prompt) - 1 : total - 1] = True
    device = forward.device
    with forward.autocast():
        hidden_BTD = decoder(model)(
            input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False
        ).last_hidden_state
    selected: Tensor = hidden_BTD[wanted_BT.to(device)]
    return selected


def decoder(model: Any) -> Any:
    """Return the network below the output projection."""
    return model.get_decoder()


def project_NV(model: Any, hidden_ND: Tensor, forward: Forward) -> Tensor:
    """Return float32 logits (float64 for a float64 model) of hidden states."""
    with forward.autocast():
        logits_NV: Tensor = model.get_output_embeddings()(hidden_ND)
    return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()


@torch.no_grad()
def score_student(
    model: Any,
    sequences: Sequence[TokenSequence],
    temperature_N: Tensor,
    kept: int,
    forward: Forward,
) -> StudentScores:
    """Score response tokens with the student and keep its `kept` likeliest ids per position."""
    hidden_ND = response_hidden_ND(model, sequences, forward)
    targets_N = response_targets_N(sequences, forward.device)

    def one_chunk(part: slice) -> StudentScores:
        logits_NV = project_NV(model, hidden_ND[part], forward)
        logprobs_NV = log_softmax_NV(logits_NV, temperature_N[part])
        top = logprobs_NV.topk(kept, dim=-1)
        return StudentScores(
            _at_N(logprobs_NV, targets_N[part]),
            entropy_N(logprobs_NV),
            top.indices,
            top.values,
            _tail_N(top.values, logprobs_NV.shape[-1]),
        )

    return StudentScores(*_joined(one_chunk, len(targets_N), forward.chunk))


@torch.no_grad()
def score_teacher(
    components: Sequence[Component],
    sequences: Sequence[TokenSequence],
    temperature_N: Tensor,
    ids_NK: Tensor,
    forward: Forward,
) -> TeacherScores:
    """Score response tokens with the teacher: entropy over the full vocabulary, log q at `ids_NK`.

    The teacher's logits are the weighted sum of its components' logits (METHOD.md, section 4).
    """
    hiddens = [response_hidden_ND(c.model, sequences, forward) for c in components]
    targets_N = response_targets_N(sequences, forward.device)

    def one_chunk(part: slice) -> TeacherScores:
        logits_NV = sum(
            c.coefficient * project_NV(c.model, hidden_ND[part], forward)
            for c, hidden_ND in zip(components, hiddens, strict=True)
        )
        logprobs_NV = log_softmax_NV(torch.as_tensor(logits_NV), temperature_N[part])
        kept_NK = logprobs_NV.gather(-1, ids_NK[part])
        return TeacherScores(
            _at_N(logprobs_NV, targets_N[part]),
            entropy_N(logprobs_NV),
            kept_NK,
            _tail_N(kept_NK, logprobs_NV.shape[-1]),
        )

    return TeacherScores(*_joined(one_chunk, len(targets_N), forward.chunk))


def train_logprobs(
    model: Any,
    hidden_ND: Tensor,
    ids_NJ: Tensor,
    temperature_N: Tensor,
    forward: Forward,
) -> Tensor:
    """Return the log-probabilities of J ids per position, with gradients.

    Chunks are checkpointed: only one chunk's logits exist at a time, forward and backward.
    """

    def one_chunk(hidden: Tensor, ids: Tensor, temperature: Tensor) -> Tensor:
        logprobs_NV = log_softmax_NV(project_NV(model, hidden, forward), temperature)
        return logprobs_NV.gather(-1, ids)

    parts = [
        checkpoint(
            one_chunk, hidden_ND[part], ids_NJ[part], temperature_N[part], use_reentrant=False
        )
        for part in _slices(len(ids_NJ), forward.chunk)
    ]
    if parts:
        return torch.cat(parts)
    wide = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
    return hidden_ND.new_zeros(ids_NJ.shape, dtype=wide)


def response_targets_N(sequences: Sequence[TokenSequence], device: torch.device) -> Tensor:
    """Return the response tokens of all sequences, one after the other."""
    targets = [t for s in sequences for t in s.response_ids]
    return torch.tensor(targets, dtype=torch.long, device=device)


def _at_N(logprobs_NV: Tensor, targets_N: Tensor) -> Tensor:
    return logprobs_NV.gather(-1, targets_N[:, None])[:, 0]


def _tail_N(kept_NK: Tensor, vocabulary: int) -> Tensor:
    """Return the log of the mass outside the kept ids: log 0 where all of them are kept."""
    if kept_NK.shape[-1] == vocabulary:
        return torch.full_like(kept_NK[:, 0], -torch.inf)
    return log_tail_N(kept_NK)


def _slices(total: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, total, chunk))


def _joined(
    one_chunk: Callable[[slice], tuple[Tensor, ...]], total: int, chunk: int
) -> list[Tensor]:
    """Return each column of all chunks; where there are no positions, one empty chunk's."""
    parts = [one_chunk(part) for part in _slices(max(total, 1), chunk)]
    return [torch.cat(column) for column in zip(*parts, strict=True)]
