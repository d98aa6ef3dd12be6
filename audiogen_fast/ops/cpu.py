"""Forward and backward passes of the training ops on a CPU, in few passes over memory.

Each pair computes what the function of the same name in `audiogen_fast.ops.reference` defines, and
has the signature of the Triton launchers in `audiogen_fast.kernels`. `audiogen_fast.ops.autograd`
joins them; nothing here is differentiable by itself. All are deterministic.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from audiogen_fast.ops import native_training

# Below these many multiply-adds a product is not worth preparing the matrices for.
_LARGE_PRODUCT = 1 << 20
# Logits of one chunk: small enough to stay in a processor's cache between the passes.
_CHUNK_ROWS = 512


def codebook_embedding(codes: Tensor, tables: Sequence[Tensor], deterministic: bool) -> Tensor:
    """float32 (float64 for float64 tables) `[B, S, D]`; deterministic either way."""
    total = _widen(F.embedding(codes[:, 0], tables[0]))
    for k in range(1, len(tables)):
        total += F.embedding(codes[:, k], tables[k])
    return total


def codebook_embedding_backward(
    grad: Tensor, codes: Tensor, rows: int, deterministic: bool
) -> Tensor:
    """`[K, rows, D]` of the dtype of `grad`; deterministic either way."""
    K, D = codes.shape[1], grad.shape[-1]
    out = grad.new_zeros(K, rows, D)
    grad = grad.reshape(-1, D)
    for k in range(K):
        out[k].index_add_(0, codes[:, k].reshape(-1), grad)
    return out


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised sum, sum, and its rows' mean and reciprocal standard deviation `[M]`."""
    total = (_widen(x) + residual).to(residual.dtype)
    wide = _widen(total)
    affine = [None if t is None else t.to(wide.dtype) for t in (weight, bias)]
    out, mean, rstd = torch.native_layer_norm(wide, x.shape[-1:], *affine, eps)
    return out.to(out_dtype), total, mean.flatten(), rstd.flatten()


def add_layer_norm_backward(
    grad_out: Tensor, grad_sum: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of x and residual alike, in the dtype of `total`; those of weight and bias."""
    wide = _widen(total)
    shape = (*total.shape[:-1], 1)
    affine = weight.to(wide.dtype)
    grad, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
        grad_out.to(wide.dtype),
        wide,
        total.shape[-1:],
        mean.view(shape),
        rstd.view(shape),
        affine,
        affine,  # only asks for a gradient of the bias
        [True, True, True],
    )
    return grad.add_(grad_sum).to(total.dtype), grad_weight, grad_bias


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`[..., N]`."""
    out = _mm(x.reshape(-1, x.shape[-1]), weight.t())
    return out.view(*x.shape[:-1], weight.shape[0])


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight; empty where not wanted."""
    rows = grad.reshape(-1, weight.shape[0])
    grad_x, grad_weight = (t.new_empty(0) for t in (x, weight))
    if wants_x:
        grad_x = _mm(rows, weight).view(x.shape)
    if wants_weight:
        grad_weight = _mm(rows.t(), x.reshape(-1, x.shape[-1]))
    return grad_x, grad_weight


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The result `[B, H, T, d]`, and the logarithm of the denominator `[B, H, T]`."""
    if _attends(q):
        out, log_sum = native_training.attention(*(t.float() for t in (q, k, v)))
        return out.to(q.dtype), log_sum
    if q.numel() == 0:
        return _heads_last(q.clone()), _statistics(q)[0]
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, is_causal=True
    )
    return _heads_last(out), log_sum.view(q.shape[:3]).contiguous()


