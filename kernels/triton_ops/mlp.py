"""Feed-forward block without biases; only the pre-activation is kept for the backward pass.

u = x @ w1.T,  a = gelu(u) = u * P(u),  out = a @ w2.T     P(u) = (1 + erf(u / sqrt(2))) / 2
du = (d(out) @ w2) * (P(u) + u * p(u))                     p(u) = exp(-u^2 / 2) / sqrt(2 pi)
dw2 = d(out).T @ gelu(u),  dx = du @ w1,  dw1 = du.T @ x

At training sizes the products are bound by arithmetic, where the vendor's library is hard to beat;
the kernels are what is left between them: the activation, and in the backward pass its derivative
together with the activation made again, in one pass over memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from audiogen_fast.kernels._launch import OPTIONS

_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_BLOCK = 1024


@triton.jit
def _normal_cdf(u):
    return 0.5 + 0.5 * tl.erf(u * 0.7071067811865476)


@triton.jit
def gelu_kernel(
    u_ptr,  # [size]
    out_ptr,  # [size]
    size,
    BLOCK: tl.constexpr,
):
    """a = u * P(u)"""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    u = tl.load(u_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, (u * _normal_cdf(u)).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gelu_backward_kernel(
    grad_ptr,  # [size], gradient of a; becomes that of u
    u_ptr,  # [size]
    out_ptr,  # [size], a made again
    size,
    BLOCK: tl.constexpr,
):
    """du = da * (P(u) + u * p(u));  a = u * P(u)"""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    grad = tl.load(grad_ptr + place, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(u_ptr + place, mask=mask, other=0.0).to(tl.float32)
    cdf = _normal_cdf(u)
    density = tl.exp(-0.5 * u * u) * 0.3989422804014327
    grad *= cdf + u * density
    tl.store(grad_ptr + place, grad.to(grad_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptr + place, (u * cdf).to(out_ptr.dtype.element_ty), mask=mask)


def gelu(u: Tensor) -> Tensor:
    """Exact GELU of a contiguous float32, float16 or bfloat16 tensor, computed in float32."""
    _check(u)
    out = torch.empty_like(u)
    if u.numel() > 0:
        with torch.cuda.device_of(u):  # triton launches on the current device
            gelu_kernel[(triton.cdiv(u.numel(), _BLOCK),)](
                u, out, u.numel(), BLOCK=_BLOCK, **OPTIONS
            )
    return out


def gelu_backward_(grad: Tensor, u: Tensor) -> Tensor:
    """Multiplies `grad` by the derivative of GELU at `u`, in place; returns `gelu(u)`."""
    _check(u)
    _check(grad)
    _require(grad.shape == u.shape, f"grad must be {tuple(u.shape)}, got {tuple(grad.shape)}")
    out = torch.empty_like(u)
    if u.numel() > 0:
        with torch.cuda.device_of(u):
            gelu_backward_kernel[(triton.cdiv(u.numel(), _BLOCK),)](
                grad, u, out, u.numel(), BLOCK=_BLOCK, **OPTIONS
            )
    return out


def mlp(x: Tensor, weight1: Tensor, weight2: Tensor) -> tuple[Tensor, Tensor]:
    """`gelu(x @ weight1.T) @ weight2.T`, and the pre-activation.

    Args:
        x: `[..., D]` of the dtype of the weights.
        weight1, weight2: float32, float16 or bfloat16 `[F, D]` and `[D, F]`.
    Returns:
        `[..., D]` and `[M, F]`, M being the number of rows of x.
    Raises:
        ValueError: an argument of the wrong shape or dtype.
    """
    _check_weights(x, weight1, weight2)
    hidden = torch.mm(x.reshape(-1, x.shape[-1]), weight1.t())
    out = torch.mm(gelu(hidden), weight2.t())
    return out.view(*x.shape[:-1], weight2.shape[0]), hidden


def mlp_backward(
    grad: Tensor, x: Tensor, hidden: Tensor, weight1: Tensor, weight2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight1 and weight2; `hidden` is the second result of `mlp`."""
    _check_weights(x, weight1, weight2)
    rows = x.reshape(-1, x.shape[-1])
    grad = grad.reshape(-1, weight2.shape[0])
    grad_hidden = torch.mm(grad, weight2)
    activation = gelu_backward_(grad_hidden, hidden)
    grad_weight2 = torch.mm(grad.t(), activation)
    grad_weight1 = torch.mm(grad_hidden.t(), rows)
    return torch.mm(grad_hidden, weight1).view(x.shape), grad_weight1, grad_weight2


def _check(u: Tensor) -> None:
    _require(u.dtype in _FLOAT_DTYPES, f"the input must be of a float dtype, got {u.dtype}")
    _require(u.is_contiguous(), "the input must be contiguous")


def _check_weights(x: Tensor, weight1: Tensor, weight2: Tensor) -> None:
    _require(
        weight1.ndim == 2 and weight1.shape[1] == x.shape[-1],
        f"weight1 must be [F, {x.shape[-1]}], got {tuple(weight1.shape)}",
    )
    _require(
        weight2.ndim == 2 and weight2.shape[1] == weight1.shape[0],
        f"weight2 must be [D, {weight1.shape[0]}], got {tuple(weight2.shape)}",
    )
    for name, tensor in (("x", x), ("weight2", weight2)):
        _require(
            tensor.dtype == weight1.dtype,
            f"{name} must be of the dtype of weight1, {weight1.dtype}, got {tensor.dtype}",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
