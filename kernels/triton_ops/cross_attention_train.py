"""Cross-attention over short text for whole sequences: prefill and training.

s_i = q . k_i / sqrt(d)           for the row's own i < length
Z = sum_i exp(s_i) + n_pad        zero slots of a padded batch: score 0, value 0
out = sum_i exp(s_i) v_i / Z      exactly zero for a row of length 0

With p_i = exp(s_i) / Z and delta = out . d(out):
ds_i = p_i * (v_i . d(out) - delta),  dq = sum_i ds_i k_i / sqrt(d)
dk_i = sum_t ds_i q / sqrt(d),        dv_i = sum_t p_i d(out)

The softmax runs over blocks of text with a running maximum (Milakov and Gimelshein, 2018), the
backward pass makes the weights again from that maximum and Z (FlashAttention, Dao et al., 2022).
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from audiogen_fast.kernels._launch import OPTIONS

_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_INT_DTYPES = (torch.int64, torch.int32)

# Sequence lengths must not compile another variant.
_VARYING = ("H", "T", "L")


@triton.jit(do_not_specialize=_VARYING)
def cross_attention_kernel(
    q_ptr,  # [B, H, T, D], last stride 1
    k_ptr,  # [B, H, L, D], last stride 1
    v_ptr,  # [B, H, L, D], last stride 1
    lengths_ptr,  # [B]
    n_pad_ptr,  # [B]
    out_ptr,  # [B, T, H, D], contiguous
    stats_ptr,  # [2, B, H, T] float32: the highest score, and Z / exp(of it)
    scale,  # 1 / sqrt(d)
    H,
    T,
    L,
    q_stride_b,
    q_stride_h,
    q_stride_t,
    k_stride_b,
    k_stride_h,
    k_stride_t,
    v_stride_b,
    v_stride_h,
    v_stride_t,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One block of queries of one head over the row's text."""
    b, h = tl.program_id(1).to(tl.int64) // H, tl.program_id(1).to(tl.int64) % H
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    mask_q = (t < T)[:, None] & (d < D)[None, :]
    length = tl.minimum(tl.load(lengths_ptr + b).to(tl.int32), L)
    n_pad = tl.load(n_pad_ptr + b).to(tl.float32)
    place_q = b * q_stride_b + h * q_stride_h + t[:, None].to(tl.int64) * q_stride_t + d[None, :]
    q = tl.load(q_ptr + place_q, mask=mask_q, other=0.0)
    # The zero slots come first: score 0, n_pad times exp(0) together.
    highest = tl.where(n_pad > 0, 0.0, float("-inf"))
    highest = tl.zeros([BLOCK_T], dtype=tl.float32) + highest
    total = tl.zeros([BLOCK_T], dtype=tl.float32) + n_pad
    acc = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for start in range(0, length, BLOCK_L):
        i = start + tl.arange(0, BLOCK_L)
        mask_k = (i < length)[:, None] & (d < D)[None, :]
        rows = i[:, None].to(tl.int64)
        k = tl.load(
            k_ptr + b * k_stride_b + h * k_stride_h + rows * k_stride_t + d[None, :],
            mask=mask_k,
            other=0.0,
        )
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        s = tl.where((i < length)[None, :], s, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(s, axis=1))
        shrink = tl.exp(highest - new_highest)
        p = tl.exp(s - new_highest[:, None])
        total = total * shrink + tl.sum(p, axis=1)
        v = tl.load(
            v_ptr + b * v_stride_b + h * v_stride_h + rows * v_stride_t + d[None, :],
            mask=mask_k,
            other=0.0,
        )
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        highest = new_highest
    # Without text and pads nothing was added up, and the output is zero.
    total = tl.where(total == 0.0, 1.0, total)
    acc = acc / total[:, None]
    place_out = ((b * T + t[:, None]) * H + h) * D + d[None, :]
    tl.store(out_ptr + place_out, acc.to(out_ptr.dtype.element_ty), mask=mask_q)
    place = (b * H + h) * T + t
    tl.store(stats_ptr + place, highest, mask=t < T)
    tl.store(stats_ptr + tl.num_programs(1).to(tl.int64) * T + place, total, mask=t < T)


