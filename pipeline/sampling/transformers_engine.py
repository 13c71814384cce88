"""Sampling with transformers: prompts are encoded once per group, each response has its own seed.

A response draws one uniform number per position from its own generator, and inverts the cumulative
distribution with it. So it does not depend on the responses that share its batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.distributed import ranks
from pipeline.distributed.sharding import gathered
from pipeline.forward.distributions import cool_
from pipeline.forward.scoring import Component
from pipeline.machine.flops import forward_flops, projection_flops
from pipeline.machine.phases import phase
from pipeline.policy.policy import Policy
from pipeline.sampling.decoding import make_decoder
from pipeline.sampling.engine import Sample, SamplingSettings

_PART = 256
"""Ids in one part of the vocabulary (X)."""
_CANDIDATES = 256
"""Tokens among which the nucleus of top-p is looked for first (C)."""
_DROP_BELOW = 0.75
"""Share of unfinished rows below which finished ones are dropped."""


class TransformersEngine:
    """The resident policy itself as an engine; no weights have to be sent.

    Args:
        teacher: sample from the policy's teacher instead.
    """

    name = "transformers"

    def __init__(self, policy: Policy, teacher: bool = False) -> None:
        self._policy, self._teacher = policy, teacher
        self.facts: Mapping[str, Any] = {}

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: SamplingSettings,
        progress: Callable[[int, int], None],
    ) -> list[list[Sample]]:
        """Sample responses, whole groups at a time, on all ranks (see `Engine.sample`)."""
        parts = ranks.together(
            _sample_part,
            self._policy,
            prompts,
            seeds,
            settings,
            self._teacher,
            progress=progress,
        )
        return [parts[group % len(parts)][group // len(parts)] for group in range(len(prompts))]


def _sample_part(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    settings: SamplingSettings,
    teacher: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Sample]]:
    """Sample this rank's groups, one of every `size()`, with the whole model gathered."""
    components = policy.teacher_components() if teacher else [Component(policy.model, 1.0)]
    prompts, seeds = prompts[ranks.rank() :: ranks.size()], seeds[ranks.rank() :: ranks.size()]
    total, done = sum(map(len, seeds)), 0
    samples: list[list[Sample]] = []
    with ExitStack() as stack:
        for model, _ in components:
            stack.enter_context(gathered(model))
        for part in _batches([len(s) for s in seeds], settings.batch_size):
            batch = _Batch(policy, components, prompts[part], seeds[part], settings)
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
    if start < len(sizes):  # a rank may have no group at all
        yield slice(start, len(sizes))


