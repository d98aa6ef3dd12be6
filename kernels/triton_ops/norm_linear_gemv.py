"""`norm_linear` for up to 4 rows: multiply and reduce on the ordinary cores.

A program has BLOCK_N rows of the weights and one slice of K. All of its weights are asked for
before anything else, 16 bytes a load and 8 or more loads in flight a thread, so that the memory is
busy while the norms of the inputs are computed.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from audiogen_fast.kernels import _norm_linear_parts as parts
from audiogen_fast.kernels._launch import OPTIONS
from audiogen_fast.kernels._norm_linear_parts import add_parts, finish, gained, statistics


@triton.jit
def _inputs(
    x_ptr,
    row,
    mask,  # of the row and its columns
    cols,
    mean,
    rstd,
    norm_weight_ptr,
    norm_bias_ptr,
    K: tl.constexpr,
    NORM: tl.constexpr,
):
    x = tl.load(x_ptr + row.to(tl.int64) * K + cols, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        x = gained(x, mean, rstd, cols, mask, norm_weight_ptr, norm_bias_ptr)
    return x


@triton.jit
def _row(
    x_ptr,
    m,
    M,
    SLOTS,
    cols,
    end,
    norm_weight_ptr,
    norm_bias_ptr,
    guidance_ptr,
    mean,
    rstd,
    mean_2,
    rstd_2,
    K: tl.constexpr,
    NORM: tl.constexpr,
    MIX: tl.constexpr,
):
    """a[m] at some columns: the row, its norm, or the mix of two norms."""
    mask = cols < tl.where(m < M, end, 0)  # a row past the last has no columns
    a = _inputs(x_ptr, m, mask, cols, mean, rstd, norm_weight_ptr, norm_bias_ptr, K, NORM)
    if MIX:
        u = _inputs(
            x_ptr, m + M, mask, cols, mean_2, rstd_2, norm_weight_ptr, norm_bias_ptr, K, NORM
        )
        a = u + (a - u) * tl.load(guidance_ptr + m % SLOTS)
    return a


@triton.jit(do_not_specialize=parts.VARYING)
def gemv_kernel(
    x_ptr,  # [M, K], [2 M, K] with MIX
    norm_weight_ptr,  # [K]
    norm_bias_ptr,  # [K]
    guidance_ptr,  # [SLOTS]
    weight_ptr,  # [N, K], int8 [N, Kp] or uint8 [N, Kp / 2]
    scale_ptr,  # [N] or [N, Kp / GROUP]
    bias_ptr,  # [N]
    active_ptr,  # [SLOTS]
    out_ptr,
    key_ptr,
    value_ptr,
    positions_ptr,
    partial_ptr,  # [SPLIT, M, N]
    counter_ptr,  # [programs along N], zero
    M,
    SLOTS,
    eps,
    CAPACITY,
    cache_stride_r,
    cache_stride_h,
    cache_stride_c,
    N: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NORM: tl.constexpr,
    MIX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ACTIVE: tl.constexpr,
    EPILOGUE: tl.constexpr,
    SPLIT: tl.constexpr,
    SLICE: tl.constexpr,  # columns of a part; whole groups
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # columns, or groups of them at 4 bits, of a part
    BLOCK_ROW: tl.constexpr,  # a power of two >= K
):
    """y[m, n] = sum_k W[n, k] a[m, k], then `finish`."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = n < N
    long_n = n.to(tl.int64)
    begin = tl.program_id(1) * SLICE
    end = tl.minimum(begin + SLICE, K)
    if BITS == 4:
        HALF: tl.constexpr = GROUP // 2
        GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP
        group = begin // GROUP + tl.arange(0, BLOCK_K)
        j = tl.arange(0, HALF)
        inside_g = inside_n[:, None] & (group * GROUP < end)[None, :]
        place = long_n[:, None] * GROUPS + group[None, :]
        packed = tl.load(
            weight_ptr + place[:, :, None] * HALF + j[None, None, :],
            mask=inside_g[:, :, None],
            other=0,
        )
        scale = tl.load(scale_ptr + place, mask=inside_g, other=0.0).to(tl.float32)
        cols = group[:, None] * GROUP + j[None, :]
        cols_high = cols + HALF
    else:
        PITCH: tl.constexpr = (K + 15) // 16 * 16 if BITS == 8 else K
        cols = begin + tl.arange(0, BLOCK_K)
        packed = tl.load(
            weight_ptr + long_n[:, None] * PITCH + cols[None, :],
            mask=inside_n[:, None] & (cols < end)[None, :],
            other=0,
        )
    for m in tl.static_range(BLOCK_M):
        row = tl.full([], m, tl.int32)
        mean, rstd, mean_2, rstd_2 = 0.0, 0.0, 0.0, 0.0
        if NORM:
            mean, rstd = statistics(x_ptr, row, m < M, eps, K, BLOCK_ROW)
        if MIX:
            mean_2, rstd_2 = statistics(x_ptr, row + M, m < M, eps, K, BLOCK_ROW)
        a = _row(
            x_ptr, row, M, SLOTS, cols, end, norm_weight_ptr, norm_bias_ptr, guidance_ptr,
            mean, rstd, mean_2, rstd_2, K, NORM, MIX,
        )  # fmt: skip
        if BITS == 4:
            b = _row(
                x_ptr, row, M, SLOTS, cols_high, end, norm_weight_ptr, norm_bias_ptr,
                guidance_ptr, mean, rstd, mean_2, rstd_2, K, NORM, MIX,
            )  # fmt: skip
            low = (packed & 15).to(tl.float32) - 8.0
            high = (packed >> 4).to(tl.float32) - 8.0
            sums = tl.sum(low * a[None, :, :] + high * b[None, :, :], 2)
            y = tl.sum(sums * scale, 1)
        else:
            y = tl.sum(packed.to(tl.float32) * a[None, :], 1)
            if BITS == 8:
                y *= tl.load(scale_ptr + n, mask=inside_n, other=0.0)
        mask = n < tl.where(m < M, N, 0)
        if SPLIT > 1:
            place = (tl.program_id(1).to(tl.int64) * M + m) * N + n
            tl.store(partial_ptr + place, y, mask=mask)
        else:
            if HAS_ACTIVE:
                mask = n < tl.where((m < M) & tl.load(active_ptr + m % SLOTS), N, 0)
            finish(
                y, n, row, mask, bias_ptr, out_ptr, key_ptr, value_ptr, positions_ptr, M, CAPACITY,
                cache_stride_r, cache_stride_h, cache_stride_c, N, HEAD_DIM, HAS_BIAS, EPILOGUE,
            )  # fmt: skip
    if SPLIT > 1:
        tl.debug_barrier()  # all threads have stored their part before it is announced
        counter = counter_ptr + tl.program_id(0)
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLIT - 1:
            for m in tl.static_range(BLOCK_M):
                row = tl.full([], m, tl.int32)
                mask = n < tl.where(m < M, N, 0)
                place = row.to(tl.int64) * N + n
                y = add_parts(partial_ptr, place, mask, M.to(tl.int64) * N, SPLIT)
                if HAS_ACTIVE:
                    mask = n < tl.where((m < M) & tl.load(active_ptr + m % SLOTS), N, 0)
                finish(
                    y, n, row, mask, bias_ptr, out_ptr, key_ptr, value_ptr, positions_ptr, M,
                    CAPACITY, cache_stride_r, cache_stride_h, cache_stride_c, N, HEAD_DIM,
                    HAS_BIAS, EPILOGUE,
                )  # fmt: skip
            tl.store(counter, 0)  # ready for the next launch


def launch(
    config: Any,
    pointers: tuple,
    numbers: tuple,
    constants: dict[str, Any],
    compute_dtype: torch.dtype,
) -> None:
    """Start `gemv_kernel`; `norm_linear` has checked everything. Always computes in float32."""
    n, k, bits, group = (constants[name] for name in ("N", "K", "BITS", "GROUP"))
    step = {8: 16, 4: group}.get(bits, 16)
    part = triton.cdiv(triton.cdiv(k, config.split), step) * step
    gemv_kernel[(triton.cdiv(n, config.block_n), config.split)](
        *pointers,
        *numbers,
        **constants,
        SPLIT=config.split,
        SLICE=part,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=triton.next_power_of_2(part // group if bits == 4 else min(part, k)),
        BLOCK_ROW=triton.next_power_of_2(k),
        num_warps=config.num_warps,
        # Otherwise the assembler spills a few registers to fit one more program on a processor.
        maxnreg=255,
        **OPTIONS,
    )
