"""`norm_linear` for 5 to 8 rows, or float32: matrix cores, the weights as the tall operand.

Rows are padded to 16 or 32 and become the short side of the product, so that a program has few
rows of weights and many programs share a matrix. Weights are staged in shared memory several
blocks ahead. More than 32 rows take another program for each 32, which finds the weights in the
second-level cache.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from audiogen_fast.kernels import _launch
from audiogen_fast.kernels import _norm_linear_parts as parts
from audiogen_fast.kernels._launch import OPTIONS
from audiogen_fast.kernels._norm_linear_parts import add_parts, finish, inputs


@triton.jit
def _rows_statistics(x_ptr, rows, mask_m, eps, K: tl.constexpr, BLOCK: tl.constexpr):
    """Mean and 1 / sqrt(variance + eps) of each row, in one pass over the row.

    Sums are of differences to the mean m of the first BLOCK columns, so that nothing is lost where
    the mean is large: var = E[(x - m)^2] - E[x - m]^2, and E[x - m]^2 <= (K / BLOCK - 1) var.
    """
    pointers = x_ptr + rows.to(tl.int64)[:, None] * K + tl.arange(0, BLOCK)[None, :]
    inside = mask_m[:, None] & (tl.arange(0, BLOCK) < K)[None, :]
    x = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    first = tl.sum(x, 1) / tl.minimum(K, BLOCK)
    centred = tl.where(inside, x - first[:, None], 0.0)
    total, squares = centred, centred * centred
    for k in range(BLOCK, K, BLOCK):
        inside = mask_m[:, None] & (k + tl.arange(0, BLOCK) < K)[None, :]
        x = tl.load(pointers + k, mask=inside, other=0.0).to(tl.float32)
        centred = tl.where(inside, x - first[:, None], 0.0)
        total += centred
        squares += centred * centred
    shift = tl.sum(total, 1) / K
    variance = tl.maximum(tl.sum(squares, 1) / K - shift * shift, 0.0)
    return first + shift, 1.0 / tl.sqrt(variance + eps)


@triton.jit(do_not_specialize=parts.VARYING)
def rows_kernel(
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
    counter_ptr,  # [programs along N and M], zero
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
    SLICE: tl.constexpr,  # columns of a part; whole blocks
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # columns of a block; the group at 4 bits
    COMPUTE: tl.constexpr,  # dtype of the operands
):
    """y[n, m] = sum_k W[n, k] a[m, k], then `finish`."""
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = n < N
    long_n = n.to(tl.int64)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = rows < M
    begin = tl.program_id(2) * SLICE
    end = tl.minimum(begin + SLICE, K)
    mean, rstd, mean_2, rstd_2, guidance = 0.0, 0.0, 0.0, 0.0, 0.0
    if NORM:
        mean, rstd = _rows_statistics(x_ptr, rows, mask_m, eps, K, 128)
    if MIX:
        mean_2, rstd_2 = _rows_statistics(x_ptr, rows + M, mask_m, eps, K, 128)
        guidance = tl.load(guidance_ptr + rows % SLOTS, mask=mask_m, other=0.0)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    if BITS == 4:
        HALF: tl.constexpr = GROUP // 2
        GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP
        for turn in range(0, SLICE // GROUP):
            k = begin + turn * GROUP
            place = long_n * GROUPS + k // GROUP
            present = n < tl.where(k < K, N, 0)  # the last part may have fewer groups
            packed = tl.load(
                weight_ptr + place[:, None] * HALF + tl.arange(0, HALF)[None, :],
                mask=present[:, None],
                other=0,
            )
            scale = tl.load(scale_ptr + place, mask=present, other=0.0).to(tl.float32)
            cols = k + tl.arange(0, HALF)
            low = inputs(
                x_ptr, rows, mask_m, M, cols, end, norm_weight_ptr, norm_bias_ptr, mean, rstd,
                mean_2, rstd_2, guidance, K, NORM, MIX,
            )  # fmt: skip
            high = inputs(
                x_ptr, rows, mask_m, M, cols + HALF, end, norm_weight_ptr, norm_bias_ptr, mean,
                rstd, mean_2, rstd_2, guidance, K, NORM, MIX,
            )  # fmt: skip
            w_low = ((packed & 15).to(tl.int8) - 8).to(COMPUTE)
            w_high = ((packed >> 4).to(tl.int8) - 8).to(COMPUTE)
            sums = tl.dot(w_low, tl.trans(low.to(COMPUTE)), input_precision="ieee")
            sums = tl.dot(w_high, tl.trans(high.to(COMPUTE)), sums, input_precision="ieee")
            acc += sums * scale[:, None]
    else:
        PITCH: tl.constexpr = (K + 15) // 16 * 16 if BITS == 8 else K
        for turn in range(0, SLICE // BLOCK_K):
            cols = begin + turn * BLOCK_K + tl.arange(0, BLOCK_K)
            w = tl.load(
                weight_ptr + long_n[:, None] * PITCH + cols[None, :],
                mask=inside_n[:, None] & (cols < end)[None, :],
                other=0,
            )
            a = inputs(
                x_ptr, rows, mask_m, M, cols, end, norm_weight_ptr, norm_bias_ptr, mean, rstd,
                mean_2, rstd_2, guidance, K, NORM, MIX,
            )  # fmt: skip
            acc = tl.dot(w.to(COMPUTE), tl.trans(a.to(COMPUTE)), acc, input_precision="ieee")
        if BITS == 8:
            acc *= tl.load(scale_ptr + n, mask=inside_n, other=0.0)[:, None]
    mask = inside_n[:, None] & mask_m[None, :]
    written = mask
    if HAS_ACTIVE:
        written = mask & tl.load(active_ptr + rows % SLOTS, mask=mask_m, other=False)[None, :]
    if SPLIT > 1:
        place = rows.to(tl.int64)[None, :] * N + n[:, None]
        part = M.to(tl.int64) * N
        tl.store(partial_ptr + tl.program_id(2) * part + place, acc, mask=mask)
        tl.debug_barrier()  # all threads have stored their part before it is announced
        counter = counter_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLIT - 1:
            y = add_parts(partial_ptr, place, mask, part, SPLIT)
            finish(
                y, n[:, None], rows[None, :], written, bias_ptr, out_ptr, key_ptr, value_ptr,
                positions_ptr, M, CAPACITY, cache_stride_r, cache_stride_h, cache_stride_c, N,
                HEAD_DIM, HAS_BIAS, EPILOGUE,
            )  # fmt: skip
            tl.store(counter, 0)  # ready for the next launch
    else:
        finish(
            acc, n[:, None], rows[None, :], written, bias_ptr, out_ptr, key_ptr, value_ptr,
            positions_ptr, M, CAPACITY, cache_stride_r, cache_stride_h, cache_stride_c, N, HEAD_DIM,
            HAS_BIAS, EPILOGUE,
        )  # fmt: skip


def launch(
    config: Any,
    pointers: tuple,
    numbers: tuple,
    constants: dict[str, Any],
    compute_dtype: torch.dtype,
) -> None:
    """Start `rows_kernel`; `norm_linear` has checked everything."""
    if compute_dtype == torch.bfloat16 and _launch.interpreted():
        compute_dtype = torch.float32  # the interpreter has no product of bfloat16
    n, k = constants["N"], constants["K"]
    block_k = constants["GROUP"] if constants["BITS"] == 4 else config.block_k
    part = triton.cdiv(triton.cdiv(k, config.split), block_k) * block_k
    # Programs that share weights are neighbours.
    grid = (triton.cdiv(numbers[0], config.block_m), triton.cdiv(n, config.block_n), config.split)
    rows_kernel[grid](
        *pointers,
        *numbers,
        **constants,
        SPLIT=config.split,
        SLICE=part,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=block_k,
        COMPUTE=parts.TRITON_DTYPES[compute_dtype],
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **OPTIONS,
    )
