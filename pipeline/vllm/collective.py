"""Weights over nccl or CUDA IPC: vLLM's own trainer side, over our replicas.

Every rank has a trainer side, and all send at the same time, since they iterate over the weights
together. By nccl rank 0 sends to the servers, and the others only contribute their parts. By ipc
each rank sends to its own engine: to vLLM each rank is rank 0 of a trainer of its own, but vLLM
gathers the handles of all ranks by torch's default group, and an engine picks those of its GPU.

Needs GPUs on both sides; written against vLLM 0.32, it has not run on one yet (docs/vllm.md).
"""

import base64
import pickle
import socket
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from pipeline.distributed import ranks
from pipeline.errors import SrpoError
from pipeline.policy.adapters import plain_weights
from pipeline.vllm.replica import Replica
from pipeline.vllm.server_process import free_port
from pipeline.vllm.weights import FanOutClient, named_weights

_BUFFER_BYTES = 256 << 20
"""Weights that travel together. By nccl the sender holds up to two such buffers and the weights of
the next; vLLM's default, a GiB, would cost rank 0 some GiB."""


class PolicyWeights(WeightSource):
    """The policy's weights as vLLM's trainer side reads them."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype

    def metadata(self) -> list[ParamMeta]:
        """Name every weight, its dtype on the way, and its shape."""
        named = plain_weights(self._model, self._dtype)
        return [ParamMeta(name, self._dtype, tuple(weight.shape)) for name, weight in named]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights in the same order, on the GPU even if the policy is on a CPU."""
        return ((name, weight.cuda()) for name, weight in named_weights(self._model, self._dtype))


class PicklingClient(FanOutClient):
    """Hosts that get handles of CUDA memory as text, as vLLM's own client over HTTP sends them."""

    def update_weights(self, update_info: Any) -> None:
        """See `WeightClient`; the pickle goes from a rank to its own child only."""
        handles = base64.b64encode(pickle.dumps(update_info["ipc_handles"])).decode()
        others = {name: value for name, value in update_info.items() if name != "ipc_handles"}
        super().update_weights({**others, "ipc_handles_pickled": handles})


class CollectiveSender:
    """Sends by nccl or ipc; connects again whenever the replicas or the policy have changed."""

    def __init__(self, transfer: Literal["nccl", "ipc"], dtype: torch.dtype) -> None:
        self._transfer, self._dtype = transfer, dtype
        self._connected: tuple[Any, ...] = ()
        self._client: FanOutClient | None = None
        self._trainer: Any = None

    def send(self, replicas: Sequence[Replica], model: Any, version: str, restarted: bool) -> None:
        """Connect if need be, and send (see `Sender.send`)."""
        parties = (model, *replicas)
        if restarted or self._client is None or self._connected != parties:
            self._client = self._connect(replicas, model, version)
            self._connected = parties
        self._client.version = version
        try:
            self._trainer.send_weights()
        except SrpoError as error:
            if ranks.size() > 1:  # the other ranks are still contributing their parts
                raise RuntimeError(f"sending weights from several ranks: {error}") from error
            raise

    def _connect(self, replicas: Sequence[Replica], model: Any, version: str) -> FanOutClient:
        if self._trainer is not None:
            self._trainer.shutdown()
        source = PolicyWeights(model, self._dtype)
        if self._transfer == "ipc":
            client: FanOutClient = PicklingClient(replicas, version)
            info: TrainerInitInfo = _ipc(source)
        else:
            client = FanOutClient(replicas, version)
            info = _nccl(1 + sum(replica.workers for replica in replicas))
        self._trainer = WeightTransferTrainerFactory.trainer_init(
            info, client=client, source=source
        )
        return client


def _ipc(source: PolicyWeights) -> IPCTrainerInitInfo:
    """Send the weights through one buffer; all at once they would take a second whole model."""
    largest = max(prod(weight.shape) * weight.dtype.itemsize for weight in source.metadata())
    buffer = max(largest, _BUFFER_BYTES)  # a weight beyond it would be refused
    return IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=buffer)


def _nccl(size: int) -> NCCLTrainerInitInfo:
    address = socket.gethostbyname(socket.gethostname())
    return NCCLTrainerInitInfo(
        rank=ranks.rank(),
        master_address=address,
        master_port=free_port(),
        world_size=size,
        packed_buffer_size_bytes=_BUFFER_BYTES,
    )
