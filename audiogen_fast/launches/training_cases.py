"""Launches of training, prefill and the codec at the released width."""

import torch

from audiogen_fast.launches.case import CARD, DIM, N_Q, Call, Case, codes, random, short

CLIPS, FRAMES, TEXT = 8, 504, 24


def codebook_embedding(
    batch: int, steps: int, dtype: torch.dtype, *, positions: bool = True, quick: bool = True
) -> Case:
    """Embedding sum of `steps` positions of `batch` rows at the released width."""
    size = dtype.itemsize

    def prepare(device: torch.device) -> Call:
        from audiogen_fast.kernels.codebook_embedding import codebook_embedding as launch

        tokens = codes(batch, N_Q, steps, device=device)
        tables = random(N_Q, CARD + 1, DIM, device=device, dtype=dtype)
        where = torch.arange(steps, device=device).expand(batch, steps) if positions else None
        return lambda: launch(tokens, tables, where)

    def reference(device: torch.device) -> Call:
        from audiogen_fast.ops import reference as ops

        tokens = codes(batch, N_Q, steps, device=device)
        tables = list(random(N_Q, CARD + 1, DIM, device=device, dtype=dtype))
        where = torch.arange(steps, device=device).expand(batch, steps)
        if not positions:
            return lambda: ops.codebook_embedding(tokens, tables)
        return lambda: ops.codebook_embedding(tokens, tables) + ops.sin_embedding(where, DIM)

    rows = batch * steps
    needed = rows * (N_Q * (8 + DIM * size) + DIM * 4) + positions * (8 * steps + DIM // 2 * 4)
    label = f"{batch}x{steps} {short(dtype)}" + (" +pos" if positions else "")
    return Case("codebook_embedding", label, prepare, needed, reference, quick=quick)


def embedding_backward(deterministic: bool, *, quick: bool = True) -> Case:
    """Gradient of the embedding tables."""

    def prepare(device: torch.device) -> Call:
        from audiogen_fast.kernels.codebook_embedding import codebook_embedding_backward as launch

        grad = random(CLIPS, FRAMES, DIM, device=device, dtype=torch.float32)
        tokens = codes(CLIPS, N_Q, FRAMES, device=device)
        return lambda: launch(grad, tokens, CARD + 1, deterministic)

    rows = CLIPS * FRAMES
    needed = rows * (4 * DIM + 8 * N_Q) + N_Q * (CARD + 1) * DIM * 4
    label = "deterministic" if deterministic else "atomic"
    return Case(
        "codebook_embedding_backward", label, prepare, needed, None, quick=quick, interpreted=False
    )


def add_layer_norm(dtype: torch.dtype, backward: bool, *, quick: bool = True) -> Case:
    """Residual add and layer norm of a batch of clips, or its gradient."""
    shape = (CLIPS, FRAMES, DIM)

    def prepare(device: torch.device) -> Call:
        from audiogen_fast.kernels import add_layer_norm as module

        x = random(*shape, device=device, dtype=dtype)
        residual = random(*shape, device=device, dtype=torch.float32)
        weight = random(DIM, device=device, dtype=torch.float32)
        if not backward:
            return lambda: module.add_layer_norm(x, residual, weight, weight, 1e-5, dtype)
        mean = random(CLIPS * FRAMES, device=device, dtype=torch.float32)
        return lambda: module.add_layer_norm_backward(x, residual, residual, weight, mean, mean)

    def reference(device: torch.device) -> Call:
        from audiogen_fast.ops import reference as ops

        x = random(*shape, device=device, dtype=dtype)
        residual = random(*shape, device=device, dtype=torch.float32)
        weight = random(DIM, device=device, dtype=torch.float32)
        return lambda: ops.add_layer_norm(x, residual, weight, weight, 1e-5, dtype)

    rows, size = CLIPS * FRAMES, dtype.itemsize
    # x, residual -> out, sum; or two gradients and the sum -> one gradient
    needed = rows * DIM * ((size + 12) if backward else (2 * size + 8)) + 8 * rows + 8 * DIM
    name = "add_layer_norm_backward" if backward else "add_layer_norm"
    plain = None if backward else reference
    return Case(name, short(dtype), prepare, needed, plain, quick=quick, interpreted=False)


def gelu(dtype: torch.dtype, backward: bool, *, quick: bool = True) -> Case:
    """The activation between the products of the feed-forward, and its gradient."""
    shape = (CLIPS * FRAMES, 4 * DIM)

    def prepare(device: torch.device) -> Call:
        from audiogen_fast.kernels import mlp

        u = random(*shape, device=device, dtype=dtype)
        if not backward:
            return lambda: mlp.gelu(u)
        grad = random(*shape, device=device, dtype=dtype)
        return lambda: mlp.gelu_backward_(grad, u)

    def reference(device: torch.device) -> Call:
        u = random(*shape, device=device, dtype=dtype)
        return lambda: torch.nn.functional.gelu(u)

    needed = shape[0] * shape[1] * dtype.itemsize * (4 if backward else 2)
    name = "mlp_backward" if backward else "mlp"
    plain = None if backward else reference
    return Case(name, short(dtype), prepare, needed, plain, quick=quick, interpreted=False)


def cross_attention(
    dtype: torch.dtype, backward: bool, *, width: int = 64, quick: bool = True
) -> Case:
    """Attention of whole clips over their text, and its gradient, with heads of that width."""
    heads = DIM // width

    def prepare(device: torch.device) -> Call:
        from audiogen_fast.kernels import cross_attention_train as module

        q, k, v, lengths = operands(device)
        if not backward:
            return lambda: module.cross_attention(q, k, v, lengths, lengths)
        out, stats = module.cross_attention(q, k, v, lengths, lengths)
        grad = random(CLIPS, heads, FRAMES, width, device=device, dtype=dtype)
        return lambda: module.cross_attention_backward(grad, q, k, v, lengths, out, stats)

    def operands(device: torch.device) -> tuple:
        q = random(CLIPS, FRAMES, heads, width, device=device, dtype=dtype).transpose(1, 2)
        k, v = random(2, CLIPS, TEXT, heads, width, device=device, dtype=dtype).transpose(2, 3)
        lengths = torch.full([CLIPS], TEXT, device=device)
        return q, k, v, lengths

    def reference(device: torch.device) -> Call:
        q, k, v, _ = operands(device)
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)

    positions, text = CLIPS * heads * FRAMES, CLIPS * heads * TEXT
    factor = 4 if backward else 2  # q, grad, out -> dq; or q -> out
    needed = width * dtype.itemsize * (factor * positions + factor * text) + 8 * positions
    name = "cross_attention_backward" if backward else "cross_attention"
    plain = None if backward else reference
    label = short(dtype) + ("" if width == 64 else f" d={width}")
    return Case(name, label, prepare, needed, plain, quick=quick, interpreted=False)


