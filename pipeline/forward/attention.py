"""Attention that a layout computes, plugged into transformers' attention interface.

A forward pass may carry a layout: an object that knows which positions of a packed row see which
others (`packing.PackedRow`), or where earlier keys and values lie (`decoding.Branches`). Without a
layout the implementation is transformers' own for scaled_dot_product_attention, so a model keeps
it for good, also while activations are recomputed in a backward pass.
"""

from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "srpo_layouts"

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
# What a model may pass that changes no number here. Anything else must be absent or None.
_HARMLESS = {
    *("position_ids", "cache_position", "use_cache", "past_key_values", "is_causal"),
    *("output_attentions", "output_hidden_states", "return_dict", "num_items_in_batch"),
}
_LAID_OUT: ContextVar[bool] = ContextVar("laid_out", default=False)


class UnsupportedAttention(Exception):
    """A model's attention does something that layouts don't know."""


class Layout(Protocol):
    """Who sees whom in one forward pass."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """Return the attention's output.

        Args:
            layer: index of the layer.
            query: [B, H, L, d]; key and value: [B, H_kv, L, d], H a multiple of H_kv.
            scaling: factor of the scores; None: 1 / sqrt(d).
            window: a position sees itself and this many less one before it; None: all.

        Returns:
            [B, L, H, d], contiguous.
        """


def install(model: Any) -> bool:
    """Give a model this implementation; False where its attention can't be laid out."""
    kinds = set(getattr(model.config, "layer_types", None) or _KNOWN_LAYERS)
    if not kinds <= _KNOWN_LAYERS or model.config._attn_implementation != "sdpa":
        return bool(model.config._attn_implementation == IMPLEMENTATION)
    model.set_attn_implementation(IMPLEMENTATION)
    return True


def laid_out_hidden(encoder: Any, layout: Layout, ids_BL: Tensor, positions_BL: Tensor) -> Tensor:
    """Return the hidden states [B, L, D] of a pass in which `layout` computes the attention."""
    token = _LAID_OUT.set(True)
    try:
        hidden_BLD: Tensor = encoder(
            input_ids=ids_BL, position_ids=positions_BL, use_cache=False, srpo_layout=layout
        ).last_hidden_state
    finally:
        _LAID_OUT.reset(token)
    return hidden_BLD


def causal(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Return plain causal attention, [B, H, L, d]."""
    grouped = key.shape[1] != query.shape[1]  # H_kv < H: heads of keys are shared, not copied
    return scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped
    )


def masked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None
) -> Tensor:
    """Return attention where `mask` [L, S] (True: sees) allows it, [B, H, L, d]."""
    grouped = key.shape[1] != query.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=grouped
    )


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    srpo_layout: Layout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    if srpo_layout is None:
        output, _ = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            **others,
        )
        return output, None
    # A layout knows scores, windows and nothing else: what could change a number is refused.
    strange = [k for k, v in others.items() if v is not None and k not in _HARMLESS]
    if strange or dropout:
        raise UnsupportedAttention(f"its attention uses {', '.join(strange) or 'dropout'}")
    output = srpo_layout.attend(module.layer_idx, query, key, value, scaling, sliding_window)
    return output, None


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Return transformers' mask, or none where a layout will do without."""
    # transformers builds the mask, [B, 1, L, S], before any layer sees the layout: hence the flag.
    if _LAID_OUT.get():
        return None
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)
