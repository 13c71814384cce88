"""Weights from the policy to vLLM: which names and tensors, and the ways they take.

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
from pipeline.policy.safetensors_layout import laid_out
from pipeline.vllm.host import Host
from pipeline.vllm.threads import side_by_side

_STEM = "weights"


def named_parts(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield this rank's part of every weight under every name that it has.

    Tied weights come once per name: an engine that holds a copy under the second name, as vLLM
    does of an output projection, would keep the old one.
    """
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, parameter.detach()


def named_weights(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the same, each whole in its turn, in the engine's dtype; all ranks at the same time."""
    for name, part in named_parts(model):
        yield name, whole(part.to(dtype))


class Sender(Protocol):
    """One way for weights."""

    def send(self, hosts: Sequence[Host], model: Any, version: str, anew: bool) -> None:
        """Bring the model's weights to all hosts and have them named; every rank must call it.

        Args:
            hosts: this rank's.
            anew: whether one of them came up since the last time.
        """


class Fan:
    """Several hosts as one client of vLLM's protocol; calls run side by side, as nccl needs."""

    def __init__(self, hosts: Sequence[Host], version: str) -> None:
        self._hosts, self.version = hosts, version

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Connect every host; workers' ranks follow the trainer's, host after host."""
        first = init_info.get("rank_offset")
        calls: list[Callable[[], None]] = []
        for host in self._hosts:
            info = dict(init_info)
            if first is not None:
                info["rank_offset"] = first
                first += host.workers
            calls.append(partial(host.init_weight_transfer_engine, info))
        side_by_side(calls)

    def start_weight_update(self) -> None:
        """Begin everywhere."""
        side_by_side([host.start_weight_update for host in self._hosts])

    def update_weights(self, update_info: Any) -> None:
        """Hand over the same weights everywhere."""
        side_by_side([partial(host.update_weights, update_info) for host in self._hosts])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End everywhere; the name is the policy's version."""
        version = weight_version or self.version
        side_by_side([partial(host.finish_weight_update, version) for host in self._hosts])


class FileSender:
    """Has every rank write its rows of the weights to their place in one file, which hosts read.

    Args:
        folder: all ranks, and all hosts, see it.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._path = folder / f"{_STEM}.safetensors"
        self._dtype = dtype

    def send(self, hosts: Sequence[Host], model: Any, version: str, anew: bool) -> None:
        """Write the file, have this rank's hosts load it, and remove it (see `Sender.send`)."""
        parts = dict(named_parts(model))
        empty = {
            name: torch.empty(part.shape, dtype=self._dtype, device="meta")
            for name, part in parts.items()
        }
        self._remove()  # what a killed run left
        layout = laid_out(empty, _STEM, most=sys.maxsize)
        checkpoint.save(parts, layout, self._path.parent, durable=False)
        fan = Fan(hosts, version)
        try:
            fan.init_weight_transfer_engine({})
            fan.start_weight_update()
            fan.update_weights({"path": str(self._path), "tensors": len(parts)})
            fan.finish_weight_update()
        finally:
            ranks.exchanged(None)  # until everybody has read it
            self._remove()

    def _remove(self) -> None:
        if ranks.rank() == 0:
            self._path.unlink(missing_ok=True)
