"""The output projection, a chunk of positions at a time: logits exist once and are never kept.

Everything that a loss or a table needs of a chunk's [n, V] logits is taken while they are there:
log-probabilities of chosen ids, log-sum-exp, entropy, the likeliest ids. Within a chunk the
elementwise work goes a block of rows at a time, which stays in the processor's cache.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.forward.distributions import cool_, entropy_N, log_tail_N

_BLOCK_BYTES = 2**20
_PART = 32
_FEW_ROWS, _COLUMNS = 128, 1024


class Head(NamedTuple):
    """An output projection and how it runs.

    Attributes:
        weight_VD: its weights; they are multiplied in the hidden states' dtype unless `bfloat16`.
        bias_V: its bias, if it has one.
        bfloat16: multiply in bfloat16; everything after the product is float32.
        megabytes: memory for the logits of one chunk.
    """

    weight_VD: Tensor
    bias_V: Tensor | None
    bfloat16: bool
    megabytes: float

    @property
    def vocabulary(self) -> int:
        """Return V."""
        return self.weight_VD.shape[0]

    def chunks(self, total: int) -> Iterator[slice]:
        """Yield slices of `total` positions whose logits fit; one empty slice of none."""
        bytes_per_position = self.vocabulary * max(self.weight_VD.element_size(), 4)
        size = max(1, int(self.megabytes * 2**20) // bytes_per_position)
        # Chunks of one size: the last is not a small product of its own.
        size = -(-total // -(-total // size)) if total else 1
        return (slice(i, min(i + size, total)) for i in range(0, max(total, 1), size))


def head_of(model: Any, bfloat16: bool, megabytes: float) -> Head:
    """Return a model's output projection."""
    linear = model.get_output_embeddings()
    return Head(linear.weight, getattr(linear, "bias", None), bfloat16, megabytes)


class Distribution(NamedTuple):
    """What is kept of the distributions at n positions.

    Attributes:
        logprob_N: of the target token, nats.
        entropy_N: over the full vocabulary, nats (docs/method.md, section 4).
        ids_NK: the K ids that the log-probabilities belong to.
        logprobs_NK: of these ids, nats.
        log_tail_N: log of the mass outside them; -inf if K is the vocabulary.
    """

    logprob_N: Tensor
    entropy_N: Tensor
    ids_NK: Tensor
    logprobs_NK: Tensor
    log_tail_N: Tensor


@torch.no_grad()
def logits_NV(head: Head, hidden_ND: Tensor) -> Tensor:
    """Return fresh float32 logits (float64 for a float64 model) before the temperature."""
    weight, bias = head.weight_VD, head.bias_V
    if head.bfloat16:
        hidden_ND, weight = hidden_ND.bfloat16(), weight.bfloat16()
        bias = None if bias is None else bias.bfloat16()
    weight = weight.to(hidden_ND.dtype)  # of a base that is stored in bfloat16
    if bias is None and weight.dtype == torch.float32 and not hidden_ND.is_cuda:
        return _product_NV(hidden_ND, weight)
    logits = torch.nn.functional.linear(hidden_ND, weight, bias)
    return logits.float() if head.bfloat16 else logits


@torch.no_grad()
def describe(
    logits: Tensor, targets_N: Tensor, temperature_N: Tensor, kept: int | Tensor
) -> Distribution:
    """Describe the distributions of n positions; the logits are used up.

    Args:
        logits: [n, V], before the temperature; overwritten.
        kept: how many of the likeliest ids to keep, or the ids [n, K] to look at.
    """
    parts = [
        _describe_block(
            logits[rows],
            targets_N[rows],
            temperature_N[rows],
            kept if isinstance(kept, int) else kept[rows],
        )
        for rows in _row_blocks(logits)
    ]
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return Distribution(*columns)


