"""Weights over nccl or CUDA IPC: vLLM's own trainer side, over our hosts.

Needs GPUs on both sides; written against vLLM 0.32, it has not run on one yet (docs/vllm.md).
"""

import socket
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from pipeline import ranks
from pipeline.errors import SrpoError
from pipeline.vllm.host import Host
from pipeline.vllm.server import free_port
from pipeline.vllm.weights import Fan, named_weights


class PolicyWeights(WeightSource):
    """The policy's weights as vLLM's trainer side reads them."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype

    def metadata(self) -> list[ParamMeta]:
        """Name every weight, its dtype on the way, and its shape."""
        named = self._model.named_parameters(remove_duplicate=False)
        return [ParamMeta(name, self._dtype, tuple(weight.shape)) for name, weight in named]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights in the same order, on the GPU also where the policy is not."""
        return ((name, weight.cuda()) for name, weight in named_weights(self._model, self._dtype))


class CollectiveSender:
    """Sends by nccl or ipc; it connects anew whenever the hosts or the policy are others."""

    def __init__(self, transfer: Literal["nccl", "ipc"], dtype: torch.dtype) -> None:
        self._transfer, self._dtype = transfer, dtype
        self._connected: tuple[Any, ...] = ()
        self._fan: Fan | None = None
        self._trainer: Any = None

    def send(self, hosts: Sequence[Host], model: Any, version: str, anew: bool) -> None:
        """Connect if need be, and send."""
        parties = (model, *hosts)
        if anew or self._fan is None or self._connected != parties:
            self._fan = self._connect(hosts, model, version)
            self._connected = parties
        self._fan.version = version
        try:
            self._trainer.send_weights()
        except SrpoError as error:
            if ranks.size() > 1:  # which are still giving their parts
                raise RuntimeError(f"sending weights from several ranks: {error}") from error
            raise

    def _connect(self, hosts: Sequence[Host], model: Any, version: str) -> Fan:
        if self._trainer is not None:
            self._trainer.shutdown()
        fan = Fan(hosts, version)
        source = PolicyWeights(model, self._dtype)
        info = _ipc() if self._transfer == "ipc" else _nccl(1 + sum(h.workers for h in hosts))
        self._trainer = WeightTransferTrainerFactory.trainer_init(info, client=fan, source=source)
        return fan


def _ipc() -> IPCTrainerInitInfo:
    return IPCTrainerInitInfo(rank=0)


def _nccl(size: int) -> NCCLTrainerInitInfo:
    address = socket.gethostbyname(socket.gethostname())
    return NCCLTrainerInitInfo(
        rank=0, master_address=address, master_port=free_port(), world_size=size
    )
