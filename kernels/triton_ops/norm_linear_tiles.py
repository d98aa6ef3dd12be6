"""`norm_linear` for more than 8 rows: a tiled product on the matrix cores.

Here weights are no longer all that counts: every program reads its rows too, and together they
read each row once for every block of weights. So blocks are large, all rows up to 128 share one,
and the statistics of the norm are read (`row_statistics`), not computed: one pass over the rows in
each program instead of two. The rows are the tall operand; they are normalised on their way from
shared memory to the matrix cores, while the weights go there as they are.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from audiogen_fast.kernels import _launch
from audiogen_fast.kernels import _norm_linear_parts as parts
from audiogen_fast.kernels._launch import OPTIONS
from audiogen_fast.kernels._norm_linear_parts import add_parts, finish, inputs
from audiogen_fast.kernels.row_statistics import PART, merged_statistics, store_statistics


# Not the strides of the caches: they decide how wide a store may be.
@triton.jit(do_not_specialize=["M", "SLOTS", "CAPACITY", "X_ROWS", "OUT_ROWS"])
def tiles_kernel(
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
    x_statistics_ptr,  # [2, parts of K, X_ROWS]
    out_statistics_ptr,  # [2, parts of N, OUT_ROWS]
    M,
    SLOTS,
    eps,
    CAPACITY,
    cache_stride_r,
    cache_stride_h,
    cache_stride_c,
    X_ROWS,
    OUT_ROWS,
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
    WRITE_STATISTICS: tl.constexpr,
    SPLIT: tl.constexpr,
    SLICE: tl.constexpr,  # columns of a part; whole blocks
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # columns of a block; the group at 4 bits
    PARTS: tl.constexpr,  # a power of two that is at least K / 64
    COMPUTE: tl.constexpr,  # dtype of the operands
):
    """y[m, n] = sum_k a[m, k] W[n, k], then `finish`, then the statistics of what it stored."""
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = n < N
    long_n = n.to(tl.int64)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = rows < M
    begin = tl.program_id(2) * SLICE
    end = tl.minimum(begin + SLICE, K)
    mean, rstd, mean_2, rstd_2, guidance = 0.0, 0.0, 0.0, 0.0, 0.0
    if NORM:
        mean, rstd = merged_statistics(x_statistics_ptr, rows, mask_m, X_ROWS, eps, K, PARTS)
    if MIX:
        mean_2, rstd_2 = merged_statistics(
            x_statistics_ptr, rows + M, mask_m, X_ROWS, eps, K, PARTS
        )
        guidance = tl.load(guidance_ptr + rows % SLOTS, mask=mask_m, other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
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
            sums = tl.dot(low.to(COMPUTE), tl.trans(w_low), input_precision="ieee")
            sums = tl.dot(high.to(COMPUTE), tl.trans(w_high), sums, input_precision="ieee")
            acc += sums * scale[None, :]
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
            acc = tl.dot(a.to(COMPUTE), tl.trans(w.to(COMPUTE)), acc, input_precision="ieee")
        if BITS == 8:
            acc *= tl.load(scale_ptr + n, mask=inside_n, other=0.0)[None, :]
    mask = mask_m[:, None] & inside_n[None, :]
    written_m = mask_m
    if HAS_ACTIVE:
        written_m = mask_m & tl.load(active_ptr + rows % SLOTS, mask=mask_m, other=False)
    written = written_m[:, None] & inside_n[None, :]
    last = True
    if SPLIT > 1:
        place = rows.to(tl.int64)[:, None] * N + n[None, :]
        part = M.to(tl.int64) * N
        tl.store(partial_ptr + tl.program_id(2) * part + place, acc, mask=mask)
        tl.debug_barrier()  # all threads have stored their part before it is announced
        counter = counter_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        last = tl.atomic_add(counter, 1, sem="acq_rel") == SPLIT - 1
        if last:
            acc = add_parts(partial_ptr, place, mask, part, SPLIT)
            tl.store(counter, 0)  # ready for the next launch
    if last:
        y = finish(
            acc, n[None, :], rows[:, None], written, bias_ptr, out_ptr, key_ptr, value_ptr,
            positions_ptr, M, CAPACITY, cache_stride_r, cache_stride_h, cache_stride_c, N, HEAD_DIM,
            HAS_BIAS, EPILOGUE,
        )  # fmt: skip
        if WRITE_STATISTICS:
            store_statistics(
                y, tl.program_id(1) * BLOCK_N, rows, written_m, out_statistics_ptr, OUT_ROWS, N,
                BLOCK_M, BLOCK_N,
            )  # fmt: skip


def launch(
    config: Any,
    pointers: tuple,
    numbers: tuple,
    constants: dict[str, Any],
    compute_dtype: torch.dtype,
    statistics: tuple[torch.Tensor | None, torch.Tensor | None],
) -> None:
    """Start `tiles_kernel`; `norm_linear` has checked everything.

    Args:
        statistics: of the rows of x, needed with a norm, and of those of out, to be written.
    """
    if compute_dtype == torch.bfloat16 and _launch.interpreted():
        compute_dtype = torch.float32  # the interpreter has no product of bfloat16
    n, k = constants["N"], constants["K"]
    block_k = constants["GROUP"] if constants["BITS"] == 4 else config.block_k
    part = triton.cdiv(triton.cdiv(k, config.split), block_k) * block_k
    x, before, after = pointers[0], *statistics
    # Programs that share weights are neighbours.
    grid = (triton.cdiv(numbers[0], config.block_m), triton.cdiv(n, config.block_n), config.split)
    tiles_kernel[grid](
        *pointers,
        x if before is None else before,  # never read without a norm
        x if after is None else after,
        *numbers,
        0 if before is None else before.shape[2],
        0 if after is None else after.shape[2],
        **constants,
        WRITE_STATISTICS=after is not None,
        SPLIT=config.split,
        SLICE=part,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=block_k,
        PARTS=triton.next_power_of_2(triton.cdiv(k, PART)),
        COMPUTE=parts.TRITON_DTYPES[compute_dtype],
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **OPTIONS,
    )