def train_logprobs(
    head: Head,
    hidden_ND: Tensor,
    targets_N: Tensor,
    temperature_N: Tensor,
    taught_M: Tensor,
    ids_MK: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of one chunk with gradients to hidden states and projection.

    Only one [n, V] tensor exists, forward and backward: the logits become the softmax in place and
    that becomes their gradient. Use it on chunks that fit, and run each chunk's backward pass
    before the next chunk.

    Args:
        hidden_ND: hidden states of n positions.
        targets_N: the sampled token of each.
        taught_M: which of the positions have a teacher, ascending.
        ids_MK: the K ids at these.

    Returns:
        Log-probabilities of the targets [n], and of the ids [M, K], nats.
    """
    found: tuple[Tensor, Tensor] = _Projection.apply(  # type: ignore[no-untyped-call]
        head, hidden_ND, head.weight_VD, head.bias_V, targets_N, temperature_N, taught_M, ids_MK
    )
    return found


class _Projection(torch.autograd.Function):
    """log softmax((W h + b) / tau) at chosen ids.

    With p the softmax and g the gradient of the chosen log-probabilities, the gradient of the
    logits is (sum of one-hot(id) g  -  p sum(g)) / tau.
    """

    @staticmethod
    def forward(
        ctx: Any,
        head: Head,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        temperature_N: Tensor,
        taught_M: Tensor,
        ids_MK: Tensor,
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            x_NV = logits_NV(head, hidden_ND)  # the one [n, V] tensor of the chunk
            temperature_N = temperature_N.to(x_NV.dtype)
            # Where [taught, id] lies in x_NV.view(-1): no [M, V] copy of the taught rows is made.
            flat_MK = taught_M[:, None] * head.vocabulary + ids_MK
            target_N = x_NV.gather(1, targets_N[:, None])[:, 0] / temperature_N
            kept_MK = x_NV.view(-1).take(flat_MK) / temperature_N[taught_M, None]
            # Chosen logits are taken: from here on x_NV holds exp(x - largest).
            log_sum_N, sum_N = _softmax_in_place(x_NV, temperature_N)
        ctx.head = head
        ctx.save_for_backward(
            hidden_ND, weight_VD, x_NV, sum_N, temperature_N, targets_N, taught_M, flat_MK
        )
        return target_N - log_sum_N, kept_MK - log_sum_N[taught_M, None]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, x_NV, sum_N, temperature_N, targets_N, taught_M, flat_MK = (
            ctx.saved_tensors
        )
        # Incoming gradients, divided by tau as the logits were.
        inverse_N = 1 / temperature_N
        target_N = grads[0] * inverse_N
        kept_MK = grads[1] * inverse_N[taught_M, None]
        # Each chosen log-probability subtracts one log-sum-exp, whose gradient is p.
        total_N = target_N.index_add(0, taught_M, kept_MK.sum(-1))
        # x_NV holds exp(x - largest) = p sum; in place it becomes -p sum(g) / tau.
        x_NV.mul_((-total_N / sum_N)[:, None])
        # Two scatters, each without duplicates: a target may be among the kept ids.
        x_NV.scatter_add_(1, targets_N[:, None], target_N[:, None])
        x_NV.view(-1).index_add_(0, flat_MK.view(-1), kept_MK.reshape(-1))
        bias_V = x_NV.sum(0) if ctx.head.bias_V is not None else None
        # x_NV is the logits' gradient now. Two products finish it, in the precision of the first.
        if ctx.head.bfloat16:
            x_NV, hidden_ND, weight_VD = (t.bfloat16() for t in (x_NV, hidden_ND, weight_VD))
        d_hidden = x_NV @ weight_VD.to(x_NV.dtype)
        d_weight = x_NV.T @ hidden_ND if ctx.needs_input_grad[2] else None
        wide = grads[0].dtype
        return (
            None,
            d_hidden.to(wide),
            None if d_weight is None else d_weight.to(wide),
            bias_V,
            *[None] * 4,
        )


def _product_NV(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """Return hidden @ weight.T; for few rows by columns, which is a quarter quicker on CPUs."""
    rows, vocabulary = len(hidden_ND), len(weight_VD)
    step = _COLUMNS if rows <= _FEW_ROWS else vocabulary
    product_NV = hidden_ND.new_empty(rows, vocabulary)
    for start in range(0, vocabulary, step):
        columns = slice(start, start + step)
        torch.mm(hidden_ND, weight_VD[columns].T, out=product_NV[:, columns])
    return product_NV


def _softmax_in_place(x_NV: Tensor, temperature_N: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits into exp(logits / tau - largest); return log-sum-exp and the sum of that."""
    log_sums, sums = [], []
    for rows in _row_blocks(x_NV):
        largest_n1 = cool_(x_NV[rows], temperature_N[rows])  # x_NV[rows] is a view, changed too
        sum_n = x_NV[rows].exp_().sum(-1)
        sums.append(sum_n)
        log_sums.append(sum_n.log() + largest_n1[:, 0])
    return torch.cat(log_sums), torch.cat(sums)


def _describe_block(
    x_nV: Tensor, targets_n: Tensor, temperature_n: Tensor, kept: int | Tensor
) -> Distribution:
    cool_(x_nV, temperature_n)  # from here on the largest is 0, and no exp overflows
    target_n = x_nV.gather(1, targets_n[:, None])[:, 0]
    if isinstance(kept, int):
        kept_nK, ids_nK = _likeliest(x_nV, kept)
    else:
        kept_nK, ids_nK = x_nV.gather(1, kept), kept
    weights_nV = x_nV.exp()
    log_sum_n = weights_nV.sum(-1).log()
    logprobs_nK = kept_nK - log_sum_n[:, None]
    whole = logprobs_nK.shape[-1] == x_nV.shape[-1]  # K = V: nothing is left for a tail
    return Distribution(
        target_n - log_sum_n,
        entropy_N(x_nV, weights_nV),
        ids_nK,
        logprobs_nK,
        torch.full_like(log_sum_n, -torch.inf) if whole else log_tail_N(logprobs_nK),
    )


def _likeliest(x_nV: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Return the `kept` largest values and their ids, largest first; as topk, in one quick pass.

    The K largest lie in the K parts of the vocabulary with the largest maxima, so only these are
    searched.
    """
    vocabulary = x_nV.shape[-1]
    parts = vocabulary // _PART
    if x_nV.is_cuda or parts < 4 * kept:
        found = x_nV.topk(kept, dim=-1)
        return found.values, found.indices
    # V = Q X and a rest, with Q parts of X ids; the rest is always searched.
    head, rest = x_nV[:, : parts * _PART], x_nV[:, parts * _PART :]
    # [n, Q, X] to maxima [n, Q] to the K parts to search. Ascending, so that among equal values
    # the candidates stand in the order of their ids.
    chosen_nK = head.reshape(len(head), parts, _PART).amax(-1).topk(kept, dim=-1).indices
    chosen_nK = chosen_nK.sort(-1).values
    # J = K X candidates
    ids_nJ = (chosen_nK[:, :, None] * _PART + torch.arange(_PART, device=x_nV.device)).flatten(1)
    values_nJ = torch.cat([head.gather(1, ids_nJ), rest], dim=-1)
    found = values_nJ.topk(kept, dim=-1)
    last = torch.arange(parts * _PART, vocabulary, device=x_nV.device).expand(len(x_nV), -1)
    return found.values, torch.cat([ids_nJ, last], dim=-1).gather(1, found.indices)


def _row_blocks(x_NV: Tensor) -> Iterator[slice]:
    """Yield blocks of rows that fit into a processor's cache; on a GPU, all rows at once."""
    bytes_per_row = x_NV.shape[-1] * x_NV.element_size()
    size = len(x_NV) if x_NV.is_cuda else _BLOCK_BYTES // bytes_per_row
    size = max(size, 1)
    return (slice(i, i + size) for i in range(0, max(len(x_NV), 1), size))