def cross_entropy(dtype: torch.dtype, *, quick: bool = True) -> Case:
    """Loss of the heads and its gradients, in chunks of rows."""

    def operands(device: torch.device) -> tuple:
        hidden = random(CLIPS, FRAMES, DIM, device=device, dtype=dtype)
        weights = list(random(N_Q, CARD, DIM, device=device, dtype=dtype))
        return hidden, weights, codes(CLIPS, N_Q, FRAMES, device=device)

    def prepare(device: torch.device) -> Call:
        from audiogen_fast.kernels.codebook_cross_entropy import codebook_cross_entropy as launch

        hidden, weights, targets = operands(device)
        return lambda: launch(hidden, weights, [], targets, None, True)

    rows = CLIPS * FRAMES
    needed = 2 * rows * DIM * dtype.itemsize + N_Q * CARD * DIM * (dtype.itemsize + 4)
    return Case(
        "codebook_cross_entropy",
        short(dtype),
        prepare,
        needed,
        None,
        quick=quick,
        interpreted=False,
    )


def rvq_decode(dtype: torch.dtype, *, quick: bool = True) -> Case:
    """Sum of the codebook vectors of a clip."""
    width = 128

    def operands(device: torch.device) -> tuple:
        books = list(random(N_Q, CARD, width, device=device, dtype=dtype))
        return codes(1, N_Q, FRAMES, device=device), books

    def prepare(device: torch.device) -> Call:
        from audiogen_fast.kernels.rvq_decode import rvq_decode as launch

        tokens, books = operands(device)
        return lambda: launch(tokens, books)

    def reference(device: torch.device) -> Call:
        from audiogen_fast.ops import reference as ops

        tokens, books = operands(device)
        return lambda: ops.rvq_decode(tokens, books)

    def native(device: torch.device) -> Call:
        from audiogen_fast.ops import native as ops

        tokens, books = operands(device)
        return lambda: ops.rvq_decode(tokens, books)

    needed = FRAMES * (N_Q * (8 + width * dtype.itemsize) + width * dtype.itemsize)
    return Case("rvq_decode", short(dtype), prepare, needed, reference, native=native, quick=quick)


def training_cases() -> list[Case]:
    """Every case of this file."""
    bf16, half, full = torch.bfloat16, torch.float16, torch.float32
    return [
        codebook_embedding(2, 1, half),
        codebook_embedding(2, 1, full, positions=False),
        codebook_embedding(16, 1, bf16, quick=False),
        codebook_embedding(8, 504, half, quick=False),
        embedding_backward(False),
        embedding_backward(True),
        *(add_layer_norm(bf16, backward) for backward in (False, True)),
        *(add_layer_norm(full, backward, quick=False) for backward in (False, True)),
        *(gelu(bf16, backward) for backward in (False, True)),
        *(gelu(full, backward, quick=False) for backward in (False, True)),
        *(cross_attention(bf16, backward) for backward in (False, True)),
        *(cross_attention(full, backward, quick=False) for backward in (False, True)),
        *(
            cross_attention(dtype, backward, width=width, quick=False)
            for dtype, width in ((full, 128), (full, 256), (bf16, 256))
            for backward in (False, True)
        ),
        cross_entropy(bf16),
        cross_entropy(full, quick=False),
        rvq_decode(full),
    ]
