"""Forward passes over saved tokens: hidden states of response positions, and what they say.

Sequences that share a prompt are encoded behind one copy of it where the model allows it
(`packing`), else padded, each with its own. Logits exist a chunk at a time (`projection`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.distributed import ranks
from pipeline.distributed.sharding import encoder_of
from pipeline.forward.attention import laid_out_hidden
from pipeline.forward.packing import (
    TokenSequence,
    pack,
    pack_shared,
    packed_row,
    packed_tokens,
    response_targets_N,
)
from pipeline.forward.projection import Distribution, Head, describe, head_of, logits_NV
from pipeline.machine.flops import forward_flops, projection_flops
from pipeline.machine.phases import phase

_ENOUGH_FLOPS, _ENOUGH_LEAST, _ENOUGH_MOST = 1.5e11, 512, 2048


class Component(NamedTuple):
    """One model of a logit mixture: its network and its coefficient."""

    model: Any
    coefficient: float


@dataclass(frozen=True)
class Forward:
    """How forward passes run.

    Attributes:
        bfloat16: whether the network runs under bfloat16 autocast.
        shares: whether sequences with the same prompt share its encoding.
        megabytes: memory for the logits of one chunk of positions.
        enough: tokens beyond which a pass takes no further prompt, whatever its budget; None: none.
    """

    device: torch.device
    bfloat16: bool
    shares: bool
    megabytes: float
    enough: int | None = None

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def head(self, model: Any) -> Head:
        """Return a model's output projection."""
        return head_of(model, self.bfloat16, self.megabytes)

    def batches(self, sequences: Sequence[TokenSequence], budget: int) -> list[list[int]]:
        """Group the indices of sequences into passes of at most `budget` tokens."""
        if self.shares:
            return pack_shared(sequences, budget, self.enough or budget)
        return pack([_length(s) for s in sequences], budget)

    def tokens(self, sequences: Sequence[TokenSequence]) -> int:
        """Return the positions that one pass over these sequences computes, padding included."""
        if self.shares:
            return packed_tokens(sequences)
        return max(map(_length, sequences)) * len(sequences)


def enough_tokens(model: Any, device: torch.device) -> int | None:
    """Return the tokens beyond which a larger pass gains nothing; None: no such number.

    On a CPU passes of many prompts are no faster than some of few, which take less memory: of 135M
    parameters, 760 and 1,520 tokens run at the same rate and keep 1.3 and 2.6 GB of activations for
    the backward pass. So the larger the model, the fewer tokens are enough.
    """
    if device.type != "cpu":
        return None
    tokens = int(_ENOUGH_FLOPS / max(forward_flops(model, 1), 1.0))
    return min(max(tokens, _ENOUGH_LEAST), _ENOUGH_MOST)


