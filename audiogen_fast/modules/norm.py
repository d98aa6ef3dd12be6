"""Layer norm in float32 and linear maps in the weight's dtype: the model's precision layout.

The residual stream and the norms stay in float32; matrix products run in the dtype the weights are
held in. On a GPU that is what the original does with autocast, written out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.ops import autograd, native_training, reference
from audiogen_fast.ops.dispatch import fast_paths_enabled


def _swaps_few_rows() -> bool:
    """Whether this processor multiplies few rows by a large matrix faster the other way round.

    Measured on an AMD EPYC with MKL: `weight @ x.T` reads the weights 2 to 4 times as fast as
    `x @ weight.T` for 2 to 4 rows. On Intel's own processors the plain form is near the memory's
    speed already.
    """
    return native_training.is_amd()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` in the dtype of `weight`."""
    x = x.to(weight.dtype)
    rows = x.numel() // x.shape[-1]
    if (
        2 <= rows <= 4
        and weight.numel() >= 1 << 20
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and fast_paths_enabled()
        and _swaps_few_rows()
    ):
        out = (weight @ x.reshape(rows, -1).t()).t().contiguous()
        return (out if bias is None else out + bias).reshape(*x.shape[:-1], -1)
    if bias is None and torch.is_grad_enabled() and autograd.multiplies(x, weight):
        return autograd.linear(x, weight)
    return F.linear(x, weight, bias)


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes and returns float32 for half-precision input or parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return reference.layer_norm(x, self.weight, self.bias, self.eps)


def add_norm(x: Tensor, residual: Tensor, norm: LayerNorm, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`norm(x + residual)`, in the dtype in which a product with `weight` runs, and the sum."""
    kind, dtype = x.device.type, weight.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    return autograd.add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps, dtype)


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
