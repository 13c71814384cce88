"""Section 14: what adapters make of a frozen model, and the gradient at A and B; float64.

A state with adapters holds NAME.lora_A, [r, in], and NAME.lora_B, [out, r], of every weight
NAME.weight, [out, in], that has them, and nothing else that matters: the base never changes.
"""

from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]
_A, _B, _WEIGHT = ".lora_A", ".lora_B", ".weight"


def adapted(state: State) -> list[str]:
    """Return the names of the layers that have an adapter in `state`; empty: it is of no adapters.

    Raises:
        ValueError: a layer has only one of A and B.
    """
    both = [{n.removesuffix(end) for n in state if n.endswith(end)} for end in (_A, _B)]
    if odd := both[0] ^ both[1]:
        raise ValueError(f"A without B or B without A: {sorted(odd)}")
    return sorted(both[0])


def merged(base: State, state: State, scale: float) -> dict[str, Tensor]:
    """Return the weights W + (a/r) B A of all layers with adapters; `scale` is a/r.

    Raises:
        ValueError: the base has no such weight.
    """
    found = {}
    for layer in adapted(state):
        a, b = state[layer + _A].double(), state[layer + _B].double()
        if (name := layer + _WEIGHT) not in base:
            raise ValueError(f"an adapter of {layer}, which the base does not have")
        found[name] = base[name].double() + scale * (b @ a)
    return found


def gradient_of_adapters(state: State, gradient: State, scale: float) -> dict[str, Tensor]:
    """Return dL/dA = (a/r) B^T dL/dW and dL/dB = (a/r) dL/dW A^T from dL/dW, by the chain rule.

    Args:
        gradient: dL/dW at the merged weights.
    """
    found = {}
    for layer in adapted(state):
        a, b = state[layer + _A].double(), state[layer + _B].double()
        whole = gradient[layer + _WEIGHT]
        found[layer + _A] = scale * (b.T @ whole)
        found[layer + _B] = scale * (whole @ a.T)
    return found


def as_stored(weight: Tensor, bfloat16: bool) -> Tensor:
    """Return a weight of the base as it is stored: in bfloat16 matrices are, vectors aren't."""
    return weight.bfloat16().to(weight.dtype) if bfloat16 and weight.dim() > 1 else weight
