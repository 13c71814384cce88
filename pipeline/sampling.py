"""Sampling with transformers: the prompt is encoded once per group, rows have seeds of their own.

Each response draws one uniform number per position from its own generator and inverts the
cumulative distribution with it; so a rollout does not depend on who shares its batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from pipeline.engine import Sample, SamplingSettings
from pipeline.policy import Policy


class TransformersEngine:
    """Engine over the resident policy itself: nothing to keep in step."""

    name = "transformers"

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: SamplingSettings,
        progress: Callable[[int, int], None],
    ) -> list[list[Sample]]:
        """Sample responses, whole groups at a time (see `Engine.sample`)."""
        total, done = sum(map(len, seeds)), 0
        samples: list[list[Sample]] = []
        for part in _batches([len(s) for s in seeds], settings.batch_size):
            batch = _Batch(self._policy, prompts[part], seeds[part], settings)
            samples.extend(batch.run())
            done += sum(map(len, seeds[part]))
            progress(done, total)
        return samples


def _batches(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Yield slices of whole groups with at most `limit` rows (a larger group stands alone)."""
    start, rows = 0, 0
    for index, size in enumerate(sizes):
        if rows and rows + size > limit:
            yield slice(start, index)
            start, rows = index, 0
        rows += size
    yield slice(start, len(sizes))


def keep_likeliest(logits_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set to -inf the logits that top-k, then top-p, exclude. The likeliest always stays."""
    if 0 < top_k < logits_BV.shape[-1]:
        threshold_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < threshold_B1, -torch.inf)
    if top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
        probs_BV = sorted_BV.softmax(-1)
        before_BV = probs_BV.cumsum(-1) - probs_BV
        excluded_BV = torch.zeros_like(before_BV, dtype=torch.bool)
        excluded_BV.scatter_(-1, order_BV, before_BV >= top_p)
        logits_BV = logits_BV.masked_fill(excluded_BV, -torch.inf)
    return logits_BV


def draw_B(logprobs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Invert the cumulative distribution: the first id whose cumulative mass exceeds u.

    Computed in float64, so that the mass of 150,000 tokens adds up; u is in [0, 1). A token of
    probability 0 is never drawn.
    """
    cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
    point_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    return (cumulative_BV <= point_B1).sum(-1)


class _Batch:
    """One batch of groups, decoded until every row has finished."""

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: SamplingSettings,
    ) -> None:
        self._policy, self._settings = policy, settings
        self._prompts, self._sizes = prompts, [len(s) for s in seeds]
        length = settings.max_response_length
        rows = [
            np.random.Generator(np.random.Philox(seed)).random(length)
            for group in seeds
            for seed in group
        ]
        self._uniform_BT = torch.from_numpy(np.stack(rows)).to(policy.device)
        self._ids: list[list[int]] = [[] for _ in rows]
        self._logprobs: list[list[float]] = [[] for _ in rows]
        self._stopped = [False] * len(rows)

    @torch.no_grad()
    def run(self) -> list[list[Sample]]:
        """Decode and return the samples by group."""
        logits_BV, cache, mask_BT = self._encode()
        rows_B = torch.arange(len(self._ids), device=self._policy.device)
        for position in range(self._settings.max_response_length):
            next_B, logprob_B = self._choose(logits_BV, self._uniform_BT[rows_B, position])
            self._record(rows_B, next_B, logprob_B)
            live_B = torch.tensor([not self._stopped[row] for row in rows_B.tolist()])
            if position + 1 == self._settings.max_response_length or not live_B.any():
                break
            if 2 * int(live_B.sum()) <= len(rows_B):
                kept_B = live_B.nonzero()[:, 0].to(next_B.device)
                rows_B, next_B, mask_BT = rows_B[kept_B], next_B[kept_B], mask_BT[kept_B]
                cache.batch_select_indices(kept_B)
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows_B), 1)], dim=1)
            logits_BV = self._step(next_B[:, None], mask_BT, cache)
        return self._grouped()

    def _encode(self) -> tuple[Tensor, Any, Tensor]:
        """Encode each prompt once, padded on the left, and spread its cache over the group."""
        longest = max(map(len, self._prompts))
        ids_GT = torch.zeros(len(self._prompts), longest, dtype=torch.long)
        mask_GT = torch.zeros_like(ids_GT)
        for row, prompt in enumerate(self._prompts):
            ids_GT[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_GT[row, longest - len(prompt) :] = 1
        device = self._policy.device
        cache = DynamicCache(config=self._policy.model.config)
        logits_GV = self._step(ids_GT.to(device), mask_GT.to(device), cache)
        index_B = torch.repeat_interleave(
            torch.arange(len(self._prompts)), torch.tensor(self._sizes)
        ).to(device)
        cache.batch_select_indices(index_B)
        return logits_GV[index_B], cache, mask_GT.to(device)[index_B]

    def _step(self, ids_BT: Tensor, mask_BT: Tensor, cache: Any) -> Tensor:
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        with self._policy.forward(chunk=1).autocast():
            output = self._policy.model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV

    def _choose(self, logits_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
        settings = self._settings
        kept_BV = keep_likeliest(logits_BV / settings.temperature, settings.top_k, settings.top_p)
        logprobs_BV = kept_BV.log_softmax(-1)
        next_B = draw_B(logprobs_BV, uniform_B)
        return next_B, logprobs_BV.gather(-1, next_B[:, None])[:, 0]

    def _record(self, rows_B: Tensor, next_B: Tensor, logprob_B: Tensor) -> None:
        eos = self._policy.eos_ids
        for row, token, logprob in zip(
            rows_B.tolist(), next_B.tolist(), logprob_B.tolist(), strict=True
        ):
            if not self._stopped[row]:
                self._ids[row].append(token)
                self._logprobs[row].append(logprob)
                self._stopped[row] = token in eos

    def _grouped(self) -> list[list[Sample]]:
        samples = iter(
            Sample(ids, logprobs, "stop" if stopped else "length")
            for ids, logprobs, stopped in zip(self._ids, self._logprobs, self._stopped, strict=True)
        )
        return [[next(samples) for _ in range(size)] for size in self._sizes]
