"""Sum of one embedding row per codebook, plus the sinusoidal position: one launch for the step.

out[b, s] = sum_k tables[k, codes[b, k, s]]  (k = 0 first)  +  PE(positions[b, s])
PE(p) = [cos(p / w_0) ... cos(p / w_{h-1}), sin(p / w_0) ... sin(p / w_{h-1})],  h = D / 2,
w_i = max_period ** (i / (h - 1))

The backward pass adds up, in float32, the gradients of all places where a row was looked up:
d(tables)[k, r] = sum over codes[b, k, s] = r of d(out)[b, s]
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from audiogen_fast.kernels._launch import OPTIONS

_CODE_DTYPES = (torch.int64, torch.int32)
_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# A sequence length must not compile another variant in the middle of a generation.
_VARYING = (
    "S",
    "codes_stride_b",
    "codes_stride_k",
    "codes_stride_s",
    "positions_stride_b",
    "positions_stride_s",
)


@triton.jit(do_not_specialize=_VARYING)
def codebook_embedding_kernel(
    codes_ptr,  # [B, K, S], any strides
    tables_ptr,  # [K, ROWS, D], contiguous
    positions_ptr,  # [B, S], any strides; read only with HAS_POSITIONS
    divisors_ptr,  # [D / 2] float32; read only with HAS_POSITIONS
    out_ptr,  # [B, S, D], contiguous
    S,
    ROWS,
    D,
    codes_stride_b,
    codes_stride_k,
    codes_stride_s,
    positions_stride_b,
    positions_stride_s,
    K: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[b, s, cols] = sum_k tables[k, codes[b, k, s], cols] + PE(positions[b, s])[cols]"""
    token = tl.program_id(0).to(tl.int64)  # int64 before it meets a stride
    b, s = token // S, token % S
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = cols < D
    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    for k in tl.static_range(K):
        code = tl.load(codes_ptr + b * codes_stride_b + k * codes_stride_k + s * codes_stride_s)
        code = code.to(tl.int64)
        # A code outside the table gives NaN, which is seen, instead of a stray read.
        width = tl.where((code >= 0) & (code < ROWS), D, 0)
        row_ptr = tables_ptr + (k * ROWS + code) * D
        row = tl.load(row_ptr + cols, mask=cols < width, other=float("nan"))
        total += row.to(tl.float32)
    if HAS_POSITIONS:
        position = tl.load(positions_ptr + b * positions_stride_b + s * positions_stride_s)
        half = D // 2
        divisor = tl.load(divisors_ptr + cols % half, mask=mask, other=1.0)
        # Rounded as in IEEE 754: an ulp of a phase in the hundreds would show in the cosine.
        phase = tl.div_rn(position.to(tl.float32), divisor)
        total += tl.where(cols < half, tl.cos(phase), tl.sin(phase))
    tl.store(out_ptr + token * D + cols, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_VARYING)
