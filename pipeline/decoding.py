"""Decoding: next-token logits of many responses, a token of each at a time.

`Branches` keeps each prompt's keys and values once for all of its responses, and the responses'
own in buffers that are written in place. `Spread` is for models that can't have that: it copies
transformers' cache to every response.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from pipeline.attention import laid_out_hidden
from pipeline.packing import TokenSequence, packed_row
from pipeline.policy import Policy
from pipeline.projection import logits_NV

_GROWTH = 128


class Decoder(Protocol):
    """Next-token logits of a batch of responses."""

    def start(self) -> Tensor:
        """Encode the prompts; return logits [B, V], one row per response."""

    def step(self, tokens_B: Tensor) -> Tensor:
        """Append a token to each response and return the next logits [B, V]."""

    def keep(self, rows_B: Tensor) -> None:
        """Go on with these rows only (ascending)."""


def decoder_of(
    policy: Policy, prompts: Sequence[Sequence[int]], sizes: Sequence[int], longest: int
) -> Decoder:
    """Return a decoder of `sizes[i]` responses, of `longest` tokens at most, to each prompt."""
    if policy.unshared:
        return Spread(policy, prompts, sizes)
    return Branches(policy, prompts, sizes, longest)


class Branches:
    """Responses that branch off shared prompts (a `Layout` of one token per response).

    Attributes of layer l: `_before[l]` keys and values of the prompts, [P, H_kv, S, d], padded on
    the right; `_own[l]` those of the responses, [B, H_kv, room, d], `_written` of them in use.
    """

    def __init__(
        self, policy: Policy, prompts: Sequence[Sequence[int]], sizes: Sequence[int], longest: int
    ) -> None:
        self._model, self._longest = policy.model, longest
        self._forward = policy.forward(megabytes=1)
        self._device = policy.device
        self._prompts = [list(p) for p in prompts]
        self._owner = [i for i, size in enumerate(sizes) for _ in range(size)]
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: dict[int, tuple[Tensor, Tensor]] = {}
        self._written = 0
        self._arrange()

    def start(self) -> Tensor:
        """Encode each prompt once, in one packed row, and keep its keys and values."""
        rows = [TokenSequence(p, []) for p in self._prompts]
        capture = _Capture(packed_row(rows, self._device), [len(p) for p in self._prompts])
        hidden_LD = self._hidden(capture, capture.row.ids, capture.row.positions)
        self._before = capture.found
        ends = torch.tensor([len(p) for p in self._prompts], device=self._device).cumsum(0) - 1
        logits_PV = self._logits(hidden_LD[ends])
        return logits_PV[torch.tensor(self._owner, device=self._device)]

    def step(self, tokens_B: Tensor) -> Tensor:
        """Append a token to each response and return the next logits."""
        ids_1B, positions_1B = tokens_B[None], (self._starts_B + self._written)[None]
        self._masks: dict[int | None, tuple[Tensor | None, int]] = {}
        with self._forward.autocast():
            hidden_BD = laid_out_hidden(self._model.get_decoder(), self, ids_1B, positions_1B)[0]
        self._written += 1
        return self._logits(hidden_BD)

    def keep(self, rows_B: Tensor) -> None:
        """Go on with these rows only; prompts without rows are dropped."""
        kept = rows_B.tolist()
        prompts = sorted({self._owner[row] for row in kept})
        new = {old: place for place, old in enumerate(prompts)}
        self._owner = [new[self._owner[row]] for row in kept]
        self._prompts = [self._prompts[i] for i in prompts]
        index_P = torch.tensor(prompts, device=self._device)
        for layer, (key, value) in self._own.items():
            self._own[layer] = key.index_select(0, rows_B), value.index_select(0, rows_B)
            before_k, before_v = self._before[layer]
            self._before[layer] = before_k[index_P], before_v[index_P]
        self._arrange()

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """Attend from one new position per response to its prompt and to itself.

        The row [1, H, B, d] holds one position of each response. Prompt and own keys are scored
        apart, weighed by one softmax in float32, and their values added.
        """
        heads, rows, width = query.shape[1:]
        shared = key.shape[1]
        own_k, own_v = self._append(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
        before_k, before_v = self._before[layer]
        scale = width**-0.5 if scaling is None else scaling
        # [B, H, d]; heads that share keys stand together.
        query_BHD = query[0].transpose(0, 1) * scale
        hidden, first = self._mask(window)
        end = self._written + 1
        own_scores = query_BHD.reshape(rows, shared, -1, width) @ own_k[:, :, first:end].transpose(
            2, 3
        )
        grouped_PSQD = self._to_prompts(query_BHD, shared)
        before_scores = self._from_prompts(grouped_PSQD @ before_k.transpose(2, 3), heads)
        if hidden is not None:
            before_scores = before_scores + hidden
        scores = torch.cat([before_scores, own_scores.reshape(rows, heads, -1)], dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        split = before_scores.shape[-1]
        before = self._from_prompts(
            self._to_prompts(weights[..., :split], shared) @ before_v, heads
        )
        own = (
            weights[..., split:].reshape(rows, shared, heads // shared, -1) @ own_v[:, :, first:end]
        )
        return (before + own.reshape(rows, heads, width))[None]

    def _arrange(self) -> None:
        """Work out which rows belong to which prompt, and how long that is."""
        counts = [len(list(members)) for _, members in groupby(self._owner)]
        most = max(counts)
        self._even = min(counts) == most
        places = [
            [start + min(i, count - 1) for i in range(most)]
            for start, count in zip(_starts(counts), counts, strict=True)
        ]
        flat = [p * most + i for p, count in enumerate(counts) for i in range(count)]
        self._places_PQ = torch.tensor(places, device=self._device)
        self._flat_B = torch.tensor(flat, device=self._device)
        lengths = [len(p) for p in self._prompts]
        self._lengths_P = torch.tensor(lengths, device=self._device)
        self._starts_B = self._lengths_P[torch.tensor(self._owner, device=self._device)]
        self._padded = min(lengths) < max(lengths)

    def _to_prompts(self, tensor_BHX: Tensor, shared: int) -> Tensor:
        """Gather [B, H, x] by prompt: [P, H_kv, rows of the prompt x heads of the key, x]."""
        prompts, most = self._places_PQ.shape
        if not self._even:
            tensor_BHX = tensor_BHX[self._places_PQ.view(-1)]
        width = tensor_BHX.shape[-1]
        by_prompt = tensor_BHX.reshape(prompts, most, shared, -1, width).transpose(1, 2)
        return by_prompt.reshape(prompts, shared, -1, width)

    def _from_prompts(self, tensor_PSQX: Tensor, heads: int) -> Tensor:
        """Undo `_to_prompts`."""
        prompts, shared, _, width = tensor_PSQX.shape
        rows = tensor_PSQX.reshape(prompts, shared, -1, heads // shared, width).transpose(1, 2)
        flat = rows.reshape(-1, heads, width)
        return flat if self._even else flat[self._flat_B]

    def _mask(self, window: int | None) -> tuple[Tensor | None, int]:
        """Return what hides prompt keys [B, 1, S] (0 or -inf), and the first own key in sight."""
        if window not in self._masks:
            first = 0 if window is None else max(0, self._written + 1 - window)
            hidden = None
            if self._padded or window is not None:
                longest = int(self._before[next(iter(self._before))][0].shape[2])
                keys_S = torch.arange(longest, device=self._device)
                starts_B1 = self._starts_B[:, None]
                out_BS = keys_S >= starts_B1
                if window is not None:
                    out_BS |= keys_S <= starts_B1 + self._written - window
                hidden = torch.zeros(out_BS.shape, device=self._device)
                hidden = hidden.masked_fill(out_BS, -torch.inf)[:, None]
            self._masks[window] = hidden, first
        return self._masks[window]

    def _append(self, layer: int, key_BSD: Tensor, value_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Write a position's keys and values into the layer's buffers, and return these."""
        own = self._own.get(layer)
        if own is None or own[0].shape[2] == self._written:
            room = min(self._written + max(self._written, _GROWTH), self._longest)
            fresh = [t.new_empty(*t.shape[:2], room, t.shape[2]) for t in (key_BSD, value_BSD)]
            for new, old in zip(fresh, own or (), strict=False):
                new[:, :, : self._written] = old
            own = fresh[0], fresh[1]
            self._own[layer] = own
        own[0][:, :, self._written] = key_BSD
        own[1][:, :, self._written] = value_BSD
        return own

    def _hidden(self, layout: "_Capture", ids: list[int], positions: list[int]) -> Tensor:
        ids_1L, positions_1L = (torch.tensor([x], device=self._device) for x in (ids, positions))
        with self._forward.autocast():
            return laid_out_hidden(self._model.get_decoder(), layout, ids_1L, positions_1L)[0]

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        return logits_NV(self._forward.head(self._model), hidden_BD)


