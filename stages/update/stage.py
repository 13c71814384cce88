"""Update: one optimizer step per mini-batch, one denominator N for both branches.

Reads only tables, so the policy at any step can be rebuilt by replaying it. Rollouts without a
gradient count in N and are not computed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.config.sections import Config, UpdateSection
from pipeline.distributed.ranks import FirstError, exchanged, size, together, turns
from pipeline.distributed.sharding import sum_replicated
from pipeline.errors import NumericalError
from pipeline.forward.backward import add_gradient
from pipeline.forward.projection import Head
from pipeline.forward.scoring import Forward, fair_budget, idle_pass
from pipeline.machine.phases import phase
from pipeline.policy.policy import Policy
from pipeline.stage.contract import Handles, Output, ProgressCounter, Stage
from pipeline.tables.schemas import UPDATES
from stages.update.batch import FlatBatch, Rollout, flatten, rollouts_of
from stages.update.clipping import clip_gradients
from stages.update.gate import expect_near
from stages.update.losses import engine_kl_N
from stages.update.objective import TokenLosses, token_losses


@dataclass(frozen=True)
class Statistics:
    """What the table `updates` says of one computed rollout (None: not applicable)."""

    loss_sum: float
    mean_ratio: float
    clipped_fraction: float
    mean_tis: float
    max_logprob_gap: float | None
    mean_logprob_gap: float | None
    engine_kl: float | None
    tis_cut_fraction: float | None
    mean_divergence: float | None


Report = Callable[[int], None]
_LARGEST_NORM = math.sqrt(torch.finfo(torch.float32).max)
_UNKNOWN: dict[str, float | None] = dict.fromkeys(
    ("max_logprob_gap", "mean_logprob_gap", "engine_kl", "tis_cut_fraction")
)
"""Of a rollout whose log pi_old is what the engine reported: there is nothing to compare."""


class Accumulated(NamedTuple):
    """What comes with an accumulated gradient: N, positions computed, rollouts' statistics."""

    tokens: int
    computed: int
    statistics: dict[str, Statistics]


@dataclass(frozen=True)
class MiniBatchResult:
    """One optimizer update.

    Attributes:
        tokens: its N.
        grad_norm: before clipping, summed in float64.
        computed: positions that went through the network.
        statistics: of the computed rollouts.
    """

    tokens: int
    computed: int
    loss: float
    grad_norm: float
    statistics: dict[str, Statistics]


def run(tables: Mapping[str, pa.Table], config: Config, handles: Handles) -> Output:
    """Update the policy by every mini-batch of the step, then move the teacher."""
    settings, policy = config.update, handles.require_policy()
    kept = tables["teacher"].schema.field("topk_ids").type.list_size
    sampled_by = set(tables["rollouts"].column("policy_version").to_pylist())
    rollouts = rollouts_of(tables, on_policy=sampled_by == {policy.version})
    report = ProgressCounter(handles, sum(r.tokens for r in rollouts if r.computed))
    parts = together(
        learn,
        policy,
        rollouts,
        kept,
        settings,
        handles.step,
        handles.max_logprob_gap,
        report=lambda tokens: report(tokens * size()),
    )
    results, checksum = parts[0]
    facts = {
        "learning_rate": policy.optimizer.param_groups[0]["lr"],
        "grad_norm": [r.grad_norm for r in results.values()],
        "loss": [r.loss for r in results.values()],
        "tokens": [r.tokens for r in results.values()],
        "checksum": checksum,
        "tokens_computed": sum(r.computed for r in results.values()),
        "tokens_naive": sum(len(r.sequence.prompt_ids) + r.tokens for r in rollouts),
    }
    rows = [_row(rollout, results[rollout.mini_batch]) for rollout in rollouts]
    table = pa.Table.from_pylist(rows, schema=UPDATES)
    return Output({"updates": table}, facts, report.total)


def learn(
    policy: Policy,
    rollouts: Sequence[Rollout],
    kept: int,
    settings: UpdateSection,
    step: int,
    max_gap: float | None,
    report: Report = lambda tokens: None,
) -> tuple[dict[int, MiniBatchResult], str]:
    """Make the step's updates, on all ranks at once; return them and the new state's checksum."""
    set_hyperparameters(policy.optimizer, settings, step)
    policy.begin_update()
    results = {
        index: _optimize(
            policy,
            [r for r in rollouts if r.mini_batch == index],
            kept,
            settings,
            report,
            max_gap,
        )
        for index in sorted({r.mini_batch for r in rollouts})
    }
    with phase("teacher"):
        policy.advance_teacher(step + 1)
    with phase("checksum"):
        return results, policy.checksum()


