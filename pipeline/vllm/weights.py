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

from pipeline.policy import Policy
from pipeline.sharding import whole
from pipeline.tensorfiles import laid_out, write_one_by_one
from pipeline.vllm.host import Host
from pipeline.vllm.threads import side_by_side

WEIGHTS_FILE = "weights.safetensors"


def named_weights(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight under every name that it has, in the engine's dtype.

    Tied weights come once per name: an engine that holds a copy under the second name, as vLLM
    does of an output projection, would keep the old one. Of a policy that is spread over ranks,
    one weight at a time is whole; all ranks must go through them together.
    """
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, whole(parameter.detach()).to(dtype)


def hand_over(policy: Policy, dtype: torch.dtype, send: Callable[[], None] | None = None) -> None:
    """Send a policy's weights, on rank 0; on the others, give it this rank's parts as it does."""
    if send is not None:
        send()
        return
    for _ in named_weights(policy.model, dtype):
        pass


class Sender(Protocol):
    """One way for weights."""

    def send(self, hosts: Sequence[Host], model: Any, version: str, anew: bool) -> None:
        """Bring the model's weights to all hosts and have them named.

        Args:
            anew: whether a host came up since the last time.
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
    """Writes weights into one file, from which every host reads."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._path = folder / WEIGHTS_FILE
        self._dtype = dtype

    def send(self, hosts: Sequence[Host], model: Any, version: str, anew: bool) -> None:
        """Write the file anew, a weight at a time, and have every host load it."""
        empty = {
            name: torch.empty(parameter.shape, dtype=self._dtype, device="meta")
            for name, parameter in model.named_parameters(remove_duplicate=False)
        }
        layout = laid_out(empty, "written", most=sys.maxsize)
        written = self._path.with_name("written.safetensors")
        written.unlink(missing_ok=True)
        write_one_by_one(named_weights(model, self._dtype), layout, written.parent)
        written.replace(self._path)
        fan = Fan(hosts, version)
        fan.init_weight_transfer_engine({})
        fan.start_weight_update()
        fan.update_weights({"path": str(self._path), "tensors": len(empty)})
        fan.finish_weight_update()
