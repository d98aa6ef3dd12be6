"""Attention over whole sequences: torch's function, or flash-attn for the prompt on a GPU."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from audiogen_fast._attention import choose_attention, load_flash_attn
from audiogen_fast.ops import autograd

_HALF = (torch.float16, torch.bfloat16)


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    """`softmax(q k^T / sqrt(d)) v` as torch's function of that name defines it.

    `audiogen-fast env` shows the choice of `choose_attention` for causal attention in half
    precision, without a mask, on a GPU. Training on a CPU takes `autograd.causal_attention`, and
    everything else torch's function.

    Args:
        q: `[B, H, T, d]`; k, v: `[B, Hk, S, d]`.
        mask: boolean, broadcast to `[B, H, T, S]`.
        dropout: on the weights.
    Returns:
        `[B, H, T, d]` in the dtype of `q`.
    """
    if q.device.type == "cuda" and choose_attention(q.device)[0] == "flash-attn":
        plain = is_causal and mask is None and dropout == 0.0 and q.shape[2] == k.shape[2]
        fits = q.dtype in _HALF and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
        if plain and fits and not torch.is_grad_enabled():
            return flash_attention(load_flash_attn()[0], q, k, v)
    if is_causal and mask is None and dropout == 0.0 and _trains_on_cpu(q, k, v):
        return autograd.causal_attention(q, k, v)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=is_causal,
        enable_gqa=enable_gqa,
    )


def _trains_on_cpu(q: Tensor, k: Tensor, v: Tensor) -> bool:
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    same = q.shape == k.shape == v.shape and q.dtype == k.dtype == v.dtype
    return wanted and same and q.device.type == "cpu" and q.dtype != torch.float64


def flash_attention(function: Callable, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention by `flash_attn_func`, which has time before the heads."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return function(q, k, v, causal=True).transpose(1, 2)