def set_hyperparameters(
    optimizer: torch.optim.Optimizer, settings: UpdateSection, step: int
) -> None:
    """Set AdamW's numbers for a step: lr min(1, (s + 1) / warm-up), s from 0 (section 10)."""
    warmup = settings.warmup_steps
    scale = min(1.0, (step + 1) / warmup) if warmup else 1.0
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * scale
        group["betas"] = (settings.adam_beta1, settings.adam_beta2)
        group["eps"] = settings.adam_eps
        group["weight_decay"] = settings.weight_decay


def accumulate_gradient(
    policy: Policy,
    rollouts: Sequence[Rollout],
    kept: int,
    settings: UpdateSection,
    report: Report = lambda tokens: None,
    max_gap: float | None = None,
) -> Accumulated:
    """Set each parameter's gradient to that of L over one mini-batch (docs/method.md, section 8).

    L = sum of token losses / N; N counts the response tokens of all routed rollouts, computed or
    not, and is one number for all micro-batches on all ranks, each of which computes some.

    Args:
        max_gap: nats by which engine and trainer may differ in a token; None: any.

    Raises:
        NumericalError: a loss is not finite, or a token differs by more.
    """
    # Zeros, not None: AdamW skips what has no gradient, and its moments would not decay.
    trained = policy.trainable().values()
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    tokens = sum(r.tokens for r in rollouts if r.route != "none")
    computed = [r for r in rollouts if r.computed]
    forward = policy.forward(settings.projection_mb)
    sequences = [r.sequence for r in computed]
    budget = fair_budget(settings.micro_batch_tokens, forward, sequences)
    statistics: dict[str, Statistics] = {}
    positions, failed = 0, FirstError()
    with policy.passing():
        for members in turns(forward.batches(sequences, budget)):
            if members is None:  # other ranks have more micro-batches, and gather weights for them
                _backward_idle(policy, forward)
                continue
            batch = flatten([computed[i] for i in members], kept, policy.device)
            losses = _backward(policy, batch, tokens, settings, forward)
            with failed.kept():
                if max_gap is not None:
                    expect_near(batch, losses.gap_N, max_gap, policy.tokenizer.decode)
                statistics |= _statistics(batch, losses, settings.tis_clip)
            positions += forward.tokens([r.sequence for r in batch.rollouts])
            report(len(batch.targets_N))
    failed.expect_none()
    sum_replicated(p.grad for p in trained if p.grad is not None)
    return _of_all_ranks(Accumulated(tokens, positions, statistics), len(computed))


def _of_all_ranks(mine: Accumulated, expected: int) -> Accumulated:
    """Put together what ranks accumulated of one gradient, in which every rollout counts once."""
    parts = exchanged(mine)
    found = {name: one for part in parts for name, one in part.statistics.items()}
    if len(found) != expected or sum(len(part.statistics) for part in parts) != expected:
        counts = ", ".join(str(len(part.statistics)) for part in parts)
        raise NumericalError(f"{expected} rollouts have a gradient, ranks computed {counts}")
    return Accumulated(mine.tokens, sum(part.computed for part in parts), found)


def _backward(
    policy: Policy, batch: FlatBatch, tokens: int, settings: UpdateSection, forward: Forward
) -> TokenLosses:
    """Add a micro-batch's gradient to the parameters' and return its losses."""

    def chunk_loss(head: Head, hidden_ND: Tensor, part: slice) -> tuple[Tensor, TokenLosses]:
        losses = token_losses(head, hidden_ND, batch.narrow(part), settings)
        kept = TokenLosses(*[column.detach() for column in losses])
        return losses.loss_N.sum() / tokens, kept  # by the mini-batch's one N

    sequences = [r.sequence for r in batch.rollouts]
    parts = add_gradient(policy.model, sequences, forward, chunk_loss)
    return TokenLosses(*[torch.cat(column) for column in zip(*parts, strict=True)])


def _backward_idle(policy: Policy, forward: Forward) -> None:
    """Take part in the gradients of other ranks: they sum those of all weights that have one.

    So a projection that is no tied weight needs a gradient, too, though no logits are made. What is
    frozen has none.
    """
    hidden_ND = idle_pass(policy.model, forward)
    weight_VD, bias_V, *_ = forward.head(policy.model)
    parts = (hidden_ND, weight_VD, bias_V)
    outputs = [part for part in parts if part is not None and part.requires_grad]
    torch.autograd.backward(outputs, [torch.zeros_like(part) for part in outputs])


def _optimize(
    policy: Policy,
    rollouts: Sequence[Rollout],
    kept: int,
    settings: UpdateSection,
    report: Report,
    max_gap: float | None,
) -> MiniBatchResult:
    """Do one optimizer update; it advances also when no rollout has a gradient."""
    tokens, positions, statistics = accumulate_gradient(
        policy, rollouts, kept, settings, report, max_gap
    )
    ids = ", ".join(list(statistics)[:5])
    norm = take_step(policy, settings.max_grad_norm, f"rollouts {ids}, …")
    loss = sum(s.loss_sum for s in statistics.values()) / max(tokens, 1)
    return MiniBatchResult(tokens, positions, loss, norm, statistics)


def take_step(policy: Policy, max_grad_norm: float, source: str) -> float:
    """Clip the gradient, let the optimizer use it, and drop it; return its norm before clipping.

    Args:
        source: what it was computed from, for errors.

    Raises:
        NumericalError: it is not finite; the weights are then as they were.
    """
    with phase("clip"):
        norm = clip_gradients(policy.trainable().values(), max_grad_norm)
    if not norm <= _LARGEST_NORM:
        raise NumericalError(
            f"the gradient is not finite; computed from {source} (its norm is {norm:.3g}, "
            "and Adam squares it in float32)"
        )
    with phase("optimizer"):
        policy.optimizer.step()
        policy.optimizer.zero_grad(set_to_none=True)
    return norm


def _mismatch(gap_T: Tensor, tis_clip: float) -> dict[str, float | None]:
    """Return how far engine and trainer are apart over one rollout (docs/method.md, section 7)."""
    gap_T = gap_T.double()
    return {
        "max_logprob_gap": float(gap_T.abs().max()),
        "mean_logprob_gap": float(gap_T.abs().mean()),
        "engine_kl": float(engine_kl_N(gap_T).mean()),
        "tis_cut_fraction": float((gap_T.exp() > tis_clip).double().mean()),
    }


def _statistics(batch: FlatBatch, losses: TokenLosses, tis_clip: float) -> dict[str, Statistics]:
    """Reduce a micro-batch to one record per rollout; a loss that is not finite stops the run."""
    found = {}
    for rollout, part in zip(batch.rollouts, batch.slices(), strict=True):
        total = float(losses.loss_N[part].detach().double().sum())
        if not math.isfinite(total):
            raise NumericalError(f"the loss of rollout {rollout.rollout_id} is {total}")
        own = rollout.old_source != "sampled"
        divergence = float(losses.divergence_N[part].double().mean())
        found[rollout.rollout_id] = Statistics(
            loss_sum=total,
            mean_ratio=float(losses.ratio_N[part].double().mean()),
            clipped_fraction=float(losses.clipped_N[part].double().mean()),
            mean_tis=float(losses.tis_N[part].double().mean()),
            **(_mismatch(losses.gap_N[part], tis_clip) if own else _UNKNOWN),
            mean_divergence=None if rollout.taught is None else divergence,
        )
    return found


def _row(rollout: Rollout, result: MiniBatchResult) -> dict[str, Any]:
    statistics = result.statistics.get(rollout.rollout_id)
    counted = rollout.tokens if rollout.route != "none" else 0
    return {
        "rollout_id": rollout.rollout_id,
        "route": rollout.route,
        "mini_batch": rollout.mini_batch,
        "tokens": rollout.tokens,
        "computed": rollout.computed,
        "old_source": rollout.old_source,
        "loss_sum": 0.0,
        "share": counted / result.tokens if result.tokens else 0.0,
        **(asdict(statistics) if statistics else {}),
    }


STAGE = Stage(
    name="update",
    version=4,
    sections=("update",),
    reads=("rollouts", "routes", "scores", "teacher", "weights"),
    writes=("updates",),
    uses=frozenset({"policy"}),
    run=run,
    advances_policy=True,
)
