"""The parts that the forms of `norm_linear` share: inputs of a row, and what ends a product."""

import torch
import triton
import triton.language as tl

TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}

# Lengths that change between calls must not compile another variant.
VARYING = ("M", "SLOTS", "CAPACITY", "cache_stride_r", "cache_stride_h", "cache_stride_c")


@triton.jit
def finish(
    y,  # float32 block of products, N along the axis of `n`
    n,  # columns, and rows, shaped so that they broadcast to y
    row,
    mask,  # of what is written, shaped like y
    bias_ptr,  # [N]
    out_ptr,  # [M, N] or [M, N / 3]
    key_ptr,  # [M, H, CAPACITY, HEAD_DIM]
    value_ptr,
    positions_ptr,  # [M]
    M,
    CAPACITY,
    cache_stride_r,
    cache_stride_h,
    cache_stride_c,
    N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """Add the bias, then store, store gelu, add to the output, or split into q, keys, values.

    Gives back what was stored, in float32.
    """
    if HAS_BIAS:
        y += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    row = row.to(tl.int64)  # int64 before it meets a stride
    if EPILOGUE == "kv":
        width: tl.constexpr = N // 3
        tl.store(out_ptr + row * width + n, y.to(out_ptr.dtype.element_ty), mask=mask & (n < width))
        position = tl.load(positions_ptr + row, mask=row < M, other=-1)
        # Within a row 32 bits are enough, and wide blocks have no registers for more.
        inner = n % width
        start = row * cache_stride_r + position.to(tl.int64) * cache_stride_c
        place = inner // HEAD_DIM * cache_stride_h + inner % HEAD_DIM
        mask = mask & (n < tl.where((position >= 0) & (position < CAPACITY), N, 0))
        kept = y.to(key_ptr.dtype.element_ty)
        tl.store(key_ptr + start + place, kept, mask=mask & (n >= width) & (n < 2 * width))
        tl.store(value_ptr + start + place, kept, mask=mask & (n >= 2 * width))
    else:
        if EPILOGUE == "gelu":
            y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
        target = out_ptr + row * N + n
        if EPILOGUE == "add":
            y += tl.load(target, mask=mask, other=0.0)
        tl.store(target, y.to(out_ptr.dtype.element_ty), mask=mask)
    return y


@triton.jit
def add_parts(partial_ptr, place, mask, part, SPLIT: tl.constexpr):
    """Sum of the parts of a split product at `place`, in order; `part` is their distance.

    Read past the first-level cache, which another processor's write does not reach.
    """
    y = tl.load(partial_ptr + place, mask=mask, other=0.0, cache_modifier=".cg")
    for s in tl.static_range(1, SPLIT):
        y += tl.load(partial_ptr + s * part + place, mask=mask, other=0.0, cache_modifier=".cg")
    return y


@triton.jit
def statistics(x_ptr, row, exists, eps, K: tl.constexpr, BLOCK: tl.constexpr):
    """Mean and 1 / sqrt(variance + eps) of one row, the variance around the mean."""
    cols = tl.arange(0, BLOCK)
    inside = cols < K
    wanted = cols < tl.where(exists, K, 0)
    x = tl.load(x_ptr + row.to(tl.int64) * K + cols, mask=wanted, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / K
    centred = tl.where(inside, x - mean, 0.0)
    return mean, 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / K + eps)


@triton.jit
def gained(x, mean, rstd, cols, mask, norm_weight_ptr, norm_bias_ptr):
    """The layer norm of values x at `cols`, given the row's statistics."""
    weight = tl.load(norm_weight_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(norm_bias_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    return (x - mean) * rstd * weight + bias


@triton.jit
def inputs(
    x_ptr,
    rows,
    mask_m,
    M,
    cols,
    end,
    norm_weight_ptr,
    norm_bias_ptr,
    mean,
    rstd,
    mean_2,
    rstd_2,
    guidance,
    K: tl.constexpr,
    NORM: tl.constexpr,
    MIX: tl.constexpr,
):
    """a[rows, cols] in float32: the rows, their norms, or the mix of two norms."""
    inside_k = cols < end
    inside = mask_m[:, None] & inside_k[None, :]
    pointers = x_ptr + rows.to(tl.int64)[:, None] * K + cols[None, :]
    a = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        a = gained(
            a, mean[:, None], rstd[:, None], cols[None, :], inside_k[None, :], norm_weight_ptr,
            norm_bias_ptr,
        )  # fmt: skip
    if MIX:
        u = tl.load(pointers + M.to(tl.int64) * K, mask=inside, other=0.0).to(tl.float32)
        u = gained(
            u, mean_2[:, None], rstd_2[:, None], cols[None, :], inside_k[None, :], norm_weight_ptr,
            norm_bias_ptr,
        )  # fmt: skip
        a = u + (a - u) * guidance[:, None]
    return a
