"""Layer norm in float32 and linear maps in the weight's dtype: the model's precision layout.

The residual stream and the norms stay in float32; matrix products run in the dtype the weights are
held in. On a GPU that is what the original does with autocast, written out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.ops import reference


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` in the dtype of `weight`."""
    return F.linear(x.to(weight.dtype), weight, bias)


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes and returns float32 for half-precision input or parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return reference.layer_norm(x, self.weight, self.bias, self.eps)


class LayerScale(nn.Module):
    """Learned scale per channel of a residual branch (Touvron et al., 2021)."""

    def __init__(self, channels: int, init: float = 1e-4, device=None, dtype=None):
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), init, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def create_norm_fn(norm_type: str, dim: int, **kwargs) -> nn.Module:
    """The normalisation layer of that name (only `layer_norm`, eps 1e-5, is ever configured)."""
    check(norm_type == "layer_norm", f"norm must be 'layer_norm', got {norm_type!r}")
    return LayerNorm(dim, eps=1e-5, **kwargs)
