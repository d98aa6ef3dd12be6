"""Mean and spread of parts of rows: what lets a layer norm be applied where a row is used.

With many rows, a product that computed the statistics of its inputs itself would read every row
once more in every program. So whoever writes the residual stream leaves, for each row and each 64
columns, their mean and the sum of squares around it, and the product merges these few numbers:

mean = sum_i n_i m_i / K,  K var = sum_i (S_i + n_i (m_i - mean)^2)

(Chan, Golub and LeVeque 1983, doi 10.1080/00031305.1983.10483115). Nothing is lost where the mean
is large. `row_statistics` makes them of rows that somebody else wrote.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from audiogen_fast.kernels._launch import FLOATS, OPTIONS, require, require_tensor

PART = 64
"""Columns whose statistics are kept together."""
_PART = tl.constexpr(PART)


def statistics_shape(rows: int, columns: int) -> tuple[int, int, int]:
    """`[2, parts, rows]`, means and then sums of squares: the float32 tensor of so many rows."""
    return 2, triton.cdiv(columns, PART), rows


@triton.jit
def store_statistics(
    y,  # float32 [BLOCK_M, BLOCK_N], BLOCK_N a multiple of 64; column 0 is `first`
    first,
    rows,  # [BLOCK_M]
    written,  # bool [BLOCK_M]
    statistics_ptr,  # [2, parts of N, ROWS]
    ROWS,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Leave the statistics of a block of whole parts."""
    PARTS: tl.constexpr = BLOCK_N // _PART
    part = first // _PART + tl.arange(0, PARTS)
    # At least 1 where there is no column at all: nothing of it is stored.
    width = tl.maximum(tl.minimum(N - part * _PART, _PART), 1)[None, :]
    y = tl.reshape(y, [BLOCK_M, PARTS, _PART])
    inside = (tl.arange(0, _PART)[None, None, :]) < width[:, :, None]
    mean = tl.sum(tl.where(inside, y, 0.0), 2) / width
    centred = tl.where(inside, y - mean[:, :, None], 0.0)
    place = part[None, :] * ROWS + rows[:, None]
    mask = written[:, None] & (part * _PART < N)[None, :]
    COUNT: tl.constexpr = (N + _PART - 1) // _PART
    tl.store(statistics_ptr + place, mean, mask=mask)
    tl.store(statistics_ptr + COUNT * ROWS + place, tl.sum(centred * centred, 2), mask=mask)


@triton.jit
def merged_statistics(
    statistics_ptr,  # [2, parts of K, ROWS]
    rows,  # [BLOCK_M]
    mask_m,
    ROWS,
    eps,
    K: tl.constexpr,
    PARTS: tl.constexpr,  # a power of two that is at least the parts of K
):
    """Mean and 1 / sqrt(variance + eps) of whole rows."""
    COUNT: tl.constexpr = (K + _PART - 1) // _PART
    part = tl.arange(0, PARTS)
    width = tl.maximum(tl.minimum(K - part * _PART, _PART), 0).to(tl.float32)[:, None]
    place = part[:, None] * ROWS + rows[None, :]
    mask = (part < COUNT)[:, None] & mask_m[None, :]
    means = tl.load(statistics_ptr + place, mask=mask, other=0.0)
    squares = tl.load(statistics_ptr + COUNT * ROWS + place, mask=mask, other=0.0)
    mean = tl.sum(width * means, 0) / K
    gap = means - mean[None, :]
    return mean, 1.0 / tl.sqrt(tl.sum(squares + width * gap * gap, 0) / K + eps)


@triton.jit(do_not_specialize=["ROWS"])
def row_statistics_kernel(
    x_ptr,  # [ROWS, K]
    statistics_ptr,  # [2, parts of K, ROWS]
    ROWS,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Some whole parts of one row in each program."""
    row = tl.program_id(0)
    first = tl.program_id(1) * BLOCK
    cols = first + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row.to(tl.int64) * K + cols, mask=cols < K, other=0.0).to(tl.float32)
    rows = row + tl.arange(0, 1)
    store_statistics(x[None, :], first, rows, rows < ROWS, statistics_ptr, ROWS, K, 1, BLOCK)


def row_statistics(x: Tensor, out: Tensor) -> Tensor:
    """The statistics of every row.

    Args:
        x: float `[R, K]`, contiguous.
        out: float32 `[2, ceil(K / 64), R]`, contiguous, written in place.
    Returns:
        `out`.
    Raises:
        ValueError: an argument of the wrong shape, dtype, device or layout.
    """
    require(x.ndim == 2, f"x must be [R, K], got the shape {tuple(x.shape)}")
    require_tensor("x", x, tuple(x.shape), FLOATS, x.device)
    rows, columns = x.shape
    require_tensor("out", out, statistics_shape(rows, columns), (torch.float32,), x.device)
    if x.numel() == 0:
        return out
    block = min(max(triton.next_power_of_2(columns), PART), 512)
    with torch.cuda.device_of(x):  # triton launches on the current device
        row_statistics_kernel[(rows, triton.cdiv(columns, block))](
            x,
            out,
            rows,
            K=columns,
            BLOCK=block,
            # 16 bytes of a row for each thread.
            num_warps=4 if x.element_size() == 4 else 2,
            **OPTIONS,
        )
    return out
