"""Linear map of a few rows with everything around it: one launch for each matrix of a layer.

y[r] = W . a[r] + bias,  a[r] = x[r], or LN(x[r]), or with guidance g
a[r] = LN(x[R + r]) + g (LN(x[r]) - LN(x[R + r])),   LN(x) = (x - mean) / sqrt(var + eps) * w + b

and then one of: store y, or gelu(y) = y (1 + erf(y / sqrt 2)) / 2; add y to the float32 residual
stream; or split y into q | k | v, store q, and put k and v into the caches at the row's position.

Up to 4 rows are multiplied on the ordinary cores by `gemv_kernel` (norm_linear_gemv.py), more on
the matrix cores: up to 8 by `rows_kernel` (norm_linear_rows.py), then by `tiles_kernel`
(norm_linear_tiles.py); norm_linear_config.py decides. With a split, programs sum parts of K into a
workspace and the last to arrive adds them in order, so the result does not depend on timing.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from audiogen_fast.kernels import norm_linear_gemv, norm_linear_rows, norm_linear_tiles
from audiogen_fast.kernels._launch import FLOATS, require, require_tensor
from audiogen_fast.kernels.norm_linear_config import (
    Config,
    default_config,
    takes_tiles,
    workspace_sizes,
)
from audiogen_fast.kernels.row_statistics import PART, row_statistics, statistics_shape

_BOOLEANS = (torch.bool,)


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
    statistics: Tensor | None = None,
    out_statistics: Tensor | None = None,
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
        statistics: float32 `[2, ceil(K / 64), R']`, R' the rows of x or more: what `row_statistics`
            makes of x. Only the tiled form reads them; if None, it makes them by a launch more.
        out_statistics: the same of `out`, `[2, ceil(N / 64), R']`, for the next product: written
            where `residual` writes, by the tiled form only.
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
    dtype = weight.dtype if bits >= 16 else compute_dtype or torch.bfloat16
    if config is None:
        inputs = x.element_size() * (1 if guidance is None else 2)
        tiled = takes_tiles(rows, dtype)
        config = default_config(rows, n, k, bits, group, x.device, inputs, tiled)
    workspace = _check_workspace(workspace, config, rows, n, x.device)
    more = {}
    if config.kind == "tiles":
        more["statistics"] = _statistics(
            x, n, norm is not None, residual, statistics, out_statistics, config
        )
    require(
        out_statistics is None or config.kind == "tiles",
        f"out_statistics are written by the tiled form only, this is {config.kind!r}",
    )
    slots = max(_length(guidance), _length(active), 1)
    # Pointers that the chosen form never reads get x or out as a stand-in.
    keys, values, positions = (
        (append.keys, append.values, append.positions) if append else (out, out, out)
    )
    cache_strides = keys.stride()[:3] if append else (0, 0, 0)
    forms = {"gemv": norm_linear_gemv, "rows": norm_linear_rows, "tiles": norm_linear_tiles}
    with torch.cuda.device_of(x):  # triton launches on the current device
        forms[config.kind].launch(
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
            **more,
        )
    return out


def _statistics(
    x: Tensor,
    n: int,
    normed: bool,
    residual: bool,
    before: Tensor | None,
    after: Tensor | None,
    config: Config,
) -> tuple[Tensor | None, Tensor | None]:
    """What the tiled form reads and writes: checked, and the first made where it is missing."""
    rows, k = x.shape
    if not normed:
        before = None
    elif before is None:
        before = x.new_empty(statistics_shape(rows, k), dtype=torch.float32)
        row_statistics(x, before)
    for name, tensor, columns in (("statistics", before, k), ("out_statistics", after, n)):
        if tensor is not None:
            require(tensor.ndim == 3, f"{name} must be [2, parts, R], got {tuple(tensor.shape)}")
            shape = (*statistics_shape(rows, columns)[:2], tensor.shape[2])
            require_tensor(name, tensor, shape, (torch.float32,), x.device)
            require(tensor.shape[2] >= rows, f"{name} must have {rows} rows, got {tensor.shape[2]}")
    require(after is None or residual, "out_statistics needs residual")
    require(
        after is None or config.block_n % PART == 0,
        f"out_statistics needs blocks of a multiple of {PART}, got {config.block_n}",
    )
    return before, after


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
