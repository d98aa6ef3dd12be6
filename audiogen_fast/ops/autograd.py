"""The ops of training: one differentiable function each, the implementation chosen per device.

On CUDA the Triton kernels where they can be launched, on a CPU `audiogen_fast.ops.cpu`; elsewhere,
or with `AUDIOGEN_FAST_BACKEND=reference`, the definition in `audiogen_fast.ops.reference`. The fast
forms are registered with torch (`audiogen_fast.ops.library`), so that
`torch.compile(fullgraph=True)`, activation checkpointing and FSDP take them as they take torch's
own. Gradients of gradients exist only in the reference.

Autocast: matrix products run in its dtype; norms, softmax, cross entropy and sums in float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from audiogen_fast.errors import check
from audiogen_fast.ops import library, reference
from audiogen_fast.ops.dispatch import fast_paths_enabled, kernels_run_on


def uses_fast_path(tensor: Tensor) -> bool:
    """Whether these functions take the fast form for tensors like this one."""
    if tensor.device.type == "cuda":
        return tensor.dtype != torch.float64 and kernels_run_on(tensor.device)
    return tensor.device.type == "cpu" and fast_paths_enabled()


def codebook_embedding(
    codes: Tensor, tables: Sequence[Tensor], deterministic: bool | None = None
) -> Tensor:
    """Sum of one embedding row per codebook; see `reference.codebook_embedding`.

    Args:
        codes: int64 `[B, K, S]`, each in [0, card]. On CUDA one outside the tables gives NaN.
        tables: K tensors `[card + 1, D]`.
        deterministic: whether the gradient must be the same bits at every run, which takes a sort
            on CUDA; None for what `torch.use_deterministic_algorithms` says.
    Returns:
        `[B, S, D]`, float32 (float64 for float64 tables).
    Raises:
        InvalidInputError: shapes or dtypes that do not fit.
    """
    _check(codes.ndim == 3, "codes", "[B, K, S]", codes)
    _check(codes.dtype == torch.int64, "codes", "int64", codes)
    for k, table in enumerate(tables):
        _check(
            table.ndim == 2 and table.shape == tables[0].shape, f"tables[{k}]", "[rows, D]", table
        )
    _check(codes.shape[1] == len(tables) >= 1, "codes", f"[B, {len(tables)}, S]", codes)
    if not uses_fast_path(tables[0]):
        return reference.codebook_embedding(codes, tables)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    return library.codebook_embedding(codes, list(tables), deterministic)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-5,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Residual add, then layer norm; see `reference.add_layer_norm`.

    Args:
        x, residual: `[..., N]`.
        weight, bias: `[N]`; the bias may be None.
        out_dtype: dtype of the normalised result; None for float32 (float64 for float64).
    Returns:
        The normalised sum, and the sum in the dtype of `residual`.
    Raises:
        InvalidInputError: shapes that do not fit.
    """
    _check(x.shape == residual.shape, "x", "of the shape of residual", x)
    _check(weight.shape == x.shape[-1:], "weight", "of the shape of x's last dimension", weight)
    _check(bias is None or bias.shape == weight.shape, "bias", "of the shape of weight", bias)
    if not uses_fast_path(residual):
        return reference.add_layer_norm(x, residual, weight, bias, eps, out_dtype)
    if out_dtype is None:
        out_dtype = torch.promote_types(residual.dtype, torch.float32)
    return library.add_layer_norm(x, residual, weight, bias, eps, out_dtype)[:2]


