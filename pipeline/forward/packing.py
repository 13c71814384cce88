"""Packed rows: sequences that share a prompt stand side by side after one copy of it.

A row is [prompt, response 1, …, response G] for each distinct prompt, one after the other, without
padding. The last token of a response predicts nothing and is left out; the first is predicted by
the prompt's last position, which all responses of the prompt share. Sequences encoded so have the
same log-probabilities and gradients as apart (shown for attention in arXiv:2506.05433).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.forward.attention import causal, masked


class TokenSequence(NamedTuple):
    """A prompt and the response tokens that are scored after it."""

    prompt_ids: list[int]
    response_ids: list[int]


class Block(NamedTuple):
    """Neighbours in a row that attend together: their prompt, and responses of similar length.

    Attributes:
        prompt: where the prompt's positions are in the row.
        start: row position of the first response.
        lengths: positions of each response in the row, longest first.
    """

    prompt: slice
    start: int
    lengths: tuple[int, ...]

    @property
    def end(self) -> int:
        """Return the row position after the last response."""
        return self.start + sum(self.lengths)


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices so that each group's padded size (longest x count) keeps within `budget`.

    For models whose prompts can't be shared. Longest first, ties in order, so that padding is
    small. A sequence longer than the budget is a group of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def pack_shared(sequences: Sequence[TokenSequence], budget: int, enough: int) -> list[list[int]]:
    """Group indices so that each group's packed row keeps within `budget` tokens.

    Sequences of one prompt stay together as far as they fit; a prompt whose sequences fill more
    than a row is encoded again in each of its rows. A sequence longer than the budget is a row of
    its own.

    Args:
        enough: tokens beyond which a row takes no further prompt, though the budget may.
    """
    rows: list[list[int]] = []
    filled = 0
    for members in _by_prompt(sequences).values():
        prompt = len(sequences[members[0]].prompt_ids)
        sizes = [_fed(sequences[i]) for i in members]
        if not rows or filled + prompt + sum(sizes) > min(budget, enough):
            rows.append([])
            filled = 0
        open_here = False  # whether this row holds the prompt already
        for index, size in zip(members, sizes, strict=True):
            needed = size if open_here else prompt + size
            if rows[-1] and filled + needed > budget:
                # In a new row the prompt must be encoded again.
                rows.append([])
                filled, needed = 0, prompt + size
            rows[-1].append(index)
            filled, open_here = filled + needed, True
    return [row for row in rows if row]


def packed_tokens(sequences: Sequence[TokenSequence]) -> int:
    """Return the positions of the packed row of some sequences."""
    prompts = {tuple(s.prompt_ids) for s in sequences}
    return sum(map(len, prompts)) + sum(map(_fed, sequences))


def consecutive_slices(lengths: Sequence[int]) -> list[slice]:
    """Return where each of some sequences lies when they stand one after the other."""
    return [slice(start, end) for start, end in pairwise([0, *accumulate(lengths)])]


def response_targets_N(sequences: Sequence[TokenSequence], device: torch.device) -> Tensor:
    """Return the response tokens of all sequences, one after the other."""
    targets = [t for s in sequences for t in s.response_ids]
    return torch.tensor(targets, dtype=torch.long, device=device)


@dataclass(frozen=True)
class PackedRow:
    """One packed row of sequences, and the attention in it (a `Layout`).

    Attributes:
        ids: tokens of the row; positions: their places in their own sequences.
        blocks: in row order, covering all of the row with their prompts.
        predicting: for each response token, sequence after sequence in the order given, the row
            position whose hidden state predicts it.
    """

    ids: list[int]
    positions: list[int]
    blocks: list[Block]
    predicting: list[int]
    device: torch.device

    @cached_property
    def _masks(self) -> dict[tuple[int, int, int | None], Tensor]:
        return {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """Return the attention's output (see `Layout.attend`): prompts once, responses after."""
        parts = []  # each [positions, H, d], in row order
        seen = 0  # positions of the row that have their output
        for block in self.blocks:
            # A prompt's first block attends for the prompt, too; a later block finds that done.
            if block.prompt.start >= seen:
                # One response alone is a plain causal sequence with its prompt: one kernel call.
                whole = len(block.lengths) <= 1
                part = slice(block.prompt.start, block.end) if whole else block.prompt
                parts.append(self._run(query, key, value, part, scaling, window)[0].transpose(0, 1))
                seen = part.stop
                if whole:
                    continue
            if block.end == block.start:
                continue
            parts.append(self._branches(query, key, value, block, scaling, window))
            seen = block.end
        return torch.cat(parts)[None]

    def _run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        part: slice,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """Attend causally within one stretch of the row; [1, H, length, d]."""
        q, k, v = query[:, :, part], key[:, :, part], value[:, :, part]  # [1, H or H_kv, L, d]
        length = part.stop - part.start
        if window is None or length <= window:
            return causal(q, k, v, scaling)
        return masked(q, k, v, self._mask(0, length, window), scaling)

    def _branches(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        block: Block,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """Attend from each response to its prompt and itself; [positions, H, d] in row order."""
        count, longest = len(block.lengths), block.lengths[0]  # G, L
        # [G, H_kv, L, d], padded on the right
        own_k, own_v = (_spread(t[0, :, block.start : block.end], block) for t in (key, value))
        # [G, H_kv, S, d]: views of the prompt's keys and values, one for each response
        before = [t[:, :, block.prompt].expand(count, -1, -1, -1) for t in (key, value)]
        output = masked(
            _spread(query[0, :, block.start : block.end], block),
            torch.cat([before[0], own_k], dim=2),
            torch.cat([before[1], own_v], dim=2),
            self._mask(block.prompt.stop - block.prompt.start, longest, window),
            scaling,
        )
        flat = output.transpose(1, 2)  # [G, H, L, d] to [G, L, H, d]
        if block.lengths[-1] == longest:
            return flat.flatten(0, 1)
        return torch.cat([flat[i, :length] for i, length in enumerate(block.lengths)])

    def _mask(self, before: int, length: int, window: int | None) -> Tensor:
        """Return who sees whom, [L, S]: query l stands at before + l, key s at s; True: seen.

        Padding needs no mask: it follows every real query, so that causality hides it.
        """
        wanted = (before, length, window)
        if wanted not in self._masks:
            at_L1 = before + torch.arange(length, device=self.device)[:, None]
            keys_S = torch.arange(before + length, device=self.device)
            seen_LS = keys_S <= at_L1
            if window is not None:
                seen_LS &= keys_S > at_L1 - window
            self._masks[wanted] = seen_LS
        return self._masks[wanted]


def packed_row(sequences: Sequence[TokenSequence], device: torch.device) -> PackedRow:
    """Return the packed row of some sequences, prompts in the order of their first use."""
    ids: list[int] = []
    positions: list[int] = []
    blocks: list[Block] = []
    predicting: list[range | list[int]] = [[] for _ in sequences]
    for members in _by_prompt(sequences).values():
        prompt_ids = sequences[members[0]].prompt_ids
        prompt = slice(len(ids), len(ids) + len(prompt_ids))
        ids.extend(prompt_ids)
        positions.extend(range(len(prompt_ids)))
        for similar in _similar([(_fed(sequences[i]), i) for i in members]):
            blocks.append(Block(prompt, len(ids), tuple(length for length, _ in similar)))
            for length, index in similar:
                response = sequences[index].response_ids
                own = range(len(ids), len(ids) + length)
                # The prompt's last position predicts the first token, each token the one after.
                predicting[index] = [prompt.stop - 1, *own] if response else []
                ids.extend(response[:length])
                positions.extend(range(len(prompt_ids), len(prompt_ids) + length))
    flat = [position for one in predicting for position in one]
    return PackedRow(ids, positions, blocks, flat, device)


def _by_prompt(sequences: Sequence[TokenSequence]) -> dict[tuple[int, ...], list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        groups.setdefault(tuple(sequence.prompt_ids), []).append(index)
    return groups


def _similar(lengths: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield (length, index) pairs longest first, in blocks whose shortest is over half."""
    block: list[tuple[int, int]] = []
    for length, index in sorted(lengths, key=lambda pair: (-pair[0], pair[1])):
        if block and 2 * length <= block[0][0]:
            yield block
            block = []
        block.append((length, index))
    yield block


def _fed(sequence: TokenSequence) -> int:
    """Return how many response tokens go through the model: all but the last."""
    return max(len(sequence.response_ids) - 1, 0)


def _spread(part: Tensor, block: Block) -> Tensor:
    """Return responses that stand one after the other as rows: [H, L, d] to [G, H, longest, d]."""
    count, longest = len(block.lengths), block.lengths[0]
    # Of one length, they are a view.
    if block.lengths[-1] == longest:
        return part.reshape(len(part), count, longest, -1).transpose(0, 1)
    rows = [
        torch.nn.functional.pad(one, (0, 0, 0, longest - one.shape[1]))
        for one in torch.split(part, list(block.lengths), dim=1)
    ]
    return torch.stack(rows)