def fair_budget(budget: int, forward: Forward, sequences: Sequence[TokenSequence]) -> int:
    """Return a budget under which every rank gets its share of the passes."""
    if not sequences:
        return budget
    return min(budget, -(-forward.tokens(sequences) // ranks.size()))


def idle_pass(model: Any, forward: Forward) -> Tensor:
    """Take part in a pass of a sharded model for which only other ranks have sequences left."""
    return response_hidden_ND(model, [TokenSequence([0], [0])], forward)


def response_hidden_ND(model: Any, sequences: Sequence[TokenSequence], forward: Forward) -> Tensor:
    """Return the hidden states that predict each response token, sequence after sequence.

    Position p of a sequence predicts token p + 1, so response token t is predicted at
    len(prompt) + t - 1.
    """
    with forward.autocast():
        if forward.shares:
            return _packed_hidden_ND(model, sequences, forward.device)
        return _padded_hidden_ND(model, sequences, forward.device)


def _packed_hidden_ND(
    model: Any, sequences: Sequence[TokenSequence], device: torch.device
) -> Tensor:
    row = packed_row(sequences, device)
    ids_1L = torch.tensor([row.ids], device=device)
    positions_1L = torch.tensor([row.positions], device=device)
    # The row holds each shared prompt once; L is its length.
    hidden_LD = laid_out_hidden(encoder_of(model), row, ids_1L, positions_1L)[0]
    wanted_N = torch.tensor(row.predicting, dtype=torch.long, device=device)
    return hidden_LD.index_select(0, wanted_N)


def _padded_hidden_ND(
    model: Any, sequences: Sequence[TokenSequence], device: torch.device
) -> Tensor:
    """Pad on the right, which causal attention never sees."""
    longest = max(map(_length, sequences))
    ids_BL = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask_BL = torch.zeros_like(ids_BL)
    wanted_BL = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, (prompt, response) in enumerate(sequences):
        total = len(prompt) + len(response)
        ids_BL[row, :total] = torch.tensor(prompt + response)
        mask_BL[row, :total] = 1
        # Response token t is predicted one position before its own.
        wanted_BL[row, len(prompt) - 1 : total - 1] = True
    hidden_BLD = encoder_of(model)(
        input_ids=ids_BL.to(device), attention_mask=mask_BL.to(device), use_cache=False
    ).last_hidden_state
    # A boolean index flattens row by row: [B, L, D] to [N, D], sequence after sequence.
    selected: Tensor = hidden_BLD[wanted_BL.to(device)]
    return selected


@torch.no_grad()
def score_student(
    model: Any,
    sequences: Sequence[TokenSequence],
    temperature_N: Tensor,
    kept: int,
    forward: Forward,
) -> Distribution:
    """Score response tokens with the student and keep its `kept` likeliest ids per position."""
    positions = forward.tokens(sequences)
    with phase("student forward", positions, forward_flops(model, positions)):
        hidden_ND = response_hidden_ND(model, sequences, forward)
    targets_N = response_targets_N(sequences, forward.device)
    head = forward.head(model)

    def one_chunk(part: slice) -> Distribution:
        logits = logits_NV(head, hidden_ND[part])
        return describe(logits, targets_N[part], temperature_N[part], kept)

    tokens = len(targets_N)
    with phase("student projection", tokens, projection_flops(model, tokens)):
        return _joined(one_chunk, head, tokens)


@torch.no_grad()
def score_teacher(
    components: Sequence[Component],
    sequences: Sequence[TokenSequence],
    temperature_N: Tensor,
    ids_NK: Tensor,
    forward: Forward,
) -> Distribution:
    """Score response tokens with the teacher: entropy over the full vocabulary, log q at `ids_NK`.

    The teacher's logits are the weighted sum of its components' logits (docs/method.md, section 4).
    """
    models = [component.model for component in components]
    positions = forward.tokens(sequences)
    flops = sum(forward_flops(model, positions) for model in models)
    with phase("teacher forward", positions, flops):
        hiddens = [response_hidden_ND(model, sequences, forward) for model in models]
    heads = [forward.head(model) for model in models]
    targets_N = response_targets_N(sequences, forward.device)

    def one_chunk(part: slice) -> Distribution:
        mixed = [
            logits_NV(head, hidden_ND[part]) for head, hidden_ND in zip(heads, hiddens, strict=True)
        ]
        # [n, V] of each component, summed in place into the first
        logits = mixed[0].mul_(components[0].coefficient) if len(mixed) > 1 else mixed[0]
        for component, other in zip(components[1:], mixed[1:], strict=True):
            logits.add_(other, alpha=component.coefficient)
        return describe(logits, targets_N[part], temperature_N[part], ids_NK[part])

    tokens = len(targets_N)
    flops = sum(projection_flops(model, tokens) for model in models)
    with phase("teacher projection", tokens, flops):
        return _joined(one_chunk, heads[0], tokens)


def _joined(one_chunk: Callable[[slice], Distribution], head: Head, total: int) -> Distribution:
    parts = [one_chunk(part) for part in head.chunks(total)]
    return Distribution(*[torch.cat(column) for column in zip(*parts, strict=True)])


def _length(sequence: TokenSequence) -> int:
    return len(sequence.prompt_ids) + len(sequence.response_ids)
