"""Decoding: next-token logits of many responses, one token of each per step.

`SharedPromptDecoder` keeps each prompt's keys and values once for all of its responses, and the
responses' own in buffers that are written in place. `PaddedDecoder` is for models that can't share
prompts: it copies transformers' cache of the prompt to every response. `MixedDecoder` is for a
teacher that mixes the logits of two models.
"""

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from pipeline.distributed.sharding import encoder_of
from pipeline.forward.attention import Layout, laid_out_hidden
from pipeline.forward.packing import TokenSequence, packed_row
from pipeline.forward.projection import logits_NV
from pipeline.forward.scoring import Component
from pipeline.policy.policy import Policy

_GROWTH = 128


class Decoder(Protocol):
    """Next-token logits of a batch of responses."""

    def start(self) -> Tensor:
        """Encode the prompts; return logits [B, V], one row per response."""

    def step(self, tokens_B: Tensor) -> Tensor:
        """Append a token to each response and return the next logits [B, V]."""

    def keep(self, rows_B: Tensor) -> None:
        """Drop all rows but these, which are in ascending order."""


def make_decoder(
    policy: Policy,
    components: Sequence[Component],
    prompts: Sequence[Sequence[int]],
    sizes: Sequence[int],
    longest: int,
) -> Decoder:
    """Return a decoder for `sizes[i]` responses to prompt i, of at most `longest` tokens.

    Args:
        components: of the policy's models those that speak; several mix their logits.
    """
    decoders = [
        PaddedDecoder(policy, model, prompts, sizes)
        if policy.unshared
        else SharedPromptDecoder(policy, model, prompts, sizes, longest)
        for model, _ in components
    ]
    if len(decoders) == 1:
        return decoders[0]
    return MixedDecoder(decoders, [coefficient for _, coefficient in components])


class MixedDecoder:
    """Responses of several models together: their logits, summed with coefficients."""

    def __init__(self, decoders: Sequence[Decoder], coefficients: Sequence[float]) -> None:
        self._decoders, self._coefficients = decoders, coefficients

    def start(self) -> Tensor:
        """Encode the prompts with every model; return their mixed logits."""
        return self._mixed([decoder.start() for decoder in self._decoders])

    def step(self, tokens_B: Tensor) -> Tensor:
        """Append a token to each response and return the next mixed logits."""
        return self._mixed([decoder.step(tokens_B) for decoder in self._decoders])

    def keep(self, rows_B: Tensor) -> None:
        """Drop all rows but these."""
        for decoder in self._decoders:
            decoder.keep(rows_B)

    def _mixed(self, logits: Sequence[Tensor]) -> Tensor:
        pairs = zip(self._coefficients, logits, strict=True)
        return torch.stack([coefficient * found for coefficient, found in pairs]).sum(0)


