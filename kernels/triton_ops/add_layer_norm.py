"""Residual add and layer norm in one pass over the rows, and its backward pass.

r = x + residual                     (float32, rounded to the dtype of residual)
y = (r - mean(r)) * rstd * w + b     rstd = 1 / sqrt(var(r) + eps)

With h = (r - mean) * rstd and g = dy * w:
dr = rstd * (g - mean(g) - h * mean(g * h)) + d(sum),  dw = sum dy * h,  db = sum dy
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from audiogen_fast.kernels._launch import OPTIONS

_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_WIDTH = 16384  # a row is held in registers


@triton.jit
def add_layer_norm_kernel(
    x_ptr,  # [M, N], rows x_stride apart
    residual_ptr,  # [M, N], rows residual_stride apart
    weight_ptr,  # [N]
    bias_ptr,  # [N]; read only with HAS_BIAS
    out_ptr,  # [M, N]
    sum_ptr,  # [M, N]
    mean_ptr,  # [M] float32
    rstd_ptr,  # [M] float32
    N,
    x_stride,
    residual_stride,
    eps,
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """r = x + residual;  y = (r - mean(r)) * rstd(r) * w + b   (one row per program)"""
    row = tl.program_id(0).to(tl.int64)  # int64 before it meets a stride
    cols = tl.arange(0, BLOCK_N)
    mask = cols < N
    x = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    r = tl.load(residual_ptr + row * residual_stride + cols, mask=mask, other=0.0)
    r = (x + r.to(tl.float32)).to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + row * N + cols, r, mask=mask)
    r = r.to(tl.float32)
    mean = tl.sum(r, axis=0) / N
    centred = tl.where(mask, r - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / N + eps)
    y = centred * rstd * tl.load(weight_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * N + cols, y.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)


@triton.jit(do_not_specialize=["M"])
def add_layer_norm_backward_kernel(
    grad_out_ptr,  # [M, N], rows grad_out_stride apart
    grad_sum_ptr,  # [M, N], rows grad_sum_stride apart
    sum_ptr,  # [M, N]
    weight_ptr,  # [N]
    mean_ptr,  # [M] float32
    rstd_ptr,  # [M] float32
    grad_ptr,  # [M, N]
    grad_weight_ptr,  # [programs, N] float32
    grad_bias_ptr,  # [programs, N] float32
    M,
    N,
    grad_out_stride,
    grad_sum_stride,
    BLOCK_N: tl.constexpr,
):
    """Each program takes every n-th row and adds up its own share of dw and db."""
    program = tl.program_id(0)
    cols = tl.arange(0, BLOCK_N)
    mask = cols < N
    w = tl.load(weight_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    grad_w = tl.zeros([BLOCK_N], dtype=tl.float32)
    grad_b = tl.zeros([BLOCK_N], dtype=tl.float32)
    for index in range(program, M, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        dy = tl.load(grad_out_ptr + row * grad_out_stride + cols, mask=mask, other=0.0)
        dy = dy.to(tl.float32)
        dr = tl.load(grad_sum_ptr + row * grad_sum_stride + cols, mask=mask, other=0.0)
        r = tl.load(sum_ptr + row * N + cols, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        h = tl.where(mask, (r - tl.load(mean_ptr + row)) * rstd, 0.0)
        g = dy * w
        mean_g = tl.sum(g, axis=0) / N
        mean_gh = tl.sum(g * h, axis=0) / N
        grad = rstd * (g - mean_g - h * mean_gh) + dr.to(tl.float32)
        tl.store(grad_ptr + row * N + cols, grad.to(grad_ptr.dtype.element_ty), mask=mask)
        grad_w += dy * h
        grad_b += dy
    place = program.to(tl.int64) * N + cols
    tl.store(grad_weight_ptr + place, grad_w, mask=mask)
    tl.store(grad_bias_ptr + place, grad_b, mask=mask)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    out_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add, normalise in float32, and keep what the backward pass needs.

    Args:
        x, residual: float32, float16 or bfloat16 `[..., N]` of one shape, any strides.
        weight, bias: `[N]`, contiguous; the bias may be None.
        out_dtype: dtype of the normalised result.
    Returns:
        The normalised sum `[..., N]` of `out_dtype`, the sum `[..., N]` in the dtype of `residual`,
        and float32 mean and reciprocal standard deviation `[M]` of its M rows; all contiguous.
    Raises:
        ValueError: an argument of the wrong shape, dtype or layout.
    """
    _require(x.shape == residual.shape, f"x must be {tuple(residual.shape)}, got {tuple(x.shape)}")
    for name, tensor in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias)):
        if tensor is not None:
            _require(
                tensor.dtype in _FLOAT_DTYPES, f"{name} must be a float dtype, got {tensor.dtype}"
            )
    _require(out_dtype in _FLOAT_DTYPES, f"out_dtype must be a float dtype, got {out_dtype}")
    width = _check_width(x, weight, bias)
    total = torch.empty(residual.shape, dtype=residual.dtype, device=x.device)
    out = torch.empty(residual.shape, dtype=out_dtype, device=x.device)
    x, residual = _rows(x), _rows(residual)
    mean = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if x.shape[0] == 0:
        return out, total, mean, rstd
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):  # triton launches on the current device
        add_layer_norm_kernel[(x.shape[0],)](
            x,
            residual,
            weight,
            weight if bias is None else bias,
            out,
            total,
            mean,
            rstd,
            width,
            x.stride(0),
            residual.stride(0),
            eps,
            HAS_BIAS=bias is not None,
            BLOCK_N=block,
            num_warps=_warps(block),
            **OPTIONS,
        )
    return out, total, mean, rstd


