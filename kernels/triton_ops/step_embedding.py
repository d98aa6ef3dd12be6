"""The beginning of a decode step: embed the code that each slot has drawn last. One launch.

x[r] = sum_k tables[k, sequence[b, k, step[b] - 1]] (k = 0 first) + PE[positions[r]], b = r % slots

The decode form of `codebook_embedding`: which codes and which position is read on the device, and
the position embedding comes from a table, because a step needs a single row of it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from audiogen_fast.kernels._launch import FLOATS, OPTIONS, require, require_tensor
from audiogen_fast.kernels.row_statistics import PART, statistics_shape, store_statistics

_VARYING = ("ROWS", "SLOTS", "CARD", "STEPS", "COUNT", "sequence_stride_b", "sequence_stride_k")


@triton.jit(do_not_specialize=_VARYING)
def step_embedding_kernel(
    sequence_ptr,  # [SLOTS, K, STEPS], any strides but the last
    step_ptr,  # [SLOTS]
    active_ptr,  # [SLOTS]
    positions_ptr,  # [R]
    tables_ptr,  # [K, CARD + 1, D]
    position_table_ptr,  # [COUNT, D]
    out_ptr,  # [R, D]
    statistics_ptr,  # [2, parts of D, R]
    ROWS,
    SLOTS,
    CARD,
    STEPS,
    COUNT,
    sequence_stride_b,
    sequence_stride_k,
    D: tl.constexpr,
    K: tl.constexpr,
    STATISTICS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row's columns; nothing for an inactive slot."""
    row = tl.program_id(0).to(tl.int64)
    slot = row % SLOTS
    if tl.load(active_ptr + slot):
        cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        step = tl.load(step_ptr + slot) - 1
        total = tl.zeros([BLOCK], tl.float32)
        for k in tl.static_range(K):
            place = slot * sequence_stride_b + k * sequence_stride_k + step
            exists = (step >= 0) & (step < STEPS)
            code = tl.load(sequence_ptr + place, mask=exists, other=-1)
            # A code outside the table gives NaN, which is seen, instead of a stray read.
            width = tl.where((code >= 0) & (code <= CARD), D, 0)
            vector = tl.load(
                tables_ptr + (k * (CARD + 1) + code) * D + cols,
                mask=cols < width,
                other=float("nan"),
            )
            total += vector.to(tl.float32)
        position = tl.load(positions_ptr + row).to(tl.int64)
        width = tl.where((position >= 0) & (position < COUNT), D, 0)
        total += tl.load(
            position_table_ptr + position * D + cols, mask=cols < width, other=float("nan")
        )
        tl.store(out_ptr + row * D + cols, total, mask=cols < D)
        if STATISTICS:
            rows = tl.program_id(0) + tl.arange(0, 1)
            store_statistics(
                total[None, :], tl.program_id(1) * BLOCK, rows, rows < ROWS, statistics_ptr, ROWS,
                D, 1, BLOCK,
            )  # fmt: skip


def step_embedding(
    sequence: Tensor,
    step: Tensor,
    active: Tensor,
    positions: Tensor,
    tables: Tensor,
    position_table: Tensor,
    out: Tensor,
    statistics: Tensor | None = None,
) -> Tensor:
    """Embed the codes before `step` of every active slot, for all of its rows.

    Args:
        sequence: int64 `[B, K, S]`, any strides but the last.
        step: int32 `[B]`, the next step to draw; codes of `step - 1` are embedded.
        active: bool `[B]`; the rows of other slots are not written.
        positions: int32 `[R]`, R a multiple of B; row r belongs to slot `r % B`.
        tables: float `[K, card + 1, D]`, contiguous.
        position_table: float32 `[P, D]`, contiguous. A code or position outside its table makes
            the row NaN.
        out: float32 `[R, D]`, contiguous, written in place.
        statistics: float32 `[2, ceil(D / 64), R]`, contiguous: what `row_statistics` would make of
            `out`, written for the same rows.
    Returns:
        `out`.
    Raises:
        ValueError: an argument of the wrong shape, dtype, device or layout.
    """
    require(sequence.ndim == 3, f"sequence must be [B, K, S], got {tuple(sequence.shape)}")
    require(tables.ndim == 3, f"tables must be [K, card + 1, D], got {tuple(tables.shape)}")
    batch, n_codebooks, steps = sequence.shape
    _, rows_of_table, dim = tables.shape
    device, rows = tables.device, positions.numel()
    require_tensor("tables", tables, (n_codebooks, rows_of_table, dim), FLOATS, device)
    require_tensor("sequence", sequence, tuple(sequence.shape), (torch.int64,), device, False)
    require(sequence.stride(2) == 1 or steps == 1, "sequence must have stride 1 along its steps")
    require_tensor("step", step, (batch,), (torch.int32,), device)
    require_tensor("active", active, (batch,), (torch.bool,), device)
    require_tensor("positions", positions, (rows,), (torch.int32,), device)
    require(
        rows % max(batch, 1) == 0, f"positions must have a multiple of {batch} rows, got {rows}"
    )
    count = position_table.shape[0]
    require_tensor("position_table", position_table, (count, dim), (torch.float32,), device)
    require_tensor("out", out, (rows, dim), (torch.float32,), device)
    if statistics is not None:
        shape = statistics_shape(rows, dim)
        require_tensor("statistics", statistics, shape, (torch.float32,), device)
    if out.numel() == 0:
        return out
    block = min(triton.next_power_of_2(dim), 512)
    if statistics is not None:
        block = max(block, PART)
    with torch.cuda.device_of(tables):  # triton launches on the current device
        step_embedding_kernel[(rows, triton.cdiv(dim, block))](
            sequence,
            step,
            active,
            positions,
            tables,
            position_table,
            out,
            out if statistics is None else statistics,
            rows,
            batch,
            rows_of_table - 1,
            steps,
            count,
            *sequence.stride()[:2],
            D=dim,
            K=n_codebooks,
            STATISTICS=statistics is not None,
            BLOCK=block,
            # 16 bytes of a row for each thread.
            num_warps=4 if tables.element_size() == 4 else 2,
            **OPTIONS,
        )
    return out
