"""Low-rank adapters on a frozen base (docs/method.md, section 14).

A linear layer of weight W [out, in] with an adapter computes W x + (a/r) B (A x). A layer gets its
adapter in place: it stays the module that it was, with two parameters more, so the base's weights
keep their names, and whatever walks through a model still finds its decoder, its output projection
and its linear layers. A teacher is a second tree of modules around the same base tensors, with an A
and a B of its own: to everything that scores, it is simply another model.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pipeline.config.sections import LoraSection, ModelSection
from pipeline.errors import PolicyError
from pipeline.seeds import derive_seed

_NAMES = ("lora_A", "lora_B")
_STIRRED = 0.1
_SHOWN = 12


class _Product(torch.autograd.Function):
    """W x + b with frozen W and b, in the precision of x; the copy of W in it is not kept.

    By autograd's own rule the backward pass would keep such a copy of every layer's weights.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return gradient @ weight.to(gradient.dtype), None, None


class FrozenLinear(nn.Linear):
    """A linear layer whose weight may be stored in bfloat16: it computes in its input's precision.

    Under autocast that is autocast's.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return W x + b, [..., out] of x [..., in]."""
        x = _rounded_by_autocast(input)
        product: Tensor = _Product.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product


class FrozenEmbedding(nn.Embedding):
    """A table of embeddings whose weight may be stored in bfloat16: it gives float32.

    Gemma scales what it looks up, in the precision of the table; here it is scaled in float32.
    """

    embed_scale: Tensor | float

    def forward(self, input: Tensor) -> Tensor:
        """Return rows of the table, times `embed_scale` if there is one, [..., D] of ids [...]."""
        embedded = super().forward(input).float()
        return embedded * self.embed_scale if hasattr(self, "embed_scale") else embedded


class AdaptedLinear(FrozenLinear):
    """A frozen linear layer with an adapter, in place of the layer that it was.

    Attributes:
        lora_A: A, [r, in], float32.
        lora_B: B, [out, r], float32.
        lora_scale: a/r.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_scale: float

    def forward(self, input: Tensor) -> Tensor:
        """Return W x + b + (a/r) B (A x), [..., out] of x [..., in]."""
        x = _rounded_by_autocast(input)
        reduced = linear(x, self.lora_A.to(x.dtype)) * self.lora_scale  # [..., r]
        return linear(reduced, self.lora_B.to(x.dtype)).add_(super().forward(x))

    def merged(self) -> Tensor:
        """Return W + (a/r) B A, [out, in], float32."""
        return self.weight.float() + self.lora_scale * (self.lora_B @ self.lora_A)


def adapt(model: Any, settings: ModelSection) -> None:
    """Freeze a model and give its target layers adapters that change nothing yet, in place.

    Matrices of the base are stored in `model.base_dtype`, vectors (norms, biases) in float32.

    Raises:
        PolicyError: a target names no layer, or one that can't have an adapter of that rank; a
            weight can't be stored in bfloat16.
    """
    lora = settings.lora
    assert lora is not None
    targets = _targets(model, lora)
    model.requires_grad_(False)
    if settings.base_dtype == "bfloat16":
        _store_in_bfloat16(model)
    for layer in targets:
        layer.__class__ = AdaptedLinear
        outputs, inputs = layer.weight.shape
        like = {"dtype": torch.float32, "device": layer.weight.device}
        layer.lora_A = nn.Parameter(torch.zeros(lora.rank, inputs, **like))
        layer.lora_B = nn.Parameter(torch.zeros(outputs, lora.rank, **like))
        layer.lora_scale = lora.alpha / lora.rank


@torch.no_grad()
def draw_adapters(model: Any, seed: int) -> None:
    """Give adapters their start: A uniform in ±1/sqrt(in), from the run's seed, and B = 0.

    Each layer draws by its own name, so its A does not depend on which others have adapters.
    """
    for name, layer in _adapted(model):
        generator = torch.Generator().manual_seed(derive_seed(seed, f"lora/{name}"))
        bound = layer.in_features**-0.5
        drawn = torch.rand(layer.lora_A.shape, generator=generator)  # on the CPU: same everywhere
        layer.lora_A.copy_((2 * drawn - 1) * bound)
        layer.lora_B.zero_()


def trainable(model: Any) -> dict[str, Tensor]:
    """Return what training changes of a model, by name: A and B if it has adapters, else all of it.

    A tied weight comes once, under its first name.
    """
    named = dict(model.named_parameters())
    return {name: p for name, p in named.items() if _of_adapter(name)} or named


def sharing_base(model: Any) -> Any:
    """Return a copy of a model with adapters: the same base tensors, an A and a B of its own."""
    base = [tensor for name, tensor in model.named_parameters() if not _of_adapter(name)]
    shared = {id(tensor): tensor for tensor in [*base, *model.buffers()]}
    return copy.deepcopy(model, shared)


@torch.no_grad()
def plain_weights(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield this rank's part of every weight under the names that it has without adapters.

    Merged weights are new tensors, summed in float32 and rounded to `dtype`; all others are the
    model's own. A tied weight comes once per name: an engine that holds a copy under the second
    name, as vLLM does of an output projection, would keep the old one.
    """
    adapted = {f"{name}.weight": layer for name, layer in _adapted(model)}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in adapted:
            yield name, adapted[name].merged().to(dtype)
        elif not _of_adapter(name):
            yield name, parameter.detach()


