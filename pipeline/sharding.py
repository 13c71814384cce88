"""A model spread over ranks by FSDP2: each holds a part of every parameter, and gathers the rest.

Layers are gathered one by one while a pass goes through them; embeddings and output projection
stay gathered until `settle`. Gradients are summed, not averaged: every loss is divided by a number
that counts all ranks' tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

_ENCODE = "srpo_encode"


def shard(model: Any) -> None:
    """Spread a model's parameters over all ranks, in place.

    A pass goes through the decoder without the projection, so that method is what FSDP watches.
    """
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    setattr(model, _ENCODE, MethodType(lambda self, **inputs: self.get_decoder()(**inputs), model))
    register_fsdp_forward_method(model, _ENCODE)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def encoder_of(model: Any) -> Any:
    """Return what to call for a model's hidden states."""
    return getattr(model, _ENCODE, None) or model.get_decoder()


def settle(model: Any) -> None:
    """Give back what was gathered: the parameters are this rank's parts again."""
    for part in _parts(model):
        part.reshard()


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Hold the whole model for a block, in which each rank makes as many passes as it likes."""
    for part in _parts(model):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        settle(model)
        for part in _parts(model):
            part.set_reshard_after_forward(part is not model, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """Return a parameter with all its parts; every rank must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_spread(tensor: Tensor) -> bool:
    """Tell whether ranks have a part each."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a parameter."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor that every rank has, in parts as those of `like`."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def _parts(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