def causal_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, laid out as the result of `causal_attention`."""
    if _attends(q):
        wide = (t.float() for t in (grad, q, k, v))
        grads = native_training.attention_backward(*wide, log_sum)
        return tuple(t.to(q.dtype) for t in grads)
    if q.numel() == 0:
        return tuple(_heads_last(t.clone()) for t in (q, k, v))
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad.to(q.dtype), q, k, v, out, log_sum, 0.0, True
    )
    return tuple(_heads_last(t) for t in grads)


def mlp(x: Tensor, weight1: Tensor, weight2: Tensor) -> tuple[Tensor, Tensor]:
    """The result `[..., D]`, and the pre-activation `[M, F]`."""
    hidden = _mm(x.reshape(-1, x.shape[-1]), weight1.t())
    out = _mm(F.gelu(hidden), weight2.t())
    return out.view(*x.shape[:-1], weight2.shape[0]), hidden


def mlp_backward(
    grad: Tensor, x: Tensor, hidden: Tensor, weight1: Tensor, weight2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight1 and weight2."""
    rows = x.reshape(-1, x.shape[-1])
    grad = grad.reshape(-1, weight2.shape[0])
    grad_weight2 = _mm(grad.t(), F.gelu(hidden))
    grad_hidden = _mm(grad, weight2)
    torch.ops.aten.gelu_backward.grad_input(grad_hidden, hidden, grad_input=grad_hidden)
    grad_weight1 = _mm(grad_hidden.t(), rows)
    return _mm(grad_hidden, weight1).view(x.shape), grad_weight1, grad_weight2


def cross_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, n_pad: Tensor
) -> tuple[Tensor, Tensor]:
    """The result `[B, H, T, d]`, and the logarithm of the denominator `[1, B, H, T]`."""
    if _attends(q):
        wide = (t.float() for t in (q, k, v))
        out, log_sum = native_training.attention(*wide, lengths, n_pad)
        return out.to(q.dtype), log_sum.unsqueeze(0)
    if q.numel() == 0:
        return torch.empty_like(q), _statistics(q)
    k, v, bias = _zero_slot_first(k, v, lengths, n_pad, q.dtype)
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, attn_mask=bias
    )
    # This layout is what joining the heads needs.
    return _heads_last(out), log_sum.view(1, *q.shape[:3]).contiguous()


