"""A model spread over ranks by FSDP2: each holds a part of every parameter, and gathers the rest.

Layers are gathered one by one while a pass goes through them; embeddings and output projection
stay gathered until `reshard`. Where passes run under bfloat16 autocast, which rounds a layer's
matrices before it multiplies by them, they are rounded before they are gathered. Gradients are
summed, not averaged: every loss is divided by a number that counts all ranks' tokens. A model that
is kept in the host's memory is spread too, also over one rank: gathering a layer is then what
brings it to the GPU.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from pipeline.errors import PolicyError

Spread = Callable[[Any], None]
"""What spreads a model over ranks, in place."""

_ENCODE = "srpo_encode"
_ROUNDED = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)


def shard(model: Any, device: torch.device, offload: bool, bfloat16: bool) -> None:
    """Spread a model's parameters over all ranks, in place; it may be without weights yet.

    A pass goes through the decoder without the projection, so that method is what FSDP watches.

    Args:
        device: where passes are made.
        offload: keep parts, and their gradients, in the host's memory.
        bfloat16: whether passes run under bfloat16 autocast.
    """
    if not dist.is_initialized():  # one rank has no other use for a group
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(store=store, rank=0, world_size=1)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    pinned = device.type == "cuda"
    kept = CPUOffloadPolicy(pin_memory=pinned) if offload else OffloadPolicy()
    spread = partial(fully_shard, mesh=mesh, offload_policy=kept)
    layers = _layers(model)
    for layer in layers:
        if bfloat16:
            _spread_rounded(layer, spread)
        else:
            spread(layer)
    for earlier, later in pairwise(layers):  # by itself FSDP would turn to `later`'s norms first
        later.set_modules_to_backward_prefetch([earlier])
    spread(model)
    setattr(model, _ENCODE, MethodType(lambda self, **inputs: self.get_decoder()(**inputs), model))
    register_fsdp_forward_method(model, _ENCODE)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def _layers(model: Any) -> Any:
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None:
        raise PolicyError("its decoder names no layers; several ranks and cpu_offload need them")
    return layers


def _spread_rounded(layer: Any, spread: Callable[..., Any]) -> None:
    """Spread a layer: its linear modules to be gathered in bfloat16, all else in float32.

    Autocast would round what linear modules multiply by, and nothing else for certain.
    """
    for module in reversed(list(layer.modules())[1:]):  # what lies within before what is around it
        if _owns_parameters(module) and not isinstance(module, nn.Linear):
            spread(module)
    if _owns_parameters(layer):
        spread(layer)
    else:
        spread(layer, mp_policy=_ROUNDED)


def _owns_parameters(module: Any) -> bool:
    return any(True for _ in module.parameters(recurse=False))


class ExactProducts(TorchFunctionMode):
    """In its block linear modules compute in their input's precision, whatever was gathered."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Convert weight and bias, if the function is `linear`."""
        if function is linear:
            inputs, *weights = args
            args = (inputs, *[w if w is None else w.to(inputs.dtype) for w in weights])
        return function(*args, **(kwargs or {}))


def placed(model: Any, device: torch.device, offload: bool) -> Any:
    """Return a model moved to where it is kept; what isn't a weight goes to the passes' device."""
    if not offload:
        return model.to(device)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    return model


@torch.no_grad()
def copied(model: Any, spread: Spread | None) -> Any:
    """Return a copy of a model; of one that is spread, each rank copies its part."""
    if spread is None:
        return copy.deepcopy(model)
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(
            copy.deepcopy(model.config), trust_remote_code=False
        )
    spread(twin)
    copies: dict[int, Tensor] = {}  # a tied weight has one
    for name, parameter in model.named_parameters(remove_duplicate=False):
        value = copies.setdefault(id(parameter), nn.Parameter(parameter.detach().clone()))
        put_tensor(twin, name, value)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        put_tensor(twin, name, buffer.clone())
    return twin


def put_tensor(model: Any, name: str, value: Tensor) -> None:
    """Set a parameter or buffer of a model by its dotted name."""
    module, _, own = name.rpartition(".")
    setattr(model.get_submodule(module), own, value)


def encoder_of(model: Any) -> Any:
    """Return what to call for a model's hidden states."""
    return getattr(model, _ENCODE, None) or model.get_decoder()


def reshard(model: Any) -> None:
    """Give back what was gathered: the parameters are this rank's parts again.

    So they are also after an error in the middle of a pass, which FSDP takes to go on.
    """
    for part in _parts(model):
        part.set_reshard_after_forward(True, recurse=False)
        part.reshard()
        part.set_reshard_after_forward(not _stays(part, model), recurse=False)


def _stays(part: Any, model: Any) -> bool:
    """Tell whether a part stays gathered between passes: the outermost, and a layer's vectors."""
    return part is model or all(parameter.dim() == 1 for parameter in part.parameters())


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Hold the whole model for a block, in which each rank makes as many passes as it likes."""
    for part in _parts(model):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        reshard(model)


def whole(tensor: Tensor) -> Tensor:
    """Return a parameter with all its parts; every rank must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_spread(tensor: Tensor) -> bool:
    """Tell whether ranks have a part each."""
    return isinstance(tensor, DTensor)


@torch.no_grad()
def sum_replicated(gradients: Iterable[Tensor]) -> None:
    """Sum, over ranks, gradients of what each rank holds whole, in place; FSDP sums all others.

    Every rank must call it, and has the same sums afterwards, to the last bit.
    """
    whole_ones = [gradient for gradient in gradients if not is_spread(gradient)]
    if not whole_ones or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    joined = torch.cat([gradient.reshape(-1) for gradient in whole_ones])
    dist.all_reduce(joined)
    parts = torch.split(joined, [gradient.numel() for gradient in whole_ones])
    for gradient, part in zip(whole_ones, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a parameter."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _parts(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