@contextmanager
def stirred(model: Any) -> Iterator[None]:
    """Fill each B with noise for a block: what a probe finds out then holds for adapters, too.

    At the start of training B is 0, and a layer that lost its adapter would not show.
    """
    layers = [layer for _, layer in _adapted(model)]
    kept = [layer.lora_B.detach().clone() for layer in layers]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in layers:
            noise = torch.randn(layer.lora_B.shape, generator=generator)
            layer.lora_B.copy_(noise * (_STIRRED / layer.lora_scale))
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, values in zip(layers, kept, strict=True):
                layer.lora_B.copy_(values)


def _adapted(model: Any) -> list[tuple[str, AdaptedLinear]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, AdaptedLinear)]


def _of_adapter(name: str) -> bool:
    return name.rpartition(".")[2] in _NAMES


def _rounded_by_autocast(x: Tensor) -> Tensor:
    """Round an input as autocast would, once for all products with it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _targets(model: Any, lora: LoraSection) -> list[Any]:
    """Return the layers whose name is a target, or ends in one.

    Raises:
        PolicyError: see `adapt`.
    """
    head, name_of_model = model.get_output_embeddings(), model.name_or_path
    found: dict[str, Any] = {}
    for target in lora.targets:
        layers = {
            name: module
            for name, module in model.named_modules()
            if name == target or name.endswith(f".{target}")
        }
        if not layers:
            linear_layers = sorted(
                {
                    name.rpartition(".")[2]
                    for name, module in model.named_modules()
                    if type(module) is nn.Linear and module is not head
                }
            )
            called = f"its linear layers are called {', '.join(linear_layers[:_SHOWN])}"
            raise PolicyError(
                f"model.lora.targets: {name_of_model} has no layer {target}; "
                f"{called if linear_layers else 'it has no plain linear layers'}"
            )
        for name, module in layers.items():
            if module is head or name.endswith("lm_head"):
                raise PolicyError(
                    f"model.lora.targets: {target} is the output projection of {name_of_model}, "
                    "which stays frozen; leave it out"
                )
            if type(module) is not nn.Linear:
                raise PolicyError(
                    f"model.lora.targets: {name} of {name_of_model} is a {type(module).__name__}; "
                    "only plain linear layers can have adapters"
                )
        found |= layers
    weights = [id(layer.weight) for layer in found.values()]
    tied = {
        name
        for name, layer in found.items()
        if weights.count(id(layer.weight)) > 1 or layer.weight is head.weight
    }
    if tied:
        raise PolicyError(
            f"model.lora.targets: {sorted(tied)[0]} of {name_of_model} shares its weight with "
            "another layer; only layers with a weight of their own can have adapters"
        )
    for name, layer in found.items():
        if lora.rank > max(layer.weight.shape):
            rows, columns = layer.weight.shape
            raise PolicyError(
                f"model.lora.rank is {lora.rank}: more than both sides of {name} of "
                f"{name_of_model}, {rows} by {columns}, whose changes have no such rank; lower it"
            )
    return list(found.values())


def _store_in_bfloat16(model: Any) -> None:
    """Store matrices in bfloat16; everything is still computed in its input's precision.

    Raises:
        PolicyError: a matrix is in no linear layer and no table of embeddings that we know, so the
            model's own code would compute with it, in whatever precision.
    """
    stored = set()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            module.__class__ = FrozenLinear
        elif type(module) is nn.Embedding or _scales(module):
            module.__class__ = FrozenEmbedding
            if hasattr(module, "scalar_embed_scale"):  # a model read in bfloat16 rounded the buffer
                exact = torch.tensor(module.scalar_embed_scale, device=module.weight.device)
                module.embed_scale = exact
        else:
            continue
        module.weight.data = module.weight.data.bfloat16()
        stored.add(f"{name}.weight")
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in stored:
            continue
        parameter.data = parameter.data.float()
        if parameter.dim() > 1:
            raise PolicyError(
                f"{model.name_or_path}: {name} is in no linear layer and in no plain table of "
                "embeddings, so this model can't be kept in bfloat16; leave model.base_dtype at "
                '"float32"'
            )
    for name, buffer in model.named_buffers():
        if buffer.dtype == torch.bfloat16:
            raise PolicyError(
                f"{model.name_or_path}: {name}, which is no weight, would be rounded to bfloat16; "
                'leave model.base_dtype at "float32"'
            )


def _scales(module: Any) -> bool:
    """Tell whether a table of embeddings is one of those of transformers that scale."""
    return isinstance(module, nn.Embedding) and hasattr(module, "embed_scale")