@triton.jit(do_not_specialize=_VARYING)
def cross_attention_backward_q_kernel(
    do_ptr,  # [B, H, T, D], last stride 1
    out_ptr,  # [B, T, H, D], contiguous
    q_ptr,
    k_ptr,
    v_ptr,
    lengths_ptr,
    stats_ptr,
    delta_ptr,  # [B, H, T] float32, written
    dq_ptr,  # [B, T, H, D], contiguous
    scale,  # 1 / sqrt(d)
    H,
    T,
    L,
    do_stride_b,
    do_stride_h,
    do_stride_t,
    q_stride_b,
    q_stride_h,
    q_stride_t,
    k_stride_b,
    k_stride_h,
    k_stride_t,
    v_stride_b,
    v_stride_h,
    v_stride_t,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """delta = out . d(out) and dq of one block of queries."""
    b, h = tl.program_id(1).to(tl.int64) // H, tl.program_id(1).to(tl.int64) % H
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    mask_q = (t < T)[:, None] & (d < D)[None, :]
    rows_q = t[:, None].to(tl.int64)
    length = tl.minimum(tl.load(lengths_ptr + b).to(tl.int32), L)
    q = tl.load(
        q_ptr + b * q_stride_b + h * q_stride_h + rows_q * q_stride_t + d[None, :],
        mask=mask_q,
        other=0.0,
    )
    do = tl.load(
        do_ptr + b * do_stride_b + h * do_stride_h + rows_q * do_stride_t + d[None, :],
        mask=mask_q,
        other=0.0,
    )
    place_out = ((b * T + rows_q) * H + h) * D + d[None, :]
    out = tl.load(out_ptr + place_out, mask=mask_q, other=0.0)
    delta = tl.sum(out.to(tl.float32) * do.to(tl.float32), axis=1)
    tl.store(delta_ptr + (b * H + h) * T + t, delta, mask=t < T)
    place = (b * H + h) * T + t
    highest = tl.load(stats_ptr + place, mask=t < T, other=0.0)
    place += tl.num_programs(1).to(tl.int64) * T
    total = tl.load(stats_ptr + place, mask=t < T, other=1.0)
    acc = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for start in range(0, length, BLOCK_L):
        i = start + tl.arange(0, BLOCK_L)
        mask_k = (i < length)[:, None] & (d < D)[None, :]
        rows = i[:, None].to(tl.int64)
        k = tl.load(
            k_ptr + b * k_stride_b + h * k_stride_h + rows * k_stride_t + d[None, :],
            mask=mask_k,
            other=0.0,
        )
        v = tl.load(
            v_ptr + b * v_stride_b + h * v_stride_h + rows * v_stride_t + d[None, :],
            mask=mask_k,
            other=0.0,
        )
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        p = tl.exp(s - highest[:, None]) / total[:, None]
        p = tl.where((i < length)[None, :], p, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = p * (dp - delta[:, None])
        acc += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    tl.store(dq_ptr + place_out, (acc * scale).to(dq_ptr.dtype.element_ty), mask=mask_q)


@triton.jit(do_not_specialize=_VARYING)
def cross_attention_backward_kv_kernel(
    do_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    lengths_ptr,
    stats_ptr,
    delta_ptr,
    dk_ptr,  # [B, L, H, D], contiguous
    dv_ptr,  # [B, L, H, D], contiguous
    scale,
    H,
    T,
    L,
    do_stride_b,
    do_stride_h,
    do_stride_t,
    q_stride_b,
    q_stride_h,
    q_stride_t,
    k_stride_b,
    k_stride_h,
    k_stride_t,
    v_stride_b,
    v_stride_h,
    v_stride_t,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dk and dv of one block of text, over all queries in order; zero past the row's length."""
    b, h = tl.program_id(1).to(tl.int64) // H, tl.program_id(1).to(tl.int64) % H
    i = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    d = tl.arange(0, BLOCK_D)
    length = tl.minimum(tl.load(lengths_ptr + b).to(tl.int32), L)
    mask_k = (i < length)[:, None] & (d < D)[None, :]
    rows = i[:, None].to(tl.int64)
    k = tl.load(
        k_ptr + b * k_stride_b + h * k_stride_h + rows * k_stride_t + d[None, :],
        mask=mask_k,
        other=0.0,
    )
    v = tl.load(
        v_ptr + b * v_stride_b + h * v_stride_h + rows * v_stride_t + d[None, :],
        mask=mask_k,
        other=0.0,
    )
    dk = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    dv = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    steps = tl.where(tl.program_id(0) * BLOCK_L < length, T, 0)  # nothing to add past the length
    for start in range(0, steps, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        mask_q = (t < T)[:, None] & (d < D)[None, :]
        rows_q = t[:, None].to(tl.int64)
        q = tl.load(
            q_ptr + b * q_stride_b + h * q_stride_h + rows_q * q_stride_t + d[None, :],
            mask=mask_q,
            other=0.0,
        )
        do = tl.load(
            do_ptr + b * do_stride_b + h * do_stride_h + rows_q * do_stride_t + d[None, :],
            mask=mask_q,
            other=0.0,
        )
        place = (b * H + h) * T + t
        delta = tl.load(delta_ptr + place, mask=t < T, other=0.0)
        highest = tl.load(stats_ptr + place, mask=t < T, other=0.0)
        place += tl.num_programs(1).to(tl.int64) * T
        total = tl.load(stats_ptr + place, mask=t < T, other=1.0)
        s = tl.dot(k, tl.trans(q), input_precision="ieee") * scale
        p = tl.exp(s - highest[None, :]) / total[None, :]
        p = tl.where((i < length)[:, None] & (t < T)[None, :], p, 0.0)
        dv += tl.dot(p.to(do.dtype), do, input_precision="ieee")
        dp = tl.dot(v, tl.trans(do), input_precision="ieee")
        ds = p * (dp - delta[None, :])
        dk += tl.dot(ds.to(q.dtype), q, input_precision="ieee")
    place_kv = ((b * L + rows) * H + h) * D + d[None, :]
    inside = (i < L)[:, None] & (d < D)[None, :]
    tl.store(dk_ptr + place_kv, (dk * scale).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + place_kv, dv.to(dv_ptr.dtype.element_ty), mask=inside)


def cross_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, n_pad: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of whole sequences over unpadded text, with `n_pad` zero slots in the softmax.

    Args:
        q: float32, float16 or bfloat16 `[B, H, T, d]`, last stride 1, d up to 256.
        k, v: `[B, H, L, d]` of the same dtype; slots at or past the row's length are never read.
        lengths, n_pad: int64 or int32 `[B]`, contiguous, not negative.
    Returns:
        `[B, H, T, d]`, laid out as `[B, T, H, d]`, and float32 `[2, B, H, T]` for the
        backward pass: the highest score and the sum of the weights relative to it.
    Raises:
        ValueError: an argument of the wrong shape, dtype, device or layout.
    """
    B, H, T, D = _check_arguments(q, k, v, lengths, n_pad)
    out = torch.empty(B, T, H, D, dtype=q.dtype, device=q.device)
    stats = torch.empty(2, B, H, T, dtype=torch.float32, device=q.device)
    if out.numel() > 0:
        blocks = _blocks(q, k)
        with torch.cuda.device_of(q):  # triton launches on the current device
            cross_attention_kernel[(triton.cdiv(T, blocks["BLOCK_T"]), B * H)](
                q,
                k,
                v,
                lengths,
                n_pad,
                out,
                stats,
                1 / math.sqrt(D),
                H,
                T,
                k.shape[2],
                *q.stride()[:3],
                *k.stride()[:3],
                *v.stride()[:3],
                **blocks,
                # Rows of 1024 bytes spill registers with the usual four.
                num_warps=8 if blocks["BLOCK_D"] * q.element_size() >= 1024 else 4,
                **OPTIONS,
            )
    return out.transpose(1, 2), stats


def cross_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    out: Tensor,
    stats: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; `out` and `stats` are the results of `cross_attention`.

    Those of text slots at or past the row's length are zero. Nothing is added up atomically, so
    the result is the same at every run.
    """
    B, H, T, D = _check_arguments(q, k, v, lengths, lengths)
    L = k.shape[2]
    _require(grad.shape == q.shape, f"grad must be {tuple(q.shape)}, got {tuple(grad.shape)}")
    _require(out.transpose(1, 2).is_contiguous(), "out must be laid out as [B, T, H, d]")
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    dq = torch.empty(B, T, H, D, dtype=q.dtype, device=q.device)
    dk, dv = (torch.empty(B, L, H, D, dtype=x.dtype, device=x.device) for x in (k, v))
    delta = torch.empty(B, H, T, dtype=torch.float32, device=q.device)
    blocks = _blocks(q, k)
    strides = [s for x in (grad, q, k, v) for s in x.stride()[:3]]
    scale = 1 / math.sqrt(D)
    with torch.cuda.device_of(q):
        if dq.numel() > 0:
            cross_attention_backward_q_kernel[(triton.cdiv(T, blocks["BLOCK_T"]), B * H)](
                *(grad, out, q, k, v, lengths, stats, delta, dq, scale, H, T, L),
                *strides,
                **blocks,
                **OPTIONS,
            )
        if dk.numel() > 0:
            cross_attention_backward_kv_kernel[(triton.cdiv(L, blocks["BLOCK_L"]), B * H)](
                *(grad, q, k, v, lengths, stats, delta, dk, dv, scale, H, T, L),
                *strides,
                **blocks,
                # Two sums of float32 tiles spill registers with the usual four.
                num_warps=8 if q.dtype == torch.float32 else 4,
                **OPTIONS,
            )
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


def _blocks(q: Tensor, k: Tensor) -> dict[str, int]:
    """Sizes of the blocks: 16 is the least a matrix instruction takes."""
    D, L = q.shape[-1], k.shape[2]
    width = max(16, triton.next_power_of_2(D))
    # float32 tiles and wide heads take more shared memory and registers. With 32 rows of 512 bytes
    # the gradients need more than the 101376 bytes of an RTX 40, of 1024 more than an A100 has.
    if width * q.element_size() >= 512:
        most = 16
    else:
        most = 64 if width <= 64 and q.dtype != torch.float32 else 32
    return {
        "D": D,
        "BLOCK_T": most,
        "BLOCK_L": min(most, max(16, triton.next_power_of_2(max(L, 1)))),
        "BLOCK_D": width,
    }


def _check_arguments(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, n_pad: Tensor):
    _require(q.ndim == 4, f"q must be [B, H, T, d], got the shape {tuple(q.shape)}")
    B, H, T, D = q.shape
    _require(1 <= D <= 256, f"the width of a head must be in [1, 256], got {D}")
    for name, tensor in (("k", k), ("v", v)):
        _require(
            tensor.ndim == 4 and tensor.shape == (B, H, k.shape[2], D),
            f"{name} must be [{B}, {H}, L, {D}], got the shape {tuple(tensor.shape)}",
        )
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _require(tensor.dtype in _FLOAT_DTYPES, f"{name} must be a float dtype, got {tensor.dtype}")
        _require(
            tensor.dtype == q.dtype, f"{name} must be of the dtype of q, {q.dtype}, got {v.dtype}"
        )
        _require(
            tensor.stride(-1) == 1 or tensor.numel() == 0 or D == 1,
            f"{name} must have a last stride of 1, got {tensor.stride(-1)}",
        )
    for name, tensor in (("lengths", lengths), ("n_pad", n_pad)):
        _require(tensor.shape == (B,), f"{name} must be [{B}], got the shape {tuple(tensor.shape)}")
        _require(tensor.dtype in _INT_DTYPES, f"{name} must be int64 or int32, got {tensor.dtype}")
        _require(tensor.is_contiguous(), f"{name} must be contiguous")
    for name, tensor in (("k", k), ("v", v), ("lengths", lengths), ("n_pad", n_pad)):
        _require(
            tensor.device == q.device,
            f"{name} must be on the device of q, {q.device}, got {tensor.device}",
        )
    return B, H, T, D


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
