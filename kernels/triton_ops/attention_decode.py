"""Self-attention of one new step over a static cache: one launch, however long the cache is.

out[r, h] = sum_i softmax_i(q[r, h] . k[r, h, i] / sqrt(d)) v[r, h, i],  i <= positions[r]

Positions are cut into chunks (flash decoding), so that one row still fills a GPU. Each program
leaves its maximum m, sum l = sum exp(s - m) and values a = sum exp(s - m) v; the last to arrive at
a row and head adds them in order: out = sum_c exp(m_c - M) a_c / sum_c exp(m_c - M) l_c, M = max m.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from audiogen_fast.kernels._launch import OPTIONS, require, require_cached_attention, require_tensor

CHUNK = 128  # positions of a program: 16 KB of keys and as much of values at 64 halves a position

# Not the strides: only where they are known to be divisible by 16 are loads 16 bytes wide.
_VARYING = ("H", "SLOTS", "CAPACITY")


@dataclass
class Workspace:
    """Scratch: `values` float32 `[R, H, chunks, d]`, `weights` float32 `[R, H, chunks, 2]`,
    `counters` int32 `[R, H]`, zero before the first use and zero again after each launch."""

    values: Tensor
    weights: Tensor
    counters: Tensor

    @staticmethod
    def make(rows: int, heads: int, limit: int, head_dim: int, device: torch.device) -> "Workspace":
        """One for positions below `limit`."""
        shape = (rows, heads, triton.cdiv(limit, CHUNK))
        return Workspace(
            torch.zeros(*shape, head_dim, dtype=torch.float32, device=device),
            torch.zeros(*shape, 2, dtype=torch.float32, device=device),
            torch.zeros(shape[:2], dtype=torch.int32, device=device),
        )


@triton.jit(do_not_specialize=_VARYING)
def attention_decode_kernel(
    q_ptr,  # [R, H, HEAD_DIM]
    key_ptr,  # [R, H, CAPACITY, HEAD_DIM], any strides but the last
    value_ptr,
    positions_ptr,  # [R]
    active_ptr,  # [SLOTS]
    out_ptr,  # [R, H, HEAD_DIM]
    part_ptr,  # [R, H, CHUNKS, HEAD_DIM]
    weight_ptr,  # [R, H, CHUNKS, 2]: maximum and sum
    counter_ptr,  # [R, H], zero
    H,
    SLOTS,
    CAPACITY,
    stride_r,
    stride_h,
    stride_c,
    scale,  # 1 / sqrt(HEAD_DIM)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_ACTIVE: tl.constexpr,
):
    """One chunk of one row and head; the last one to finish adds up all of them."""
    pair = tl.program_id(0)
    row = (pair // H).to(tl.int64)
    head = (pair % H).to(tl.int64)
    chunk = tl.program_id(1)
    length = tl.minimum(tl.load(positions_ptr + row) + 1, CAPACITY)
    if HAS_ACTIVE:
        length = tl.where(tl.load(active_ptr + row % SLOTS), length, 0)
    used = (length + CHUNK - 1) // CHUNK
    if chunk < used:
        d = tl.arange(0, BLOCK_D)
        inside_d = d < HEAD_DIM
        i = chunk * CHUNK + tl.arange(0, CHUNK)
        filled = i < length
        inside = filled[:, None] & inside_d[None, :]
        place = row * stride_r + head * stride_h + i.to(tl.int64)[:, None] * stride_c + d[None, :]
        # Both are asked for before either is waited for.
        k = tl.load(key_ptr + place, mask=inside, other=0.0)
        v = tl.load(value_ptr + place, mask=inside, other=0.0)
        own = pair.to(tl.int64) * HEAD_DIM + d
        q = tl.load(q_ptr + own, mask=inside_d, other=0.0).to(tl.float32) * scale
        scores = tl.sum(k.to(tl.float32) * q[None, :], 1)
        scores = tl.where(filled, scores, float("-inf"))
        top = tl.max(scores, 0)
        weights = tl.exp(scores - top)
        total = tl.sum(weights, 0)
        values = tl.sum(v.to(tl.float32) * weights[:, None], 0)
        if used == 1:
            result = values / total
            tl.store(out_ptr + own, result.to(out_ptr.dtype.element_ty), mask=inside_d)
        else:
            part = pair.to(tl.int64) * CHUNKS + chunk
            tl.store(part_ptr + part * HEAD_DIM + d, values, mask=inside_d)
            tl.store(weight_ptr + part * 2, top)
            tl.store(weight_ptr + part * 2 + 1, total)
            tl.debug_barrier()  # all threads have stored their part before it is announced
            if tl.atomic_add(counter_ptr + pair, 1, sem="acq_rel") == used - 1:
                c = tl.arange(0, BLOCK_CHUNKS)
                present = c < used
                first = pair.to(tl.int64) * CHUNKS + c
                # Past the first-level cache, which another processor's write does not reach.
                tops = tl.load(
                    weight_ptr + first * 2, mask=present, other=float("-inf"), cache_modifier=".cg"
                )
                totals = tl.load(
                    weight_ptr + first * 2 + 1, mask=present, other=0.0, cache_modifier=".cg"
                )
                parts = tl.load(
                    part_ptr + first[:, None] * HEAD_DIM + d[None, :],
                    mask=present[:, None] & inside_d[None, :],
                    other=0.0,
                    cache_modifier=".cg",
                )
                factors = tl.exp(tops - tl.max(tops, 0))
                result = tl.sum(parts * factors[:, None], 0) / tl.sum(totals * factors, 0)
                tl.store(out_ptr + own, result.to(out_ptr.dtype.element_ty), mask=inside_d)
                tl.store(counter_ptr + pair, 0)  # ready for the next launch


def attention_decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    out: Tensor,
    *,
    active: Tensor | None = None,
    limit: int | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Attend from one step of each row to the row's filled positions.

    Args:
        q: float `[R, H d]`, contiguous.
        keys, values: float caches `[R, H, C, d]` of the same strides, the last of them 1.
        positions: int32 `[R]`, below `limit`: the position of the step itself, whose key and value
            are already there. What lies past it is never used.
        out: float `[R, H d]`, contiguous, written in place.
        active: bool `[slots]`; row r is written only if `active[r % slots]`.
        limit: positions the launch is sized for, at most C, which is the default; programs past a
            row's length end at once, but a smaller launch has fewer of them.
        workspace: scratch for `limit`; made if None.
    Returns:
        `out`.
    Raises:
        ValueError: an argument of the wrong shape, dtype, device or layout.
    """
    require(keys.ndim == 4, f"keys must be [R, H, C, d], got the shape {tuple(keys.shape)}")
    rows, heads, capacity, width = keys.shape
    device = keys.device
    require_cached_attention(q, keys, values, out, active)
    require_tensor("positions", positions, (rows,), (torch.int32,), device)
    limit = capacity if limit is None else limit
    require(1 <= limit <= capacity, f"limit must lie in 1..{capacity}, got {limit}")
    if out.numel() == 0:
        return out
    chunks = triton.cdiv(limit, CHUNK)
    if workspace is None:
        workspace = Workspace.make(rows, heads, limit, width, device)
    shape, floats = (rows, heads, chunks), (torch.float32,)
    require_tensor("workspace.values", workspace.values, (*shape, width), floats, device)
    require_tensor("workspace.weights", workspace.weights, (*shape, 2), floats, device)
    require_tensor("workspace.counters", workspace.counters, shape[:2], (torch.int32,), device)
    with torch.cuda.device_of(keys):  # triton launches on the current device
        attention_decode_kernel[(rows * heads, chunks)](
            q,
            keys,
            values,
            positions,
            positions if active is None else active,
            out,
            workspace.values,
            workspace.weights,
            workspace.counters,
            heads,
            1 if active is None else active.numel(),
            limit,
            *keys.stride()[:3],
            width**-0.5,
            HEAD_DIM=width,
            BLOCK_D=triton.next_power_of_2(width),
            CHUNKS=chunks,
            BLOCK_CHUNKS=triton.next_power_of_2(chunks),
            CHUNK=CHUNK,
            HAS_ACTIVE=active is not None,
            num_warps=4,
            **OPTIONS,
        )
    return out
