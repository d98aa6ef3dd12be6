"""Residual vector quantiser decode: the sum of one codebook vector per code, time last.

out[b, :, t] = sum_k codebooks[k][codes[b, k, t]]     (k = 0 first, rounded after each addition)
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from audiogen_fast.kernels._launch import OPTIONS

_CODE_DTYPES = (torch.int64, torch.int32)
_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_BLOCK_T, _BLOCK_D = 32, 64


@triton.jit(do_not_specialize=["T", "codes_stride_b", "codes_stride_k", "codes_stride_t"])
def rvq_decode_kernel(
    codes_ptr,  # [B, K, T], any strides
    codebook_ptrs,  # K pointers to [ROWS, D], contiguous
    out_ptr,  # [B, D, T], contiguous
    T,
    ROWS,
    D,
    codes_stride_b,
    codes_stride_k,
    codes_stride_t,
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One block of times and channels; rows are read along D and written along T."""
    blocks = tl.cdiv(T, BLOCK_T)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    t = (tl.program_id(0) % blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (t < T)[:, None] & (d < D)[None, :]
    total = tl.zeros([BLOCK_T, BLOCK_D], dtype=out_ptr.dtype.element_ty)
    for k in tl.static_range(K):
        place = b * codes_stride_b + k * codes_stride_k + t.to(tl.int64) * codes_stride_t
        code = tl.load(codes_ptr + place, mask=t < T, other=0).to(tl.int64)
        # A code outside the codebook gives NaN, which is seen, instead of a stray read.
        valid = mask & ((code >= 0) & (code < ROWS))[:, None]
        row_ptr = codebook_ptrs[k] + code[:, None] * D + d[None, :]
        row = tl.load(row_ptr, mask=valid, other=float("nan"))
        total = (total.to(tl.float32) + row.to(tl.float32)).to(total.dtype)
    place_out = (b * D + d[:, None]) * T + t[None, :]
    tl.store(out_ptr + place_out, tl.trans(total), mask=(d < D)[:, None] & (t < T)[None, :])


def rvq_decode(codes: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Sum the codebook vectors of each frame, without waiting for the device.

    Args:
        codes: int64 or int32 `[B, K, T]`, any strides. One outside its codebook makes its frame
            NaN.
        codebooks: at least K tensors `[card, D]`, float32, float16 or bfloat16, contiguous.
    Returns:
        `[B, D, T]` in the dtype of the codebooks, rounded to it after each addition.
    Raises:
        ValueError: an argument of the wrong shape, dtype, device or layout.
    """
    _require(codes.ndim == 3, f"codes must be [B, K, T], got the shape {tuple(codes.shape)}")
    _require(codes.dtype in _CODE_DTYPES, f"codes must be int64 or int32, got {codes.dtype}")
    batch, n_codebooks, frames = codes.shape
    _require(
        1 <= n_codebooks <= len(codebooks),
        f"codes must have between 1 and {len(codebooks)} codebooks, got {n_codebooks}",
    )
    first = codebooks[0]
    _require(first.ndim == 2, f"codebooks must be [card, D], got the shape {tuple(first.shape)}")
    _require(first.dtype in _FLOAT_DTYPES, f"codebooks must be a float dtype, got {first.dtype}")
    for k, codebook in enumerate(codebooks[:n_codebooks]):
        for name in ("shape", "dtype", "device"):
            value, expected = getattr(codebook, name), getattr(first, name)
            _require(
                value == expected,
                f"codebooks[{k}] must have the {name} of codebooks[0], {expected}, got {value}",
            )
        _require(codebook.is_contiguous(), f"codebooks[{k}] must be contiguous")
    _require(
        codes.device == first.device,
        f"codes must be on the device of the codebooks, {first.device}, got {codes.device}",
    )
    card, dim = first.shape
    out = torch.empty(batch, dim, frames, dtype=first.dtype, device=first.device)
    if out.numel() == 0:
        return out
    grid = (batch * triton.cdiv(frames, _BLOCK_T), triton.cdiv(dim, _BLOCK_D))
    with torch.cuda.device_of(first):  # triton launches on the current device
        rvq_decode_kernel[grid](
            codes,
            tuple(codebooks[:n_codebooks]),
            out,
            frames,
            card,
            dim,
            *codes.stride(),
            K=n_codebooks,
            BLOCK_T=_BLOCK_T,
            BLOCK_D=_BLOCK_D,
            **OPTIONS,
        )
    return out


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
