"""Weights from the policy to vLLM: which names and tensors, and how they travel.

The calls are vLLM's weight-transfer protocol throughout; `FileSender` speaks it for files, vLLM's
own trainer side for nccl and ipc (`collective`).
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.distributed import ranks
from pipeline.distributed.sharding import whole
from pipeline.policy import checkpoint
from pipeline.policy.adapters import plain_weights
from pipeline.policy.safetensors_layout import lay_out
from pipeline.vllm.concurrency import run_concurrently
from pipeline.vllm.replica import Replica

_STEM = "weights"


def named_weights(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight whole, in the engine's dtype; all ranks must iterate together."""
    for name, part in plain_weights(model, dtype):
        yield name, whole(part.to(dtype))


class Sender(Protocol):
    """A way of sending weights."""

    def send(self, replicas: Sequence[Replica], model: Any, version: str, restarted: bool) -> None:
        """Send the model's weights to all replicas, under a version; every rank must call it.

        Args:
            replicas: those of this rank.
            restarted: whether one of them was started since the last call.
        """


class FanOutClient:
    """Several replicas as one client of vLLM's protocol.

    Calls run concurrently: an nccl transfer ends only when all receivers take part.
    """

    def __init__(self, replicas: Sequence[Replica], version: str) -> None:
        self._replicas, self.version = replicas, version

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Connect every replica; their workers get consecutive ranks after the trainer's."""
        first = init_info.get("rank_offset")
        calls: list[Callable[[], None]] = []
        for replica in self._replicas:
            info = dict(init_info)
            if first is not None:
                info["rank_offset"] = first
                first += replica.workers
            calls.append(partial(replica.init_weight_transfer_engine, info))
        run_concurrently(calls)

    def start_weight_update(self) -> None:
        """Begin a transfer to all replicas."""
        run_concurrently([replica.start_weight_update for replica in self._replicas])

    def update_weights(self, update_info: Any) -> None:
        """Hand the same weights to all replicas."""
        run_concurrently(
            [partial(replica.update_weights, update_info) for replica in self._replicas]
        )

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the transfer to all replicas; the weights are named by the policy's version."""
        version = weight_version or self.version
        run_concurrently(
            [partial(replica.finish_weight_update, version) for replica in self._replicas]
        )


class FileSender:
    """Every rank writes its rows of the weights into one file, which the replicas load.

    Args:
        folder: a folder that all ranks and all replicas see.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._path = folder / f"{_STEM}.safetensors"
        self._dtype = dtype

    def send(self, replicas: Sequence[Replica], model: Any, version: str, restarted: bool) -> None:
        """Write the file, have this rank's replicas load it, and remove it (see `Sender.send`)."""
        parts = dict(plain_weights(model, self._dtype))
        empty = {
            name: torch.empty(part.shape, dtype=self._dtype, device="meta")
            for name, part in parts.items()
        }
        self._remove()  # a killed run may have left one
        layout = lay_out(empty, _STEM, most=sys.maxsize)
        checkpoint.save(parts, layout, self._path.parent, durable=False)
        client = FanOutClient(replicas, version)
        try:
            client.init_weight_transfer_engine({})
            client.start_weight_update()
            client.update_weights({"path": str(self._path), "tensors": len(parts)})
            client.finish_weight_update()
        finally:
            ranks.exchanged(None)  # a barrier: every replica has read it
            self._remove()

    def _remove(self) -> None:
        if ranks.rank() == 0:
            self._path.unlink(missing_ok=True)
