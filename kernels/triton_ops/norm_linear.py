"""Linear map of a few rows with everything around it: one launch for each matrix of a layer.

y[r] = W . a[r] + bias,  a[r] = x[r], or LN(x[r]), or with guidance g
a[r] = LN(x[R + r]) + g (LN(x[r]) - LN(x[R + r])),   LN(x) = (x - mean) / sqrt(var + eps) * w + b

and then one of: store y, or gelu(y) = y (1 + erf(y / sqrt 2)) / 2; add y to the float32 residual
stream; or split y into q | k | v, store q, and put k and v into the caches at the row's position.

Up to 4 rows are multiplied on the ordinary cores by `gemv_kernel` (norm_linear_gemv.py), more on
the matrix cores by `rows_kernel` (norm_linear_rows.py). With a split, programs sum parts of K into
a workspace and the last to arrive adds them in order, so the result does not depend on timing.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from audiogen_fast.kernels import _launch, norm_linear_gemv, norm_linear_rows
from audiogen_fast.kernels._launch import FLOATS, require, require_tensor

GEMV_ROWS = 4
_BOOLEANS = (torch.bool,)
_LONGEST_SLICE = 2048  # columns of a row that a gemv program holds in registers


@dataclass(frozen=True)
class Config:
    """How a product is cut into programs. `split` parts of K; `block_k` only for `rows`."""

    kind: str
    block_m: int
    block_n: int
    block_k: int
    split: int
    num_warps: int
    num_stages: int = 3


@dataclass
class KVAppend:
    """Where the q | k | v epilogue puts keys and values: caches `[R, H, C, d]`, d contiguous, at
    `positions` int32 `[R]`; a position outside the cache writes nothing."""

    keys: Tensor
    values: Tensor
    positions: Tensor


@dataclass
class Workspace:
    """Scratch of split products: `partial` float32, `counters` int32, zero before the first use
    and zero again after each launch. Launches that may overlap need one each."""

    partial: Tensor
    counters: Tensor


def choose_config(rows: int, n: int, k: int, bits: int, group: int, processors: int) -> Config:
    """The fixed configuration of a shape.

    Programs are made small enough that every multiprocessor has at least two, and K is split where
    the outputs are too few for that, because what counts is how many bytes are in flight.

    Args:
        rows, n, k: sizes of the product.
        bits: of a weight, 32, 16, 8 or 4.
        group: columns that share an int4 scale; slices of K are whole groups.
        processors: multiprocessors of the device. A single one is the interpreter, where what
            counts is the number of programs.
    """
    if rows <= GEMV_ROWS:
        step = {8: 16, 4: group}.get(bits, 16)
        split = -(-k // _LONGEST_SLICE)
        split = triton.cdiv(k, triton.cdiv(triton.cdiv(k, split), step) * step)
        # More rows of weights than 8, or 4 of float32, would need more registers than there are.
        block_n = 128 if processors == 1 else 4 if bits == 32 else 8
        while block_n > 2 and triton.cdiv(n, block_n) * split < 2 * processors:
            block_n //= 2
        # With so few bytes for each program, more threads hold them without spilling (sm_80).
        num_warps = 8 if bits == 8 and block_n <= 4 else 4
        return Config("gemv", triton.next_power_of_2(max(rows, 1)), block_n, 0, split, num_warps)
    # At most 32 rows and 4 blocks ahead: what fits the 99 KB of shared memory of the smallest.
    block_m = 16 if rows <= 16 else 32
    # 64 rows of quantised weights would be multiplied by wgmma, for which Triton reads them in the
    # layout of its registers, 8 bytes at a time.
    block_n = 128 if processors == 1 else 64 if n >= 4096 and bits >= 16 else 32
    block_k = group if bits == 4 else 32 if bits == 32 else 64
    programs = triton.cdiv(n, block_n) * triton.cdiv(rows, block_m)
    split = 1
    while split < 8 and programs * split < 2 * processors and k // (2 * split) >= 2 * block_k:
        split *= 2
    split = triton.cdiv(k, triton.cdiv(triton.cdiv(k, split), block_k) * block_k)
    return Config("rows", block_m, block_n, block_k, split, 4, 4 if block_m == 16 else 3)


def default_config(
    rows: int, n: int, k: int, bits: int, group: int, device: torch.device
) -> Config:
    """`choose_config` for a device."""
    return choose_config(rows, n, k, bits, group, _launch.multiprocessors(device))


def workspace_sizes(config: Config, rows: int, n: int) -> tuple[int, int]:
    """Elements of `Workspace.partial` and `.counters` that a product needs; 0 without a split."""
    if config.split == 1:
        return 0, 0
    m_tiles = 1 if config.kind == "gemv" else triton.cdiv(rows, config.block_m)
    return config.split * rows * n, triton.cdiv(n, config.block_n) * m_tiles


def norm_linear(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-5,
    guidance: Tensor | None = None,
    gelu: bool = False,
    residual: bool = False,
    append: KVAppend | None = None,
    active: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
    workspace: Workspace | None = None,
    config: Config | None = None,
) -> Tensor:
    """Multiply R rows by a matrix, with what comes before and after; see the module's docstring.

    Args:
        x: float `[R, K]`, or `[2 R, K]` with `guidance`; contiguous.
        weight: float `[N, K]`; or int8 `[N, Kp]` or uint8 `[N, Kp / 2]` in the layout of
            `audiogen_fast.ops.weight_formats`, with `scale`.
        out: float `[R, N]` (`[R, N / 3]` with `append`), contiguous, written in place.
        scale: float32 `[N]` (int8) or bfloat16 `[N, Kp / group]` (int4).
        bias: float `[N]`.
        norm: float (weight, bias) `[K]` of a layer norm in front.
        guidance: float32 `[slots]`: row r is mixed from rows r and R + r with strength
            `guidance[r % slots]`; needs `norm`.
        gelu, residual, append: what is done with the product; at most one of them.
        active: bool `[slots]`; row r is written only if `active[r % slots]`.
        compute_dtype: what quantised weights and their inputs are multiplied in with more than 4
            rows, float32, float16 or bfloat16 (default). Fewer rows use float32 throughout, and
            float weights their own dtype. Sums are float32 always.
        workspace: needed where the configuration splits K (`workspace_sizes`); made if None.
        config: instead of that of `choose_config`.
    Returns:
        `out`.
    Raises:
        ValueError: an argument of the wrong shape, dtype, device or layout.
    """
    rows, n, k, bits, group = _check_product(x, weight, scale, guidance)
    _check_rest(x, out, rows, n, k, bias, norm, guidance, gelu, residual, append, active)
    if rows == 0:
        return out
    if config is None:
        config = default_config(rows, n, k, bits, group, x.device)
    workspace = _check_workspace(workspace, config, rows, n, x.device)
    slots = max(_length(guidance), _length(active), 1)
    # Pointers that the chosen form never reads get x or out as a stand-in.
    keys, values, positions = (
        (append.keys, append.values, append.positions) if append else (out, out, out)
    )
    cache_strides = keys.stride()[:3] if append else (0, 0, 0)
    module = norm_linear_gemv if config.kind == "gemv" else norm_linear_rows
    dtype = weight.dtype if bits >= 16 else compute_dtype or torch.bfloat16
    with torch.cuda.device_of(x):  # triton launches on the current device
        module.launch(
            config,
            pointers=(
                x,
                x if norm is None else norm[0],
                x if norm is None else norm[1],
                x if guidance is None else guidance,
                weight,
                x if scale is None else scale,
                x if bias is None else bias,
                x if active is None else active,
                out,
                keys,
                values,
                positions,
                workspace.partial,
                workspace.counters,
            ),
            numbers=(rows, slots, eps, keys.shape[2] if append else 0, *cache_strides),
            constants={
                "N": n,
                "K": k,
                "BITS": bits,
                "GROUP": group,
                "HEAD_DIM": keys.shape[3] if append else 1,
                "NORM": norm is not None,
                "MIX": guidance is not None,
                "HAS_BIAS": bias is not None,
                "HAS_ACTIVE": active is not None,
                "EPILOGUE": "gelu" if gelu else "add" if residual else "kv" if append else "store",
            },
            compute_dtype=dtype,
        )
    return out


def _length(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.shape[0]


def _check_product(
    x: Tensor, weight: Tensor, scale: Tensor | None, guidance: Tensor | None
) -> tuple[int, int, int, int, int]:
    """(rows, N, K, bits of a weight, columns that share a scale) of a well-formed product."""
    require(x.ndim == 2, f"x must be [R, K], got the shape {tuple(x.shape)}")
    require_tensor("x", x, tuple(x.shape), FLOATS, x.device)
    rows, k = x.shape
    require(
        guidance is None or rows % 2 == 0, f"x must have 2 R rows with guidance, got {rows} rows"
    )
    rows = rows if guidance is None else rows // 2
    require(weight.ndim == 2, f"weight must have 2 dimensions, got {tuple(weight.shape)}")
    n = weight.shape[0]
    require(n > 0 and k > 0, f"weight must not be empty, got {n} rows of {k} columns")
    if weight.dtype in FLOATS:
        require_tensor("weight", weight, (n, k), FLOATS, x.device)
        require(scale is None, "scale must be None with weights that are not quantised")
        return rows, n, k, weight.element_size() * 8, 0
    if weight.dtype == torch.int8:
        padded = triton.cdiv(k, 16) * 16
        require_tensor("weight", weight, (n, padded), (torch.int8,), x.device)
        require(scale is not None, "int8 weights need a scale")
        require_tensor("scale", scale, (n,), (torch.float32,), x.device)
        return rows, n, k, 8, padded
    require(
        weight.dtype == torch.uint8,
        f"weight must be a float dtype, int8, or uint8 for int4, got {weight.dtype}",
    )
    require(scale is not None and scale.ndim == 2, "int4 weights need a scale [N, groups]")
    groups = scale.shape[1]
    group = 2 * weight.shape[1] // max(groups, 1)
    require(
        group in (64, 128) and groups == triton.cdiv(k, group),
        f"weight and scale must be whole groups of 64 or 128 columns for K={k}, "
        f"got {tuple(weight.shape)} and {tuple(scale.shape)}",
    )
    require_tensor("weight", weight, (n, groups * group // 2), (torch.uint8,), x.device)
    require_tensor("scale", scale, (n, groups), (torch.bfloat16,), x.device)
    return rows, n, k, 4, group


def _check_rest(
    x: Tensor,
    out: Tensor,
    rows: int,
    n: int,
    k: int,
    bias: Tensor | None,
    norm: tuple[Tensor, Tensor] | None,
    guidance: Tensor | None,
    gelu: bool,
    residual: bool,
    append: KVAppend | None,
    active: Tensor | None,
) -> None:
    require(
        gelu + residual + (append is not None) <= 1,
        "at most one of gelu, residual and append can be asked for",
    )
    require(append is None or n % 3 == 0, f"append needs N = 3 H d, got N={n}")
    width = n if append is None else n // 3
    require_tensor("out", out, (rows, width), FLOATS, x.device)
    require(not residual or out.dtype == torch.float32, "out must be float32 with residual")
    if bias is not None:
        require_tensor("bias", bias, (n,), FLOATS, x.device)
    if norm is not None:
        require_tensor("norm weight", norm[0], (k,), FLOATS, x.device)
        require_tensor("norm bias", norm[1], (k,), FLOATS, x.device)
    slots = None
    for name, tensor, dtypes in (
        ("guidance", guidance, (torch.float32,)),
        ("active", active, _BOOLEANS),
    ):
        if tensor is not None:
            slots = tensor.shape[0] if slots is None else slots
            require_tensor(name, tensor, (slots,), dtypes, x.device)
            require(slots > 0, f"{name} must not be empty")
    require(guidance is None or norm is not None, "guidance needs norm")
    if append is not None:
        keys, values = append.keys, append.values
        require(keys.ndim == 4, f"keys must be [R, H, C, d], got {tuple(keys.shape)}")
        shape = (rows, width // max(keys.shape[3], 1), *keys.shape[2:])
        require(shape[1] * shape[3] == width, f"keys must have H d = {width}, got {keys.shape}")
        require_tensor("keys", keys, shape, FLOATS, x.device, contiguous=False)
        require_tensor("values", values, shape, (keys.dtype,), x.device, contiguous=False)
        require(
            keys.stride() == values.stride() and keys.stride(3) == 1,
            "keys and values must have the same strides, the last of them 1",
        )
        require_tensor("positions", append.positions, (rows,), (torch.int32,), x.device)


def _check_workspace(
    workspace: Workspace | None, config: Config, rows: int, n: int, device: torch.device
) -> Workspace:
    partial, counters = workspace_sizes(config, rows, n)
    if workspace is None:
        return Workspace(
            torch.empty(max(partial, 1), dtype=torch.float32, device=device),
            torch.zeros(max(counters, 1), dtype=torch.int32, device=device),
        )
    for name, tensor, dtype, needed in (
        ("workspace.partial", workspace.partial, torch.float32, partial),
        ("workspace.counters", workspace.counters, torch.int32, counters),
    ):
        require_tensor(name, tensor, (tensor.numel(),), (dtype,), device)
        require(
            tensor.numel() >= needed,
            f"{name} must have at least {needed} elements, got {tensor.numel()}",
        )
    return workspace
