"""Attention that a layout computes, plugged into transformers' attention interface.

A forward pass may carry a layout: an object that knows which positions of a packed row see which
others (`packing.PackedRow`), or where earlier keys and values lie (`decoding.Branches`). Without a
layout the implementation is transformers' own for scaled_dot_product_attention, so a model keeps
it for good, also while activations are recomputed in a backward pass.
"""

from contextvars import ContextVar
from typing import Any, Protocol

import torch
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
_LARGEST_SCORES = 2**26
"""Bytes of scores that are written out at once, where products of matrices compute attention."""
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
    if _by_products(query, key):
        length = query.shape[2]
        seen_LS = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
        return _products(query, key, value, seen_LS, scaling)
    grouped = key.shape[1] != query.shape[1]  # H_kv < H: heads of keys are shared, not copied
    return scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped
    )


def masked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None
) -> Tensor:
    """Return attention where `mask` [L, S] (True: sees) allows it, [B, H, L, d]."""
    if _by_products(query, key):
        return _products(query, key, value, mask, scaling)
    grouped = key.shape[1] != query.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=grouped
    )


def _by_products(query: Tensor, key: Tensor) -> bool:
    """Tell whether plain matrix products are quicker than torch's kernel: in bfloat16 on a CPU.

    The kernel is no faster in bfloat16 than in float32 there, products are: measured, 3 times for
    prompts and responses of some hundred tokens. Scores then exist, [B, H, L, S].
    """
    scores = query.shape[:3].numel() * key.shape[2]
    in_bfloat16 = query.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return in_bfloat16 and scores * torch.float32.itemsize <= _LARGEST_SCORES


def _products(
    query: Tensor, key: Tensor, value: Tensor, seen_LS: Tensor, scaling: float | None
) -> Tensor:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask_LS = torch.zeros(seen_LS.shape).masked_fill_(~seen_LS, -torch.inf)
    q, k, v = (t.bfloat16() for t in (query, key, value))
    output: Tensor = _Products.apply(q, k, v, mask_LS, scale)  # type: ignore[no-untyped-call]
    return output


class _Products(torch.autograd.Function):
    """softmax(scale q k^T + mask) v, products in their inputs' precision and the rest in float32.

    With w the softmax and g the output's gradient: dv = w^T g, dw = g v^T, ds = scale w (dw -
    sum(w dw)), dq = ds k, dk = ds^T q. The weights are computed again, not kept.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask_LS: Tensor, scale: float
    ) -> Tensor:
        # Heads that share keys stand together: n = B H_kv matrices of M = (H / H_kv) L rows.
        shape, (_, _, keys, width) = query.shape, key.shape
        k_nSd, v_nSd = key.reshape(-1, keys, width), value.reshape(-1, keys, width)
        q_nMd = query.reshape(len(k_nSd), -1, width)
        ctx.save_for_backward(q_nMd, k_nSd, v_nSd, mask_LS)
        ctx.scale, ctx.shapes = scale, (shape, key.shape)
        weights_nMS = _weights_nMS(q_nMd, k_nSd, mask_LS, scale)
        return (weights_nMS.to(v_nSd.dtype) @ v_nSd).view(shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_nMd, k_nSd, v_nSd, mask_LS = ctx.saved_tensors
        of_queries, of_keys = ctx.shapes
        narrow = v_nSd.dtype
        g_nMd = grads[0].reshape(q_nMd.shape)
        w_nMS = _weights_nMS(q_nMd, k_nSd, mask_LS, ctx.scale)
        d_value = w_nMS.to(narrow).mT @ g_nMd
        # In place from dw to w dw to w dw - w sum(w dw) = ds / scale.
        d_nMS = (g_nMd @ v_nSd.mT).to(w_nMS.dtype).mul_(w_nMS)
        d_nMS.addcmul_(w_nMS, d_nMS.sum(-1, keepdim=True), value=-1)
        d_narrow = d_nMS.mul_(ctx.scale).to(narrow)
        d_query, d_key = d_narrow @ k_nSd, d_narrow.mT @ q_nMd
        return d_query.view(of_queries), d_key.view(of_keys), d_value.view(of_keys), None, None


def _weights_nMS(q_nMd: Tensor, k_nSd: Tensor, mask_LS: Tensor, scale: float) -> Tensor:
    """Return the softmax of masked scores; M is a multiple of L, for heads that share keys."""
    scores_nMS = (q_nMd @ k_nSd.mT).to(mask_LS.dtype)
    scores_nMS.view(len(q_nMd), -1, *mask_LS.shape).mul_(scale).add_(mask_LS)
    return scores_nMS.softmax(-1)


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