def codebook_embedding_backward_kernel(
    grad_ptr,  # [B, S, D], contiguous
    codes_ptr,  # [B, K, S], any strides
    grad_tables_ptr,  # [K, ROWS, D] float32, zero
    S,
    ROWS,
    D,
    codes_stride_b,
    codes_stride_k,
    codes_stride_s,
    K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grad_tables[k, codes[b, k, s], cols] += grad[b, s, cols], atomically, for every k"""
    token = tl.program_id(0).to(tl.int64)
    b, s = token // S, token % S
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    grad = tl.load(grad_ptr + token * D + cols, mask=cols < D, other=0.0).to(tl.float32)
    for k in tl.static_range(K):
        code = tl.load(codes_ptr + b * codes_stride_b + k * codes_stride_k + s * codes_stride_s)
        code = code.to(tl.int64)
        width = tl.where((code >= 0) & (code < ROWS), D, 0)  # a code outside the table adds nothing
        place = (k * ROWS + code) * D + cols
        tl.atomic_add(grad_tables_ptr + place, grad, mask=cols < width, sem="relaxed")


@triton.jit(do_not_specialize=["TOKENS"])
def codebook_embedding_sorted_backward_kernel(
    grad_ptr,  # [TOKENS, D], contiguous
    order_ptr,  # [K, TOKENS] int64: tokens by ascending code
    starts_ptr,  # [K, ROWS + 1] int64: where each code begins in that order
    grad_tables_ptr,  # [K, ROWS, D] float32
    TOKENS,
    ROWS,
    D,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grad_tables[k, r, cols] = sum of grad[token, cols] over r's tokens, in a fixed order"""
    k, r = (tl.program_id(0) // ROWS).to(tl.int64), tl.program_id(0) % ROWS
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    start_ptr = starts_ptr + k * (ROWS + 1) + r
    first, last = tl.load(start_ptr).to(tl.int32), tl.load(start_ptr + 1).to(tl.int32)
    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    for start in range(first, last, BLOCK_TOKENS):
        index = start + tl.arange(0, BLOCK_TOKENS)
        token = tl.load(order_ptr + k * TOKENS + index, mask=index < last, other=0)
        mask = (index < last)[:, None] & (cols < D)[None, :]
        grad = tl.load(grad_ptr + token[:, None] * D + cols[None, :], mask=mask, other=0.0)
        total += tl.sum(grad.to(tl.float32), axis=0)
    place = (k * ROWS + r) * D + cols
    tl.store(grad_tables_ptr + place, total, mask=cols < D)


def codebook_embedding(
    codes: Tensor,
    tables: Tensor,
    positions: Tensor | None = None,
    max_period: float = 10000.0,
    out: Tensor | None = None,
) -> Tensor:
    """Sum the embedding rows of all codebooks in float32 and add the position embedding.

    Nothing is synchronised with the host, so codes are not checked against the table: a code
    outside it makes its whole output row NaN. The divisors of the position embedding are made at
    the first call for a width, which must therefore not be one that a CUDA graph captures.

    Args:
        codes: int64 or int32 `[B, K, S]`, any strides.
        tables: float32, float16 or bfloat16 `[K, card + 1, D]`, contiguous.
        positions: int64 or int32 `[B, S]`, any strides (an expanded tensor too), or None for no
            position embedding. D must then be even and at least 4.
        max_period: period of the slowest sinusoid divided by 2 pi.
        out: where to write, `[B, S, D]`, contiguous, of one of the dtypes of `tables`.
    Returns:
        `[B, S, D]`, `out` or a new float32 tensor.
    Raises:
        ValueError: an argument of the wrong shape, dtype, device or layout.
    """
    _check_arguments(codes, tables, positions, out)
    batch, n_codebooks, steps = codes.shape
    rows, dim = tables.shape[1:]
    if out is None:
        out = torch.empty(batch, steps, dim, dtype=torch.float32, device=tables.device)
    if out.numel() == 0:
        return out
    # Without positions the two pointers are never read; codes stands in for both.
    divisors = codes if positions is None else _divisors(dim // 2, max_period, tables.device)
    position_strides = (0, 0) if positions is None else positions.stride()
    block = min(triton.next_power_of_2(dim), 512)
    with torch.cuda.device_of(tables):  # triton launches on the current device
        codebook_embedding_kernel[(batch * steps, triton.cdiv(dim, block))](
            codes,
            tables,
            codes if positions is None else positions,
            divisors,
            out,
            steps,
            rows,
            dim,
            *codes.stride(),
            *position_strides,
            K=n_codebooks,
            HAS_POSITIONS=positions is not None,
            BLOCK_D=block,
            # 16 bytes of a row for each thread.
            num_warps=4 if tables.element_size() == 4 else 2,
            **OPTIONS,
        )
    return out


def codebook_embedding_backward(
    grad: Tensor, codes: Tensor, rows: int, deterministic: bool = False
) -> Tensor:
    """Gradient of the tables of `codebook_embedding`, added up in float32.

    Args:
        grad: float32, float16 or bfloat16 `[B, S, D]`, any strides.
        codes: int64 or int32 `[B, K, S]`, any strides. A code outside the table adds nothing.
        rows: entries of a table, card + 1.
        deterministic: the same bits at every run, by sorting the codes first; otherwise additions
            are atomic, which is faster and leaves their order open.
    Returns:
        float32 `[K, rows, D]`.
    Raises:
        ValueError: an argument of the wrong shape, dtype or device.
    """
    _require(codes.ndim == 3, f"codes must be [B, K, S], got the shape {tuple(codes.shape)}")
    _require(codes.dtype in _CODE_DTYPES, f"codes must be int64 or int32, got {codes.dtype}")
    batch, n_codebooks, steps = codes.shape
    _require(
        grad.ndim == 3 and grad.shape[:2] == (batch, steps),
        f"grad must be [{batch}, {steps}, D], got the shape {tuple(grad.shape)}",
    )
    _require(grad.dtype in _FLOAT_DTYPES, f"grad must be a float dtype, got {grad.dtype}")
    _require(
        grad.device == codes.device,
        f"grad must be on the device of codes, {codes.device}, got {grad.device}",
    )
    dim, grad = grad.shape[2], grad.contiguous()
    make = torch.empty if deterministic else torch.zeros
    out = make(n_codebooks, rows, dim, dtype=torch.float32, device=grad.device)
    if out.numel() == 0:
        return out
    block = min(triton.next_power_of_2(dim), 512)
    blocks = triton.cdiv(dim, block)
    with torch.cuda.device_of(grad):
        if deterministic:
            flat = codes.transpose(0, 1).reshape(n_codebooks, -1)
            ordered, order = torch.sort(flat, dim=1, stable=True)
            bounds = torch.arange(rows + 1, device=codes.device, dtype=codes.dtype)
            starts = torch.searchsorted(ordered, bounds.repeat(n_codebooks, 1))
            codebook_embedding_sorted_backward_kernel[(n_codebooks * rows, blocks)](
                *(grad, order, starts, out, flat.shape[1], rows, dim),
                BLOCK_TOKENS=8,
                BLOCK_D=block,
                **OPTIONS,
            )
        elif grad.numel() > 0:
            codebook_embedding_backward_kernel[(batch * steps, blocks)](
                *(grad, codes, out, steps, rows, dim, *codes.stride()),
                K=n_codebooks,
                BLOCK_D=block,
                **OPTIONS,
            )
    return out


@functools.lru_cache(maxsize=16)
def _divisors(half: int, max_period: float, device: torch.device) -> Tensor:
    index = torch.arange(half, device=device, dtype=torch.float32)
    period = torch.full([], max_period, device=device, dtype=torch.float32)
    return period ** (index / (half - 1))


def _check_arguments(
    codes: Tensor, tables: Tensor, positions: Tensor | None, out: Tensor | None
) -> None:
    _require(codes.ndim == 3, f"codes must be [B, K, S], got the shape {tuple(codes.shape)}")
    _require(tables.ndim == 3, f"tables must be [K, card + 1, D], got {tuple(tables.shape)}")
    batch, n_codebooks, steps = codes.shape
    dim = tables.shape[2]
    _require(
        tables.shape[0] == n_codebooks >= 1,
        f"tables must have the {n_codebooks} codebooks of codes, got {tables.shape[0]}",
    )
    _require(codes.dtype in _CODE_DTYPES, f"codes must be int64 or int32, got {codes.dtype}")
    _require(tables.dtype in _FLOAT_DTYPES, f"tables must be a float dtype, got {tables.dtype}")
    _require(tables.is_contiguous(), "tables must be contiguous")
    _require(
        codes.device == tables.device,
        f"codes must be on the device of tables, {tables.device}, got {codes.device}",
    )
    if positions is not None:
        _require(
            positions.shape == (batch, steps),
            f"positions must be {(batch, steps)}, got the shape {tuple(positions.shape)}",
        )
        _require(
            positions.dtype in _CODE_DTYPES,
            f"positions must be int64 or int32, got {positions.dtype}",
        )
        _require(
            positions.device == tables.device,
            f"positions must be on the device of tables, {tables.device}, got {positions.device}",
        )
        _require(dim % 2 == 0 and dim >= 4, f"D must be even and at least 4, got {dim}")
    if out is not None:
        _require(
            out.shape == (batch, steps, dim),
            f"out must be {(batch, steps, dim)}, got the shape {tuple(out.shape)}",
        )
        _require(out.dtype in _FLOAT_DTYPES, f"out must be a float dtype, got {out.dtype}")
        _require(out.is_contiguous(), "out must be contiguous")
        _require(
            out.device == tables.device,
            f"out must be on the device of tables, {tables.device}, got {out.device}",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