class SharedPromptDecoder:
    """Responses behind shared prompts (a `Layout` with one position per response).

    Rows [B] are the responses that are still decoded, prompt after prompt. Matrix products need
    equally many responses for each prompt, so rows are also laid out as slots [P, G]: a prompt with
    fewer responses than others repeats its last one, and the results of repeats are never read.

    Of layer l, `_before[l]` are the prompts' keys and values, [P, H_kv, S, d], padded on the right
    to the longest prompt, and `_own[l]` the responses', [P, H_kv, G, room, d], of which the first
    `_written` positions are in use.
    """

    def __init__(
        self,
        policy: Policy,
        model: Any,
        prompts: Sequence[Sequence[int]],
        sizes: Sequence[int],
        longest: int,
    ) -> None:
        self._model, self._longest = model, longest
        self._forward = policy.forward(megabytes=1)
        self._device = policy.device
        self._prompts = [list(p) for p in prompts]
        self._owner = [i for i, size in enumerate(sizes) for _ in range(size)]  # [B]: its prompt
        self._before: dict[int, _KeysValues] = {}
        self._own: dict[int, _KeysValues] = {}
        self._written = 0
        self._arrange()

    def start(self) -> Tensor:
        """Encode each prompt once, in one packed row, and keep its keys and values.

        Equal prompts of several questions are encoded once and copied.
        """
        distinct: dict[tuple[int, ...], int] = {}
        which = [distinct.setdefault(tuple(p), len(distinct)) for p in self._prompts]
        row = packed_row([TokenSequence(list(p), []) for p in distinct], self._device)
        lengths = [len(p) for p in distinct]
        capture = _Capture(row, lengths)
        hidden_LD = self._hidden(capture, self._tensor(row.ids), self._tensor(row.positions))
        self._before = capture.found
        if len(distinct) < len(which):
            which_P = self._tensor(which)
            self._before = {
                layer: _KeysValues(*[t[which_P] for t in found])
                for layer, found in capture.found.items()
            }
        # The last position of each prompt predicts the first response token.
        logits_PV = self._logits(hidden_LD[self._tensor(lengths).cumsum(0) - 1])
        return logits_PV[self._tensor([which[owner] for owner in self._owner])]

    def step(self, tokens_B: Tensor) -> Tensor:
        """Append a token to each response and return the next logits."""
        self._masks: dict[int | None, Tensor | None] = {}  # of this step: layers share them
        # The network sees one row of B positions; only `attend` keeps the responses apart.
        hidden_BD = self._hidden(self, tokens_B, self._starts_B + self._written)
        self._written += 1
        return self._logits(hidden_BD)

    def keep(self, rows_B: Tensor) -> None:
        """Drop all rows but these, and prompts that have no rows left."""
        owners = [self._owner[row] for row in rows_B.tolist()]
        prompts = sorted(set(owners))
        place_B = (
            self._slot_B[rows_B] % self._places_PG.shape[1]
        )  # g of each slot (p, g), as of now
        self._owner = [prompts.index(owner) for owner in owners]
        self._prompts = [self._prompts[i] for i in prompts]
        self._arrange()
        # `_arrange` made the slots anew: `_places_PG` says which kept row each of them shows, and
        # `place_B` where that row's keys and values lie in the old buffers.
        kept_P, place_PG = self._tensor(prompts), place_B[self._places_PG]
        # Before the first step there are prompts alone: responses may end with their first token.
        for layer, before in self._before.items():
            self._before[layer] = _KeysValues(*[t[kept_P] for t in before])
        for layer in self._own:
            # [P, 1] and [P, G] index axes 0 and 2, so indexing gives [P, G, H_kv, room, d].
            self._own[layer] = _KeysValues(
                *[t[kept_P[:, None], :, place_PG].transpose(1, 2) for t in self._own[layer]]
            ).contiguous()

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

        The row [1, H, B, d] holds one position of each response. Scores against the prompt's keys
        and against the response's own are two products, normalised by one softmax in float32. R =
        H / H_kv query heads share a head of keys, so that the G R queries of all responses of a
        prompt meet its keys in one product, and these are never copied for each response.
        """
        heads, _, width = query.shape[1:]
        shared, (prompts, group) = key.shape[1], self._places_PG.shape  # H_kv, (P, G)
        # The new position counts among the `window` that it sees.
        first = 0 if window is None else max(0, self._written + 1 - window)
        # [P H_kv, S, d]
        before_k, before_v = (t.flatten(0, 1) for t in self._before[layer])
        # [P H_kv G, T, d], with T the response's positions in the window, this one included
        own_k, own_v = (
            t.flatten(0, 2)[:, first : self._written + 1] for t in self._append(layer, key, value)
        )
        # [P G, H, d] to [P, G, H_kv, R, d] to [P, H_kv, G, R, d]; scaled once, before both products
        query_PHGRd = (
            self._slots(query)
            .mul(width**-0.5 if scaling is None else scaling)
            .reshape(prompts, group, shared, -1, width)
            .transpose(1, 2)
            .contiguous()
        )
        by_prompt = query_PHGRd.view(prompts * shared, -1, width)  # [P H_kv, G R, d]
        by_slot = query_PHGRd.view(prompts * shared * group, -1, width)  # [P H_kv G, R, d]
        before = torch.bmm(by_prompt, before_k.transpose(1, 2))  # [P H_kv, G R, S]
        mask_P1S = self._mask(window, before.shape[-1])
        if mask_P1S is not None:
            before.view(prompts, -1, before.shape[-1]).add_(mask_P1S)  # [P, H_kv G R, S]
        own = torch.bmm(by_slot, own_k.transpose(1, 2))  # [P H_kv G, R, T]
        scores = torch.cat([before.view(*own.shape[:2], -1), own], dim=-1)  # [P H_kv G, R, S + T]
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        split = before.shape[-1]
        seen = torch.bmm(weights[..., :split].reshape(before.shape), before_v)  # [P H_kv, G R, d]
        output = torch.baddbmm(seen.view(by_slot.shape), weights[..., split:], own_v)
        by_row = output.view(prompts, shared, group, -1, width).transpose(1, 2)
        rows = by_row.reshape(prompts * group, heads, width)  # [P G, H, d], slot after slot
        # Back to rows: drop the slots that repeat one.
        return (rows if self._even else rows[self._slot_B])[None]

    def _arrange(self) -> None:
        """Lay out rows as slots [P, G], and note where their prompts end.

        `_places_PG` is the row that each slot shows, `_slot_B` the slot (p G + g) of each row;
        they are the identity if `_even`: every prompt has as many rows.
        """
        counts = [len(list(members)) for _, members in groupby(self._owner)]
        starts, most = [0, *accumulate(counts)], max(counts)
        self._even = min(counts) == most
        self._places_PG = self._tensor(
            [
                [start + min(i, count - 1) for i in range(most)]
                for start, count in zip(starts, counts, strict=False)
            ]
        )
        self._slot_B = self._tensor(
            [p * most + i for p, count in enumerate(counts) for i in range(count)]
        )
        self._lengths_P = self._tensor([len(p) for p in self._prompts])
        self._starts_B = self._lengths_P[self._tensor(self._owner)]
        self._shortest = min(map(len, self._prompts))

    def _slots(self, tensor: Tensor) -> Tensor:
        """Return one position per slot: [1, heads, B, d] to [P * G, heads, d]."""
        rows = tensor[0].transpose(0, 1)
        return rows if self._even else rows[self._places_PG.view(-1)]

    def _mask(self, window: int | None, longest: int) -> Tensor | None:
        """Return what hides padding and keys out of the window: 0 or -inf, [P, 1, S], or None."""
        if window not in self._masks:
            out_PS = None
            if self._shortest < longest or window is not None:
                keys_S = torch.arange(longest, device=self._device)
                out_PS = keys_S >= self._lengths_P[:, None]  # padding
                if window is not None:
                    # The query stands at length + written and sees the `window` keys up to itself.
                    out_PS |= keys_S <= self._lengths_P[:, None] + self._written - window
                zeros_PS = torch.zeros(out_PS.shape, device=self._device)
                out_PS = zeros_PS.masked_fill(out_PS, -torch.inf)[:, None]
            self._masks[window] = out_PS
        return self._masks[window]

    def _append(self, layer: int, key: Tensor, value: Tensor) -> "_KeysValues":
        """Write a position's keys and values into the layer's buffers, and return these."""
        prompts, group = self._places_PG.shape
        rows = [self._slots(t) for t in (key, value)]  # [P G, H_kv, d]
        # [P, H_kv, G, d]
        new = [t.reshape(prompts, group, *t.shape[1:]).transpose(1, 2) for t in rows]
        own = self._own.get(layer)
        if own is None or own.key.shape[3] == self._written:
            # Buffers double when they are full, so that all copies together stay linear.
            room = min(self._written + max(self._written, _GROWTH), self._longest)
            larger = _KeysValues(*[t.new_zeros(*t.shape[:3], room, t.shape[3]) for t in new])
            for fresh, old in zip(larger, own or (), strict=False):
                fresh[:, :, :, : self._written] = old
            own = self._own[layer] = larger
        own.key[:, :, :, self._written] = new[0]
        own.value[:, :, :, self._written] = new[1]
        return own

    def _hidden(self, layout: Layout, ids_L: Tensor, positions_L: Tensor) -> Tensor:
        with self._forward.autocast():
            encoder = encoder_of(self._model)
            return laid_out_hidden(encoder, layout, ids_L[None], positions_L[None])[0]

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        return logits_NV(self._forward.head(self._model), hidden_BD)

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, device=self._device)


class _KeysValues(NamedTuple):
    """Keys and values of one layer."""

    key: Tensor
    value: Tensor

    def contiguous(self) -> "_KeysValues":
        """Return copies whose dimensions are in order in memory."""
        return _KeysValues(self.key.contiguous(), self.value.contiguous())


class _Capture:
    """The layout of a packed row of prompts that keeps their keys and values by layer."""

    def __init__(self, row: Any, lengths: Sequence[int]) -> None:
        self.row, self._lengths = row, list(lengths)
        self.found: dict[int, _KeysValues] = {}

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
        self.found[layer] = _KeysValues(self._by_prompt(key), self._by_prompt(value))
        output: Tensor = self.row.attend(layer, query, key, value, scaling, window)
        return output

    def _by_prompt(self, tensor_1HLd: Tensor) -> Tensor:
        """Return [P, H_kv, longest, d], padded with zeros."""
        parts = torch.split(tensor_1HLd[0].transpose(0, 1), self._lengths)  # each [S, H_kv, d]
        # [P, S, H_kv, d]
        padded = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
        return padded.transpose(1, 2).contiguous()


class PaddedDecoder:
    """Responses with their own copy of their prompt's cache, as transformers keeps it."""

    def __init__(
        self,
        policy: Policy,
        model: Any,
        prompts: Sequence[Sequence[int]],
        sizes: Sequence[int],
    ) -> None:
        self._policy, self._model = policy, model
        self._prompts, self._sizes = prompts, sizes
        self._cache: Any = DynamicCache(config=model.config)
        self._mask_BS = torch.empty(0)

    def start(self) -> Tensor:
        """Encode each prompt once, padded on the left, and copy its cache to its responses."""
        longest = max(map(len, self._prompts))
        # On the left, so that the last position is every prompt's last token.
        ids_PS = torch.zeros(len(self._prompts), longest, dtype=torch.long)
        mask_PS = torch.zeros_like(ids_PS)
        for row, prompt in enumerate(self._prompts):
            ids_PS[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_PS[row, longest - len(prompt) :] = 1
        device = self._policy.device
        self._mask_BS = mask_PS.to(device)
        logits_PV = self._logits(ids_PS.to(device))
        index_B = torch.repeat_interleave(torch.tensor(self._sizes)).to(device)
        self._cache.batch_select_indices(index_B)
        self._mask_BS = self._mask_BS[index_B]
        return logits_PV[index_B]

    def step(self, tokens_B: Tensor) -> Tensor:
        """Append a token to each response and return the next logits."""
        self._mask_BS = torch.cat([self._mask_BS, self._mask_BS.new_ones(len(tokens_B), 1)], dim=1)
        return self._logits(tokens_B[:, None])

    def keep(self, rows_B: Tensor) -> None:
        """Drop all rows but these."""
        self._mask_BS = self._mask_BS[rows_B]
        self._cache.batch_select_indices(rows_B)

    def _logits(self, ids_BL: Tensor) -> Tensor:
        # Padding doesn't count: a position is the number of real tokens before it. The mask covers
        # all S positions of the cache, the ids only the L new ones.
        positions_BL = (self._mask_BS.cumsum(-1) - 1).clamp(min=0)[:, -ids_BL.shape[1] :]
        with self._policy.forward(megabytes=1).autocast():
            output = self._model(
                input_ids=ids_BL,
                attention_mask=self._mask_BS,
                position_ids=positions_BL,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV
