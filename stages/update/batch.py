"""From the tables of a step to rollouts that can be learned from, and to flat micro-batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.forward.packing import TokenSequence, consecutive_slices
from pipeline.tables.schemas import REWARD_WEIGHT

OldSource = Literal["live", "stored", "sampled"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Taught:
    """The teacher's side of one rollout; arrays are [T] or [T, K], slices of the table.

    Attributes:
        reward_weight_T: weight of the GRPO loss beside the teacher's; None: it has none.
    """

    topk_ids_TK: npt.NDArray[np.int32]
    teacher_logprobs_TK: Floats | npt.NDArray[np.float16]
    teacher_tail_T: Floats
    teacher_logprob_T: Floats
    weight_T: Floats
    reward_weight_T: Floats | None = None


@dataclass(frozen=True)
class Rollout:
    """One rollout as the update sees it.

    Attributes:
        old_logprobs_T: stored log pi_old; None where the live policy is pi_old.
        taught: what it is distilled by, if it is.
        computed: whether the rollout has a gradient and so takes part in the passes.
        credit_T: factors of the advantage, if a teacher distributes it; None: all are 1.
    """

    rollout_id: str
    sequence: TokenSequence
    temperature: float
    route: str
    mini_batch: int
    advantage: float
    sampled_logprobs_T: Floats
    old_source: OldSource
    old_logprobs_T: Floats | None
    taught: Taught | None
    computed: bool
    credit_T: Floats | None = None

    @property
    def tokens(self) -> int:
        """Return the response's length."""
        return len(self.sequence.response_ids)


@dataclass(frozen=True)
class FlatBatch:
    """The response tokens of a micro-batch's rollouts, one after the other.

    `advantage_N` is each token's own. `taught_N` marks the tokens that are distilled; tensors of
    them have leading axis M.
    """

    rollouts: Sequence[Rollout]
    targets_N: Tensor
    temperature_N: Tensor
    advantage_N: Tensor
    sampled_logprob_N: Tensor
    old_logprob_N: Tensor | None
    own_correction_N: Tensor
    mixed_N: Tensor
    taught_N: Tensor
    topk_ids_MK: Tensor
    teacher_logprobs_MK: Tensor
    teacher_tail_M: Tensor
    teacher_logprob_M: Tensor
    weight_M: Tensor
    reward_weight_M: Tensor | None

    def slices(self) -> list[slice]:
        """Return where each rollout's tokens are."""
        return consecutive_slices([r.tokens for r in self.rollouts])

    def narrow(self, part: slice) -> "FlatBatch":
        """Return some consecutive tokens of it, wherever rollouts begin."""
        # Tokens [N] and taught tokens [M] are in the same order: before a part there are as many
        # of M as the mask has before it.
        taught = slice(
            int(self.taught_N[: part.start].sum()), int(self.taught_N[: part.stop].sum())
        )
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        axes = {"N": part, "M": taught, "MK": taught}
        cut: dict[str, Any] = {
            name: tensor[axes[name.rpartition("_")[2]]]
            for name, tensor in fields.items()
            if isinstance(tensor, Tensor)
        }
        return replace(self, **cut)


def rollouts_of(tables: Mapping[str, pa.Table], on_policy: bool) -> list[Rollout]:
    """Unpack a step's tables.

    Args:
        on_policy: whether the policy that is updated is the one that sampled; only then, and with
            one update per step, is pi_old the live policy (docs/method.md, section 7).
    """
    columns = ["prompt_ids", "response_ids", "temperature", "sampled_logprobs"]
    sampled = tables["rollouts"].select(columns).to_pylist()
    routes = tables["routes"].select(
        ["rollout_id", "route", "mini_batch", "advantage", "teacher_available"]
    )
    old = tables["scores"].column("old_logprobs").to_pylist()
    taught = _taught_by_rollout(tables["teacher"], tables["weights"])
    rows = routes.to_pylist()
    # After a first update within the step the policy is no longer the one that sampled.
    live = on_policy and len({row["mini_batch"] for row in rows}) == 1
    rollouts = []
    for sample, route, stored in zip(sampled, rows, old, strict=True):
        source: OldSource = "live" if live else "stored" if stored else "sampled"
        teacher = taught.get(route["rollout_id"])
        credited = teacher is not None and route["route"] == "grpo"
        # An advantage of 0 makes the GRPO loss and its gradient 0, whatever the ratio.
        by_reward = route["route"] in ("grpo", "mix") and route["advantage"] != 0
        rollouts.append(
            Rollout(
                rollout_id=route["rollout_id"],
                sequence=TokenSequence(sample["prompt_ids"], sample["response_ids"]),
                temperature=sample["temperature"],
                route=route["route"],
                mini_batch=route["mini_batch"],
                advantage=route["advantage"],
                sampled_logprobs_T=np.array(sample["sampled_logprobs"], dtype=np.float32),
                old_source=source,
                old_logprobs_T=_old(source, stored, sample["sampled_logprobs"]),
                credit_T=teacher.weight_T if teacher is not None and credited else None,
                taught=None if credited else teacher,
                computed=bool(sample["response_ids"]) and (by_reward or teacher is not None),
            )
        )
    return rollouts


def flatten(rollouts: Sequence[Rollout], kept: int, device: torch.device) -> FlatBatch:
    """Concatenate the tokens of some rollouts; pi_old is live for all of them or none."""
    taught = [r.taught for r in rollouts if r.taught is not None]
    handed = [t.reward_weight_T for t in taught if t.reward_weight_T is not None]
    live = all(r.old_logprobs_T is None for r in rollouts)

    def per_rollout(values: Sequence[float | bool], dtype: torch.dtype) -> Tensor:
        spread = [v for v, r in zip(values, rollouts, strict=True) for _ in range(r.tokens)]
        return torch.tensor(spread, dtype=dtype, device=device)

    def joined(arrays: Sequence[npt.NDArray[np.generic]], empty: tuple[int, ...]) -> Tensor:
        array = np.concatenate(arrays) if arrays else np.empty(empty, dtype=np.float32)
        return torch.from_numpy(array).to(device)

    sampled_N = joined([r.sampled_logprobs_T for r in rollouts], (0,))
    old = [r.old_logprobs_T for r in rollouts if r.old_logprobs_T is not None]
    factors = [
        np.ones(r.tokens, dtype=np.float32) if r.credit_T is None else r.credit_T for r in rollouts
    ]
    credit_N = joined(factors, (0,))
    return FlatBatch(
        rollouts=rollouts,
        targets_N=torch.tensor(
            [t for r in rollouts for t in r.sequence.response_ids], device=device
        ),
        temperature_N=per_rollout([r.temperature for r in rollouts], torch.float32),
        advantage_N=per_rollout([r.advantage for r in rollouts], torch.float32) * credit_N,
        sampled_logprob_N=sampled_N,
        old_logprob_N=None if live else joined(old, (0,)),
        own_correction_N=per_rollout([r.old_source != "sampled" for r in rollouts], torch.bool),
        mixed_N=per_rollout([r.route == "mix" for r in rollouts], torch.bool),
        taught_N=per_rollout([r.taught is not None for r in rollouts], torch.bool),
        topk_ids_MK=joined([t.topk_ids_TK for t in taught], (0, kept)).long(),
        teacher_logprobs_MK=joined([t.teacher_logprobs_TK for t in taught], (0, kept)).float(),
        teacher_tail_M=joined([t.teacher_tail_T for t in taught], (0,)),
        teacher_logprob_M=joined([t.teacher_logprob_T for t in taught], (0,)),
        weight_M=joined([t.weight_T for t in taught], (0,)),
        reward_weight_M=joined(handed, (0,)) if handed else None,
    )


def _old(source: OldSource, stored: Sequence[float], sampled: Sequence[float]) -> Floats | None:
    if source == "live":
        return None
    return np.array(stored if source == "stored" else sampled, dtype=np.float32)


def _taught_by_rollout(teacher: pa.Table, weights: pa.Table) -> dict[str, Taught]:
    """Slice the token tables by rollout, without copying their columns."""
    if teacher.num_rows == 0:
        return {}
    ids = teacher.column("rollout_id").combine_chunks().to_numpy(zero_copy_only=False)
    # A rollout's rows stand together (tables/invariants), so one begins where the id changes.
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    ends = np.r_[starts[1:], len(ids)]
    kept = teacher.schema.field("topk_ids").type.list_size

    def lists(name: str) -> Any:
        # [rows x K] flat in the file; a view of it as [rows, K].
        return teacher.column(name).combine_chunks().flatten().to_numpy().reshape(-1, kept)

    topk_ids, logprobs = lists("topk_ids"), lists("teacher_logprobs")
    tail = teacher.column("teacher_tail").to_numpy()
    logprob = teacher.column("teacher_logprob").to_numpy()
    weight = weights.column("weight").to_numpy()
    handed = weights[REWARD_WEIGHT].to_numpy() if REWARD_WEIGHT in weights.column_names else None
    return {
        str(ids[start]): Taught(
            topk_ids[start:end],
            logprobs[start:end],
            tail[start:end],
            logprob[start:end],
            weight[start:end],
            None if handed is None else handed[start:end],
        )
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    }