def add_layer_norm_backward(
    grad_out: Tensor, grad_sum: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `add_layer_norm`; the same bits at every run on one kind of GPU.

    Args:
        grad_out, grad_sum: gradients of its first two results, any strides.
        total, mean, rstd: its last three results.
        weight: as given to it.
    Returns:
        The gradient of x and of residual alike `[..., N]` in the dtype of `total`; float32 `[N]`
        gradients of weight and bias.
    """
    width = _check_width(total, weight, None)
    _require(total.is_contiguous(), "total must be contiguous")
    for name, tensor in (("grad_out", grad_out), ("grad_sum", grad_sum)):
        _require(
            tensor.shape == total.shape,
            f"{name} must be {tuple(total.shape)}, got {tuple(tensor.shape)}",
        )
    grad = torch.empty_like(total)
    grad_out, grad_sum = _rows(grad_out), _rows(grad_sum)
    rows = grad_out.shape[0]
    programs = min(rows, _programs(total.device))
    partial_weight = torch.empty(programs, width, dtype=torch.float32, device=total.device)
    partial_bias = torch.empty_like(partial_weight)
    block = triton.next_power_of_2(width)
    if rows > 0:
        with torch.cuda.device_of(total):
            add_layer_norm_backward_kernel[(programs,)](
                grad_out,
                grad_sum,
                total,
                weight,
                mean,
                rstd,
                grad,
                partial_weight,
                partial_bias,
                rows,
                width,
                grad_out.stride(0),
                grad_sum.stride(0),
                BLOCK_N=block,
                num_warps=_warps(block),
                **OPTIONS,
            )
    return grad, partial_weight.sum(dim=0), partial_bias.sum(dim=0)


def _rows(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


def _warps(block: int) -> int:
    return 4 if block <= 2048 else 8 if block <= 4096 else 16


def _check_width(x: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    width = x.shape[-1]
    _require(
        1 <= width <= _MAX_WIDTH, f"the last dimension must be in [1, {_MAX_WIDTH}], got {width}"
    )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            _require(
                tensor.shape == (width,), f"{name} must be [{width}], got {tuple(tensor.shape)}"
            )
            _require(tensor.is_contiguous(), f"{name} must be contiguous")
            _require(
                tensor.device == x.device,
                f"{name} must be on the device of x, {x.device}, got {tensor.device}",
            )
    return width


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