def cross_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    n_pad: Tensor,
    out: Tensor,
    stats: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, laid out as the results of `cross_attention`."""
    if _attends(q):
        wide = (t.float() for t in (grad, q, k, v))
        grads = native_training.attention_backward(*wide, stats[0], lengths, n_pad)
        return tuple(t.to(q.dtype) for t in grads)
    if q.numel() == 0:
        return tuple(_heads_last(torch.zeros_like(t)) for t in (q, k, v))
    k, v, bias = _zero_slot_first(k, v, lengths, n_pad, q.dtype)
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad.to(q.dtype), q, k, v, out, stats[0], 0.0, False, attn_mask=bias
    )
    dq, dk, dv = (_heads_last(t) for t in grads)
    real = _real(lengths, k.shape[2] - 1)
    return dq, *(_heads_last(t[:, :, 1:].masked_fill(~real, 0.0)) for t in (dk, dv))


def codebook_cross_entropy(
    hidden: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    targets: Tensor,
    divisors: Tensor | None,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """loss, per_codebook, scale, and the gradients over scale of hidden, weights and biases.

    Rows without a target are skipped. The gradients are free of the factor `1 / (K divisor)`, which
    float16 cannot hold; without `with_gradients` they are empty.
    """
    B, K, S = targets.shape
    card, dim = weights[0].shape
    dtype = weights[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    rows = hidden.reshape(-1, dim)
    losses = torch.zeros(K, dtype=wide)
    grad_rows = torch.zeros(rows.shape if with_gradients else (0, dim), dtype=wide)
    grad_weight = torch.zeros(K if with_gradients else 0, card, dim, dtype=wide)
    grad_bias = torch.zeros(K if with_gradients and biases else 0, card, dtype=wide)
    places = [(targets[:, k].reshape(-1) >= 0).nonzero().flatten() for k in range(K)]
    counts = [len(place) for place in places]
    if divisors is None:
        divisors = torch.tensor([max(1, n) for n in counts])
    factors = 1 / (K * divisors.to(wide))
    scale = factors.max()
    shares = (factors / scale).tolist()
    for k in range(K):
        target = targets[:, k].reshape(-1)[places[k]].unsqueeze(1)
        for first in range(0, counts[k], _CHUNK_ROWS):
            place = places[k][first : first + _CHUNK_ROWS]
            chunk, wanted = rows[place].to(dtype), target[first : first + _CHUNK_ROWS]
            logits = _mm(chunk, weights[k].t())
            logits = (logits.add_(biases[k]) if biases else logits).to(wide)
            log_probs = torch.log_softmax(logits, dim=-1)
            losses[k] -= log_probs.gather(1, wanted).sum()
            if not with_gradients:
                continue
            grad = log_probs.exp_()
            grad.scatter_add_(1, wanted, grad.new_full(wanted.shape, -1.0))
            if biases:
                grad_bias[k].add_(grad.sum(dim=0), alpha=shares[k])
            grad = grad.to(dtype)
            _add_mm(grad_weight[k], grad.t(), chunk, shares[k])
            grad_rows.index_add_(0, place, _mm(grad, weights[k]).to(wide), alpha=shares[k])
    per_codebook = losses / divisors.to(wide)
    grad_hidden = grad_rows.to(hidden.dtype).view(B if with_gradients else 0, S, dim)
    return per_codebook.mean(), per_codebook, scale, grad_hidden, grad_weight, grad_bias


def _attends(q: Tensor) -> bool:
    """Whether the native attention computes this: in float32, for half precision too."""
    return q.dtype != torch.float64 and native_training.available()


def _multiplies(a: Tensor, b: Tensor) -> bool:
    """Whether the native product is faster: measured on an AMD EPYC, where MKL is slower."""
    return (
        a.dtype == b.dtype == torch.float32
        and a.shape[0] * a.shape[1] * b.shape[1] >= _LARGE_PRODUCT
        and native_training.available()
        and native_training.is_amd()
    )


def _mm(a: Tensor, b: Tensor) -> Tensor:
    return native_training.product(a, b) if _multiplies(a, b) else torch.mm(a, b)


def _add_mm(out: Tensor, a: Tensor, b: Tensor, alpha: float) -> None:
    """Adds alpha a b to `out`, which may be wider."""
    if _multiplies(a, b):
        native_training.product(a, b, out, alpha, add=True)
    elif a.dtype == out.dtype:
        out.addmm_(a, b, alpha=alpha)
    else:
        out.add_(torch.mm(a, b), alpha=alpha)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _heads_last(x: Tensor) -> Tensor:
    """The same `[B, H, T, d]`, laid out as `[B, T, H, d]`."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _statistics(q: Tensor) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    return torch.zeros(1, *q.shape[:3], dtype=dtype)


def _real(lengths: Tensor, slots: int) -> Tensor:
    return (torch.arange(slots) < lengths.view(-1, 1)).view(-1, 1, slots, 1)


def _zero_slot_first(
    k: Tensor, v: Tensor, lengths: Tensor, n_pad: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values behind one zero slot that stands for all n_pad, and the scores' bias.

    The slot comes first, so that every block of scores that a running softmax starts with has a
    finite one.
    """
    real = _real(lengths, k.shape[2])
    k, v = (F.pad(t.masked_fill(~real, 0.0), (0, 0, 1, 0)) for t in (k, v))
    # A row with nothing at all attends to the zero slot alone, and is zero.
    wide = torch.promote_types(dtype, torch.float32)
    pads = torch.where(lengths + n_pad == 0, 1, n_pad).to(wide).log()
    bias = torch.zeros(real.shape[0], 1, 1, k.shape[2], dtype=wide)
    bias[..., 0] = pads.view(-1, 1, 1)
    bias[..., 1:].masked_fill_(~real.transpose(-1, -2), float("-inf"))
    return k, v, bias
