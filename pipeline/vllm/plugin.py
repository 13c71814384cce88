"""vLLM's side of the file backend: a worker loads weights from a file that the trainer wrote.

vLLM finds `register` by the entry point `vllm.general_plugins` in each of its processes. The calls
that surround a transfer are vLLM's own protocol; see `weights.FileSender` for the other side.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from pipeline.vllm.launch import FILE_BACKEND

_registered = False


def register() -> None:
    """Register the backend with vLLM, which may call this several times in a process."""
    global _registered
    if not _registered:
        WeightTransferEngineFactory.register_engine(FILE_BACKEND, FileTransferEngine)
        _registered = True


@dataclass
class FileInit(WeightTransferInitInfo):
    """Nothing: files need no connection."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):
    """Where the weights are: a safetensors file that this process can read."""

    path: str
    tensors: int


class FileTransferEngine(WeightTransferEngine[FileInit, FileUpdate]):
    """Loads whole checkpoints from files, layer by layer."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        """Prepare the layers to take weights in checkpoint format again."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Load the file.

        Raises:
            ValueError: it holds another number of tensors than the trainer wrote.
        """
        weights: dict[str, Any] = load_file(Path(update_info.path))
        if len(weights) != update_info.tensors:
            raise ValueError(
                f"{update_info.path}: {len(weights)} tensors, expected {update_info.tensors}"
            )
        self.model.load_weights(weights.items())

    def finish_weight_update(self) -> None:
        """Process the layers' weights into the form they are computed with."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing to release."""
