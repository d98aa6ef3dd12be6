"""K output heads and their cross entropy, with gradients, without all the logits in memory.

z = hidden @ w_k.T + b_k
loss = log(sum_j exp(z_j)) - z_target,  d(loss)/dz = softmax(z) - onehot(target)

The rows go through in chunks: one product gives the chunk's logits of all codebooks, one launch
replaces them by their gradients, two products add those up. Doing it in the forward pass, as the
loss is a scalar, saves making the logits again (Hsu et al., "Liger Kernel", arXiv 2410.10989).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from audiogen_fast.kernels._launch import OPTIONS

_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_BLOCK = 4096
_CHUNK_BYTES = 1 << 25  # of logits: large enough for a good product, small beside the activations


@triton.jit(do_not_specialize=["first", "S"])
def cross_entropy_kernel(
    logits_ptr,  # [rows, K, CARD], contiguous; becomes the gradient with WRITE_GRADIENT
    targets_ptr,  # [B, K, S], contiguous
    share_ptr,  # [K] float32, factor of each codebook's gradient
    losses_ptr,  # [B, K, S] float32
    first,  # the first of these rows among all B * S
    S,
    K,
    CARD,
    WRITE_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """loss = log(sum exp(z)) - z[target];  dz = (softmax(z) - onehot(target)) * share"""
    k = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64)
    token = first + row
    place = (token // S * K + k) * S + token % S
    target = tl.load(targets_ptr + place)
    z_ptr = logits_ptr + (row * K + k) * CARD
    cols = tl.arange(0, BLOCK)
    used = target >= 0
    # A row that is left out reads nothing, and its gradient is zero.
    width = tl.where(used, CARD, 0)
    highest = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        z = tl.load(z_ptr + start + cols, mask=start + cols < width, other=float("-inf"))
        highest = tl.maximum(highest, z.to(tl.float32))
    peak = tl.where(used, tl.max(highest, axis=0), 0.0)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    hit = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        z = tl.load(z_ptr + start + cols, mask=start + cols < width, other=float("-inf"))
        total += tl.exp(z.to(tl.float32) - peak)
        hit += tl.where(start + cols == target, z.to(tl.float32), 0.0)
    total = tl.where(used, tl.sum(total, axis=0), 1.0)
    loss = tl.log(total) + peak - tl.sum(hit, axis=0)
    # A target outside the card gives NaN, which is seen.
    loss = tl.where(target < CARD, loss, float("nan"))
    tl.store(losses_ptr + place, tl.where(used, loss, 0.0))
    if WRITE_GRADIENT:
        share = tl.load(share_ptr + k)
        for start in range(0, CARD, BLOCK):
            z = tl.load(z_ptr + start + cols, mask=start + cols < width, other=float("-inf"))
            grad = tl.exp(z.to(tl.float32) - peak) / total
            grad = (grad - tl.where(start + cols == target, 1.0, 0.0)) * share
            grad = tl.where(used, grad, 0.0).to(logits_ptr.dtype.element_ty)
            tl.store(z_ptr + start + cols, grad, mask=start + cols < CARD)


def codebook_cross_entropy(
    hidden: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    targets: Tensor,
    divisors: Tensor | None,
    with_gradients: bool,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean over the codebooks of each one's mean cross entropy, and its gradients.

    The gradients are kept free of the factor `1 / (K divisor)`, which float16 cannot hold: multiply
    them by `scale`.

    Args:
        hidden: `[B, S, D]`; the products run in the dtype of the weights.
        weights: K tensors `[card, D]`, float32, float16 or bfloat16.
        biases: K tensors `[card]`, or nothing.
        targets: int64 `[B, K, S]` in [0, card); a negative one is left out.
        divisors: float32 `[K]`, positive, what to divide each codebook's sum by; None for its own
            number of targets.
        with_gradients: whether to make the last three results, which else are empty.
        chunk_rows: rows of hidden at a time; by default such that their logits take 32 MiB.
    Returns:
        loss `[]`, per_codebook `[K]` and scale `[]`, float32; d(hidden) / scale `[B, S, D]` in the
        dtype of hidden; d(weights) / scale `[K, card, D]` and d(biases) / scale `[K, card]`,
        float32.
    Raises:
        ValueError: an argument of the wrong shape or dtype.
    """
    _check_arguments(hidden, weights, biases, targets, divisors)
    B, K, S = targets.shape
    card, dim = weights[0].shape
    device, dtype = hidden.device, weights[0].dtype
    rows = hidden.reshape(-1, dim)
    # One matrix of all heads: its copy is small, and every product then is one large one.
    weight = torch.cat(list(weights))
    bias = torch.cat(list(biases)) if biases else None
    targets = targets.contiguous()
    if divisors is None:
        divisors = (targets >= 0).sum(dim=(0, 2)).clamp(min=1)
    factors = 1 / (K * divisors.to(torch.float32))
    scale = factors.max()
    share = factors / scale
    losses = torch.empty(B, K, S, dtype=torch.float32, device=device)
    wanted = with_gradients
    grad_rows = torch.empty_like(
        rows if wanted else rows[:0], memory_format=torch.contiguous_format
    )
    grad_weight = torch.zeros(K * card if wanted else 0, dim, dtype=torch.float32, device=device)
    grad_bias = torch.zeros(
        K * card if wanted and biases else 0, dtype=torch.float32, device=device
    )
    if chunk_rows is None:
        chunk_rows = max(1, _CHUNK_BYTES // (K * card * weight.element_size()))
    block = min(triton.next_power_of_2(card), _MAX_BLOCK)
    for first in range(0, rows.shape[0], chunk_rows):
        chunk = rows[first : first + chunk_rows].to(dtype)
        logits = (
            torch.mm(chunk, weight.t()) if bias is None else torch.addmm(bias, chunk, weight.t())
        )
        with torch.cuda.device_of(hidden):  # triton launches on the current device
            cross_entropy_kernel[(chunk.shape[0], K)](
                logits,
                targets,
                share,
                losses,
                first,
                S,
                K,
                card,
                WRITE_GRADIENT=wanted,
                BLOCK=block,
                num_warps=4 if block <= 1024 else 8,
                **OPTIONS,
            )
        if wanted:
            grad_rows[first : first + chunk_rows] = torch.mm(logits, weight)
            grad_weight += torch.mm(logits.t(), chunk)
            if biases:
                grad_bias += logits.sum(dim=0, dtype=torch.float32)
    per_codebook = losses.sum(dim=(0, 2)) / divisors
    return (
        per_codebook.mean(),
        per_codebook,
        scale,
        grad_rows.view(hidden.shape) if wanted else grad_rows.view(0, S, dim),
        grad_weight.view(-1, card, dim),
        grad_bias.view(-1, card),
    )


def _check_arguments(
    hidden: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    targets: Tensor,
    divisors: Tensor | None,
) -> None:
    _require(hidden.ndim == 3, f"hidden must be [B, S, D], got the shape {tuple(hidden.shape)}")
    _require(len(weights) >= 1, "weights must have at least one head, got none")
    B, S, D = hidden.shape
    first = weights[0]
    _require(
        first.ndim == 2 and first.shape[1] == D,
        f"weights must be [card, {D}], got the shape {tuple(first.shape)}",
    )
    _require(first.dtype in _FLOAT_DTYPES, f"weights must be a float dtype, got {first.dtype}")
    for k, weight in enumerate(weights):
        _require(
            weight.shape == first.shape and weight.dtype == first.dtype,
            f"weights[{k}] must be {tuple(first.shape)} {first.dtype}, "
            f"got {tuple(weight.shape)} {weight.dtype}",
        )
    _require(
        len(biases) in (0, len(weights)),
        f"biases must be none or {len(weights)}, got {len(biases)}",
    )
    for k, bias in enumerate(biases):
        _require(
            bias.shape == first.shape[:1] and bias.dtype == first.dtype,
            f"biases[{k}] must be [{first.shape[0]}] {first.dtype}, "
            f"got {tuple(bias.shape)} {bias.dtype}",
        )
    shape = (B, len(weights), S)
    _require(targets.shape == shape, f"targets must be {shape}, got {tuple(targets.shape)}")
    _require(targets.dtype == torch.int64, f"targets must be int64, got {targets.dtype}")
    if divisors is not None:
        K = len(weights)
        _require(divisors.shape == (K,), f"divisors must be [{K}], got {tuple(divisors.shape)}")
    _require(
        targets.device == hidden.device == first.device,
        f"hidden, weights and targets must be on one device, got {hidden.device}, "
        f"{first.device} and {targets.device}",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
