"""Launches of a decode step at the released size, for each format of the weights."""

import torch
from torch import Tensor

from audiogen_fast.launches.case import CARD, DIM, N_Q, Call, Case, codes, random

HEADS, HEAD_DIM, POSITIONS = 24, 64, 512
GROUP = 128
# role -> (N, K, layer norm in front, what is done with the product)
ROLES = {
    "qkv": (3 * DIM, DIM, True, "append"),
    "out": (DIM, DIM, False, "residual"),
    "cross_q": (DIM, DIM, True, "store"),
    "ff1": (4 * DIM, DIM, True, "gelu"),
    "ff2": (DIM, 4 * DIM, False, "residual"),
    "heads": (N_Q * CARD, DIM, True, "guidance"),
}


def weight(n: int, k: int, kind: str, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """A random matrix in a format, as a kernel takes it, and its scale."""
    if kind == "int8":
        scale = random(n, device=device, dtype=torch.float32)
        return codes(n, k, device=device, card=255).to(torch.int8), scale
    if kind == "int4":
        scale = random(n, k // GROUP, device=device, dtype=torch.bfloat16)
        return codes(n, k // 2, device=device, card=256).to(torch.uint8), scale
    return random(n, k, device=device, dtype=getattr(torch, kind)), None


def weight_bytes(n: int, k: int, kind: str) -> int:
    """Bytes of such a matrix with its scale."""
    data, scale = weight(n, k, kind, torch.device("meta"))
    return data.nbytes + (0 if scale is None else scale.nbytes)


def norm_linear(role: str, rows: int, kind: str, *, quick: bool = True) -> Case:
    """One product of a layer, or the heads with guidance, of `rows` rows of the model."""
    n, k, normed, epilogue = ROLES[role]
    mixed = epilogue == "guidance"
    dtype = torch.bfloat16 if kind in ("int8", "int4") else getattr(torch, kind)
    out_dtype = torch.float32 if epilogue in ("residual", "guidance") else dtype
    out_rows = rows // 2 if mixed else rows
    width = DIM if epilogue == "append" else n

    def operands(device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, dict]:
        x = random(rows, k, device=device, dtype=torch.float32 if normed else dtype)
        data, scale = weight(n, k, kind, device)
        options: dict = {}
        if normed:
            options["norm"] = tuple(random(2, k, device=device, dtype=torch.float32))
        if mixed:
            options["guidance"] = torch.full([out_rows], 3.0, device=device)
        return x, data, scale, options

    def prepare(device: torch.device) -> Call:
        from audiogen_fast.kernels import norm_linear as module
        from audiogen_fast.kernels.norm_linear_config import default_config, workspace_sizes
        from audiogen_fast.kernels.row_statistics import statistics_shape

        x, data, scale, options = operands(device)
        if epilogue == "append":
            cache = torch.zeros(2, rows, HEADS, POSITIONS, HEAD_DIM, dtype=dtype, device=device)
            positions = torch.full([rows], POSITIONS // 2, dtype=torch.int32, device=device)
            options["append"] = module.KVAppend(cache[0], cache[1], positions)
        if epilogue in ("residual", "gelu"):
            options[epilogue] = True
        out = torch.zeros(out_rows, width, dtype=out_dtype, device=device)
        active = torch.ones(max(out_rows // 2, 1), dtype=torch.bool, device=device)
        if mixed:
            active = torch.ones(out_rows, dtype=torch.bool, device=device)
        bits, group = {"int8": (8, k), "int4": (4, GROUP)}.get(kind, (dtype.itemsize * 8, 0))
        inputs = x.element_size() * (2 if mixed else 1)
        config = default_config(out_rows, n, k, bits, group, device, inputs)
        if config.kind == "tiles" and normed:  # as the product before leaves them
            options["statistics"] = torch.ones(statistics_shape(rows, k), device=device)
        if config.kind == "tiles" and epilogue == "residual":
            options["out_statistics"] = torch.zeros(statistics_shape(rows, n), device=device)
        partial, counters = workspace_sizes(config, out_rows, n)
        workspace = module.Workspace(
            torch.zeros(max(partial, 1), device=device),
            torch.zeros(max(counters, 1), dtype=torch.int32, device=device),
        )
        return lambda: module.norm_linear(
            x,
            data,
            out,
            scale=scale,
            active=active,
            compute_dtype=dtype,
            workspace=workspace,
            config=config,
            **options,
        )

    def reference(device: torch.device) -> Call:
        from audiogen_fast.ops import reference as ops
        from audiogen_fast.ops.weight_formats import QuantizedWeight, dequantize

        x, data, scale, options = operands(device)
        if scale is not None:
            group = k if kind == "int8" else GROUP
            data = dequantize(QuantizedWeight(kind, data, scale, n, k, group)).to(dtype)
        return lambda: ops.norm_linear(x, data, gelu=epilogue == "gelu", **options)

    needed = weight_bytes(n, k, kind) + rows * k * (4 if normed else dtype.itemsize)
    needed += normed * 8 * k + out_rows * width * out_dtype.itemsize
    if epilogue == "residual":  # read as well as written
        needed += out_rows * width * 4
    if epilogue == "append":
        needed += 2 * rows * DIM * dtype.itemsize
    label = f"{role} {kind}, {rows} rows"
    # Others move the same for the bytes of their weights; counting takes a minute each.
    counted = quick or (kind, rows) in (("bfloat16", 2), ("bfloat16", 16), ("int4", 2))
    return Case("norm_linear", label, prepare, needed, reference, quick=quick, interpreted=counted)


def attention_decode(rows: int, kind: str, position: int, *, quick: bool = True) -> Case:
    """One layer's attention of a step over `position + 1` cached positions, sized for all."""
    dtype = getattr(torch, kind)

    def operands(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q = random(rows, DIM, device=device, dtype=dtype)
        keys, values = random(2, rows, HEADS, POSITIONS, HEAD_DIM, device=device, dtype=dtype)
        return q, keys, values, torch.full([rows], position, dtype=torch.int32, device=device)

    def prepare(device: torch.device) -> Call:
        from audiogen_fast.kernels import attention_decode as module

        q, keys, values, positions = operands(device)
        out = torch.zeros_like(q)
        active = torch.ones(max(rows // 2, 1), dtype=torch.bool, device=device)
        workspace = module.Workspace.make(rows, HEADS, POSITIONS, HEAD_DIM, device)
        return lambda: module.attention_decode(
            q, keys, values, positions, out, active=active, workspace=workspace
        )

    def reference(device: torch.device) -> Call:
        from audiogen_fast.ops import reference as ops

        q, keys, values, positions = operands(device)
        q = q.unflatten(1, (HEADS, HEAD_DIM))
        return lambda: ops.attention_decode(q, keys, values, positions)

    needed = 2 * rows * (position + 1) * DIM * dtype.itemsize + 2 * rows * DIM * dtype.itemsize
    label = f"{kind}, {rows} rows at {position}"
    return Case("attention_decode", label, prepare, needed, reference, quick=quick)


def cross_attention_decode(rows: int, kind: str, text: int, *, quick: bool = True) -> Case:
    """One layer's attention of a step to the text of the rows that have any."""
    dtype = getattr(torch, kind)

    def operands(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q = random(rows, DIM, device=device, dtype=dtype)
        keys, values = random(2, rows, HEADS, text, HEAD_DIM, device=device, dtype=dtype)
        return q, keys, values, torch.full([rows], text, dtype=torch.int32, device=device)

    def prepare(device: torch.device) -> Call:
        from audiogen_fast.kernels.cross_attention_decode import cross_attention_decode as launch

        q, keys, values, lengths = operands(device)
        out, pads = torch.zeros_like(q), torch.zeros_like(lengths)
        active = torch.ones(rows, dtype=torch.bool, device=device)
        return lambda: launch(q, keys, values, lengths, pads, out, active=active)

    def reference(device: torch.device) -> Call:
        q, keys, values, _ = operands(device)
        q = q.view(rows, HEADS, 1, HEAD_DIM)
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, keys, values)

    needed = 2 * rows * (text + 1) * DIM * dtype.itemsize
    label = f"{kind}, {rows} rows of {text}"
    return Case("cross_attention_decode", label, prepare, needed, reference, quick=quick)


def decode_cases() -> list[Case]:
    """Every case of this file: the formats, few rows and many, all roles."""
    quick = {
        ("qkv", 2, "bfloat16"),
        ("ff2", 16, "int4"),
        ("qkv", 8, "float16"),
        ("ff1", 128, "bfloat16"),
        ("out", 128, "bfloat16"),
    }
    attention = [
        attention_decode(2, "bfloat16", 251),
        attention_decode(16, "float16", 251, quick=False),
        attention_decode(2, "float32", 511, quick=False),
        attention_decode(128, "bfloat16", 251, quick=False),
        cross_attention_decode(1, "bfloat16", 16),
        cross_attention_decode(8, "float16", 64, quick=False),
        cross_attention_decode(64, "bfloat16", 16, quick=False),
    ]
    return attention + [
        norm_linear(role, rows, kind, quick=(role, rows, kind) in quick)
        for kind in ("bfloat16", "float16", "int8", "int4")
        for rows in (2, 8, 16, 128)
        for role in ROLES
        # float16 compiles to what bfloat16 does; the form for 5 to 8 rows is seen once for all.
        if (kind != "float16" or role == "qkv") and (rows != 8 or kind in ("bfloat16", "float16"))
    ]