class _Capture:
    """The layout of a packed row of prompts that keeps their keys and values by layer."""

    def __init__(self, row: Any, lengths: Sequence[int]) -> None:
        self.row, self._lengths = row, list(lengths)
        self.found: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """Attend as the packed row does."""
        self.found[layer] = self._by_prompt(key), self._by_prompt(value)
        output: Tensor = self.row.attend(layer, query, key, value, scaling, window)
        return output

    def _by_prompt(self, tensor_1SLD: Tensor) -> Tensor:
        """Return [P, H_kv, longest, d], padded with zeros."""
        parts = torch.split(tensor_1SLD[0].transpose(0, 1), self._lengths)
        padded = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
        return padded.transpose(1, 2).contiguous()


class Spread:
    """Responses with a copy each of their prompt's cache, as transformers keeps it."""

    def __init__(
        self, policy: Policy, prompts: Sequence[Sequence[int]], sizes: Sequence[int]
    ) -> None:
        self._policy, self._prompts, self._sizes = policy, prompts, sizes
        self._cache: Any = DynamicCache(config=policy.model.config)
        self._mask_BT = torch.empty(0)

    def start(self) -> Tensor:
        """Encode each prompt once, padded on the left, and spread its cache over its responses."""
        longest = max(map(len, self._prompts))
        ids_PT = torch.zeros(len(self._prompts), longest, dtype=torch.long)
        mask_PT = torch.zeros_like(ids_PT)
        for row, prompt in enumerate(self._prompts):
            ids_PT[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_PT[row, longest - len(prompt) :] = 1
        device = self._policy.device
        self._mask_BT = mask_PT.to(device)
        logits_PV = self._logits(ids_PT.to(device))
        index_B = torch.repeat_interleave(torch.tensor(self._sizes)).to(device)
        self._cache.batch_select_indices(index_B)
        self._mask_BT = self._mask_BT[index_B]
        return logits_PV[index_B]

    def step(self, tokens_B: Tensor) -> Tensor:
        """Append a token to each response and return the next logits."""
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones(len(tokens_B), 1)], dim=1)
        return self._logits(tokens_B[:, None])

    def keep(self, rows_B: Tensor) -> None:
        """Go on with these rows only."""
        self._mask_BT = self._mask_BT[rows_B]
        self._cache.batch_select_indices(rows_B)

    def _logits(self, ids_BT: Tensor) -> Tensor:
        positions_BT = (self._mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        with self._policy.forward(megabytes=1).autocast():
            output = self._policy.model(
                input_ids=ids_BT,
                attention_mask=self._mask_BT,
                position_ids=positions_BT,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV


def _starts(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:i]) for i in range(len(counts))]
