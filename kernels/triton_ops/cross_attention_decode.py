"""Cross-attention of one new step to short cached text: one launch, only for rows that have text.

out[r, h] = sum_i e_i v_i / (sum_i e_i + n_pad exp(0 - m)),  e_i = exp(q . k_i / sqrt(d) - m),
i < length: the padding of a batch of descriptions is zero keys and values, which nothing masks, so
each padded slot has the score 0 and adds to the denominator only. It need not be read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from audiogen_fast.kernels._launch import OPTIONS, require, require_cached_attention, require_tensor

_BLOCK = 64  # text slots per turn; most descriptions need one

# Not the strides: only where they are known to be divisible by 16 are loads 16 bytes wide.
_VARYING = ("H", "SLOTS", "L")


@triton.jit(do_not_specialize=_VARYING)
def cross_attention_decode_kernel(
    q_ptr,  # [R, H, HEAD_DIM]
    key_ptr,  # [R, H, L, HEAD_DIM], any strides but the last
    value_ptr,
    lengths_ptr,  # [R]
    pads_ptr,  # [R]
    active_ptr,  # [SLOTS]
    out_ptr,  # [R, H, HEAD_DIM]
    H,
    SLOTS,
    L,
    stride_r,
    stride_h,
    stride_l,
    scale,  # 1 / sqrt(HEAD_DIM)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCKS: tl.constexpr,  # of text slots, for the longest row
    HAS_ACTIVE: tl.constexpr,
):
    """One row and head, with a softmax that is carried over blocks of text slots."""
    pair = tl.program_id(0)
    row = (pair // H).to(tl.int64)
    head = (pair % H).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside_d = d < HEAD_DIM
    length = tl.minimum(tl.load(lengths_ptr + row), L)
    pads = tl.load(pads_ptr + row).to(tl.float32)
    width = HEAD_DIM
    if HAS_ACTIVE:
        live = tl.load(active_ptr + row % SLOTS)
        length = tl.where(live, length, 0)
        width = tl.where(live, width, 0)
    own = pair.to(tl.int64) * HEAD_DIM + d
    q = tl.load(q_ptr + own, mask=inside_d, other=0.0).to(tl.float32) * scale
    # The padding comes first: n_pad slots of score 0 and value 0.
    top = tl.where(pads > 0, 0.0, float("-inf"))
    total = pads
    values = tl.zeros([BLOCK_D], tl.float32)
    for turn in range(0, BLOCKS):
        begin = turn * BLOCK_L
        if begin < length:
            i = begin + tl.arange(0, BLOCK_L)
            present = i < length
            inside = present[:, None] & inside_d[None, :]
            place = (
                row * stride_r + head * stride_h + i.to(tl.int64)[:, None] * stride_l + d[None, :]
            )
            k = tl.load(key_ptr + place, mask=inside, other=0.0)
            v = tl.load(value_ptr + place, mask=inside, other=0.0)
            scores = tl.where(present, tl.sum(k.to(tl.float32) * q[None, :], 1), float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 0))
            weights = tl.exp(scores - higher)
            # Before anything was added top may be -inf, and its factor is 0.
            factor = tl.exp(top - higher)
            total = total * factor + tl.sum(weights, 0)
            values = values * factor + tl.sum(v.to(tl.float32) * weights[:, None], 0)
            top = higher
    # A row with neither text nor padding is exactly zero.
    result = values / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + own, result.to(out_ptr.dtype.element_ty), mask=inside_d & (d < width))


def cross_attention_decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    n_pad: Tensor,
    out: Tensor,
    *,
    active: Tensor | None = None,
) -> Tensor:
    """Attend from one step of each row that has text to that text.

    Args:
        q: float `[R, H d]`, contiguous: the first rows of a batch, which are those with text.
        keys, values: float `[R, H, L, d]` of the same strides, the last of them 1; what lies at
            or past a row's length is never used.
        lengths: int32 `[R]`, real text slots of each row, at most L.
        n_pad: int32 `[R]`, zero slots that each row attends to besides.
        out: float `[R, H d]`, contiguous, written in place. A row of length 0 becomes zero.
        active: bool `[slots]`; row r is written only if `active[r % slots]`.
    Returns:
        `out`.
    Raises:
        ValueError: an argument of the wrong shape, dtype, device or layout.
    """
    require(keys.ndim == 4, f"keys must be [R, H, L, d], got the shape {tuple(keys.shape)}")
    rows, heads, text, width = keys.shape
    device = keys.device
    require_cached_attention(q, keys, values, out, active)
    require_tensor("lengths", lengths, (rows,), (torch.int32,), device)
    require_tensor("n_pad", n_pad, (rows,), (torch.int32,), device)
    if out.numel() == 0:
        return out
    block = min(max(triton.next_power_of_2(max(text, 1)), 16), _BLOCK)
    with torch.cuda.device_of(keys):  # triton launches on the current device
        cross_attention_decode_kernel[(rows * heads,)](
            q,
            keys,
            values,
            lengths,
            n_pad,
            lengths if active is None else active,
            out,
            heads,
            1 if active is None else active.numel(),
            text,
            *keys.stride()[:3],
            width**-0.5,
            HEAD_DIM=width,
            BLOCK_D=triton.next_power_of_2(width),
            BLOCK_L=block,
            BLOCKS=triton.cdiv(text, block),
            HAS_ACTIVE=active is not None,
            num_warps=4,
            **OPTIONS,
        )
    return out