def multiplies(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` is faster than torch's: float32 on a CPU, without autocast."""
    plain = x.dtype == weight.dtype == torch.float32 and weight.ndim == 2
    return (
        plain
        and weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and fast_paths_enabled()
    )


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T`; see `reference.linear`.

    Args:
        x: `[..., D]`; weight: `[N, D]` of the same dtype.
    Returns:
        `[..., N]`.
    Raises:
        InvalidInputError: shapes that do not fit.
    """
    _check(weight.ndim == 2 and weight.shape[1] == x.shape[-1], "weight", "[N, D]", weight)
    if not multiplies(x, weight):
        return reference.linear(x, weight)
    return library.linear(x, weight)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each step to itself and the past; see `reference.causal_attention`.

    Args:
        q, k, v: `[B, H, T, d]`.
    Returns:
        `[B, H, T, d]` in the dtype of `q`.
    Raises:
        InvalidInputError: shapes that do not fit.
    """
    _check(q.ndim == 4, "q", "[B, H, T, d]", q)
    for name, tensor in (("k", k), ("v", v)):
        _check(tensor.shape == q.shape, name, "of the shape of q", tensor)
    q, k, v = _autocast(q), _autocast(k), _autocast(v)
    if q.device.type != "cpu" or q.dtype == torch.float64 or not fast_paths_enabled():
        return reference.causal_attention(q, k, v)
    return library.causal_attention(q, k, v)[0]


def mlp(x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    """Feed-forward block without biases; see `reference.mlp`.

    Only x and the pre-activation are kept for the backward pass, which makes the GELU again.

    Args:
        x: `[..., D]`.
        weight1, weight2: `[F, D]` and `[D, F]`; the products run in their dtype.
    Returns:
        `[..., D]` in the dtype of the weights.
    Raises:
        InvalidInputError: shapes that do not fit.
    """
    _check(weight1.ndim == 2 and weight1.shape[1] == x.shape[-1], "weight1", "[F, D]", weight1)
    _check(weight2.ndim == 2 and weight2.shape[1] == weight1.shape[0], "weight2", "[D, F]", weight2)
    weight1, weight2 = _autocast(weight1), _autocast(weight2)
    x = x.to(weight1.dtype)
    if not uses_fast_path(weight1):
        return reference.mlp(x, weight1, weight2)
    return library.mlp(x, weight1, weight2)[0]


def cross_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, n_pad: Tensor) -> Tensor:
    """Attention over short, unpadded text; see `reference.cross_attention`.

    Args:
        q: `[B, H, T, d]`.
        k, v: `[B, H, L, d]`; slots at or past the row's length are never used.
        lengths: int64 `[B]`, the number of real text tokens of each row, at most L.
        n_pad: int64 `[B]`, zero slots that dilute the softmax.
    Returns:
        `[B, H, T, d]` in the dtype of `q`.
    Raises:
        InvalidInputError: shapes that do not fit.
    """
    B, H, T, d = q.shape
    for name, tensor in (("k", k), ("v", v)):
        shape = (B, H, k.shape[2], d)
        _check(tensor.shape == shape, name, "[B, H, L, d]", tensor)
    for name, tensor in (("lengths", lengths), ("n_pad", n_pad)):
        _check(tensor.shape == (B,) and tensor.dtype == torch.int64, name, "int64 [B]", tensor)
    q, k, v = _autocast(q), _autocast(k), _autocast(v)
    if not uses_fast_path(q):
        return reference.cross_attention(q, k, v, lengths, n_pad)
    return library.cross_attention(q, k, v, lengths, n_pad)[0]


def codebook_cross_entropy(
    hidden: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    targets: Tensor,
    divisors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output heads and cross entropy; see `reference.codebook_cross_entropy`.

    The logits of all positions are never in memory together, and the gradients are made in the
    forward pass.

    Args:
        hidden: `[B, S, D]`.
        weights: K tensors `[card, D]`; the products run in their dtype.
        biases: K tensors `[card]`, or nothing.
        targets: int64 `[B, K, S]` in [0, card); a negative one is left out. On CUDA one past the
            card gives NaN.
        divisors: float `[K]`, each positive, what to divide each codebook's sum by; None for its
            own number of targets. Parts of a batch, on one process or several, pass those of the
            whole batch, so that their losses and gradients add up to its own.
    Returns:
        The loss, a scalar, and the cross entropy of each codebook `[K]`, without a gradient.
    Raises:
        InvalidInputError: shapes or dtypes that do not fit.
    """
    _check(hidden.ndim == 3, "hidden", "[B, S, D]", hidden)
    for k, weight in enumerate(weights):
        shape = (weights[0].shape[0], hidden.shape[-1])
        _check(weight.shape == shape, f"weights[{k}]", "[card, D]", weight)
    for k, bias in enumerate(biases):
        _check(bias.shape == weights[0].shape[:1], f"biases[{k}]", "[card]", bias)
    shape = (hidden.shape[0], len(weights), hidden.shape[1])
    _check(targets.shape == shape, "targets", "[B, K, S]", targets)
    _check(targets.dtype == torch.int64, "targets", "int64", targets)
    fits = divisors is None or divisors.shape == (len(weights),)
    _check(fits, "divisors", f"[{len(weights)}]", divisors)
    weights, biases = [_autocast(w) for w in weights], [_autocast(b) for b in biases]
    if not uses_fast_path(weights[0]):
        loss, per_codebook = reference.codebook_cross_entropy(
            hidden, weights, biases, targets, divisors
        )
        return loss, per_codebook.detach()
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (hidden, *weights, *biases))
    return library.codebook_cross_entropy(hidden, weights, biases, targets, divisors, wanted)[:2]


def _check(condition: bool, name: str, expected: str, tensor: Tensor | None) -> None:
    # A compiled program has been checked when it was traced eagerly; its shapes may be symbols.
    if not torch.compiler.is_compiling() and not condition:
        shape = None if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
        check(False, f"{name} must be {expected}, got {shape}")


def _autocast(tensor: Tensor) -> Tensor:
    """The tensor in the dtype of autocast, where that is on; float64 stays, as in torch."""
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))