def keep_likeliest(logits_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set to -inf the logits that top-k, then top-p, exclude. The likeliest always stays."""
    if 0 < top_k < logits_BV.shape[-1]:
        threshold_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < threshold_B1, -torch.inf)
    if top_p < 1:
        nucleus_BV = _nucleus_BV(logits_BV, top_p, _CANDIDATES)
        logits_BV = logits_BV.masked_fill(~nucleus_BV, -torch.inf)
    return logits_BV


def _nucleus_BV(logits_BV: Tensor, top_p: float, candidates: int) -> Tensor:
    """Return which tokens top-p keeps: those that likelier ones leave less than `top_p` for.

    Of equal tokens the first id counts as likelier. Only the C likeliest tokens are sorted, which
    for a large vocabulary takes a thirtieth of the time; a row whose nucleus may not lie among them
    is done again with all of its tokens.
    """
    vocabulary = logits_BV.shape[-1]
    candidates = min(candidates, vocabulary)
    probs_BV = logits_BV.softmax(-1)
    # In the order of ids, so that the stable sort puts the first of equal tokens first.
    ids_BC = logits_BV.topk(candidates, dim=-1, sorted=False).indices.sort(dim=-1).values
    sorted_BC, order_BC = logits_BV.gather(-1, ids_BC).sort(dim=-1, descending=True, stable=True)
    ids_BC = ids_BC.gather(-1, order_BC)
    probs_BC = probs_BV.gather(-1, ids_BC)
    before_BC = probs_BC.cumsum(-1) - probs_BC  # mass of all that are likelier: 0 for the first
    kept_BC = ~(before_BC >= top_p)  # what is no number stays, and is found when it is drawn
    kept_BV = torch.zeros_like(logits_BV, dtype=torch.bool).scatter_(-1, ids_BC, kept_BC)
    if candidates < vocabulary:
        # A token that is as likely as the last candidate may have been left out for it.
        last_B1 = kept_BC.sum(-1, keepdim=True) - 1
        open_B = sorted_BC.gather(-1, last_B1)[:, 0] <= sorted_BC[:, -1]
        if open_B.any():
            kept_BV[open_B] = _nucleus_BV(logits_BV[open_B], top_p, vocabulary)
    return kept_BV


def draw_B(cooled_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution: the first id whose cumulative mass exceeds u.

    The search goes over parts of the vocabulary first and then within one part. Sums are float64,
    since float32 loses small masses among 150,000; in two steps only few are needed. A token of
    probability 0 is never drawn.

    Args:
        cooled_BV: logits with the largest at 0 (`distributions.cool_`); overwritten.
        uniform_B: u in [0, 1), float64.

    Returns:
        The ids, and their log-probabilities in nats.
    """
    rows, vocabulary = cooled_BV.shape
    # V = Q X: Q parts of X ids, padded with weights of 0
    weights_BV = cooled_BV.exp_()
    parts = -(-vocabulary // _PART)
    if parts * _PART != vocabulary:
        weights_BV = torch.nn.functional.pad(weights_BV, (0, parts * _PART - vocabulary))
    weights_BQX = weights_BV.view(rows, parts, _PART)
    mass_BQ = weights_BQX.sum(-1).double().cumsum(-1)  # up to and with each part
    total_B = mass_BQ[:, -1]
    point_B1 = (uniform_B * total_B)[
        :, None
    ]  # u scaled by the mass, so that no weight is normalised
    part_B = (mass_BQ <= point_B1).sum(-1)  # the first part whose cumulative mass exceeds the point
    # What is left of the point within its part.
    before_BQ = torch.nn.functional.pad(mass_BQ, (1, 0))
    left_B1 = point_B1 - before_BQ.gather(1, part_B[:, None])
    # The same search among the X ids of that part.
    within_BX = weights_BQX[torch.arange(rows, device=part_B.device), part_B].double()
    below_BX = within_BX.cumsum(-1) <= left_B1
    # Rounding may put the point just beyond the part's sum. Then take the last token with any mass:
    # `argmax` over ascending numbers, zeroed where there is no mass.
    last_B = (within_BX > 0).int().mul(_order(within_BX)).argmax(-1)
    inside_B = torch.minimum(below_BX.sum(-1), last_B)
    logprob_B = within_BX.gather(1, inside_B[:, None])[:, 0].log() - total_B.log()
    return part_B * _PART + inside_B, logprob_B.float()


def _order(within_BX: Tensor) -> Tensor:
    return torch.arange(1, within_BX.shape[-1] + 1, device=within_BX.device, dtype=torch.int)


class _Batch:
    """One batch of groups, decoded until every row has finished."""

    def __init__(
        self,
        policy: Policy,
        components: Sequence[Component],
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: SamplingSettings,
    ) -> None:
        self._policy, self._components, self._settings = policy, components, settings
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
        self._flops_per_token = sum(
            forward_flops(model, 1) + projection_flops(model, 1) for model, _ in components
        )

    @torch.no_grad()
    def run(self) -> list[list[Sample]]:
        """Decode and return the samples by group."""
        limit = self._settings.max_response_length
        decoder = make_decoder(self._policy, self._components, self._prompts, self._sizes, limit)
        rows_B = torch.arange(len(self._ids), device=self._policy.device)
        # One autocast context for all steps: weights are cast once, not at every step.
        with self._policy.forward(megabytes=1).autocast():
            with phase("prompts", sum(map(len, self._prompts))):
                logits_BV = decoder.start()
            for position in range(limit):
                # A row's number at a position is fixed by its seed, whoever is dropped beside it.
                with phase("draw", len(rows_B)):
                    next_B, logprob_B = self._choose(logits_BV, self._uniform_BT[rows_B, position])
                self._record(rows_B, next_B, logprob_B)
                live_B = torch.tensor([not self._stopped[row] for row in rows_B.tolist()])
                live = int(live_B.sum())
                if position + 1 == limit or not live:
                    break
                # Dropping rows copies the cache, so it waits until a quarter of them has finished.
                if live <= _DROP_BELOW * len(rows_B):
                    kept_B = live_B.nonzero()[:, 0].to(next_B.device)
                    rows_B, next_B = rows_B[kept_B], next_B[kept_B]
                    decoder.keep(kept_B)
                with phase("decode", len(rows_B), self._flops_per_token * len(rows_B)):
                    logits_BV = decoder.step(next_B)
        return self._grouped()

    def _choose(self, logits_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
        settings = self._settings
        cool_(logits_BV, torch.full_like(uniform_B, settings.temperature))
        kept_BV = keep_likeliest(logits_BV, settings.top_k, settings.top_p)
        return draw_B(kept_BV, uniform_B)

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
