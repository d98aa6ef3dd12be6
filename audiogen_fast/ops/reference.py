"""Pure-torch definition of every op: the specification each fast path is tested against.

All functions work on any device, never synchronise with the host, and accumulate in float32
(float64 inputs stay float64).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from audiogen_fast.errors import check

# Philox 4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
_PHILOX_M = (0xD2511F53, 0xCD9E8D57)
_PHILOX_W = (0x9E3779B9, 0xBB67AE85)
_MASK32 = 0xFFFFFFFF


def sin_embedding(
    positions: Tensor, dim: int, max_period: float = 10000.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Sinusoidal position embedding `[cos(p / w_i) ..., sin(p / w_i) ...]`.

    `w_i = max_period ** (i / (dim / 2 - 1))`: the cosine block comes first and the divisor is
    `dim / 2 - 1`, as AudioGen was trained.

    Args:
        positions: int64 `[...]`.
        dim: width of the embedding, even and at least 4.
    Returns:
        `[..., dim]` of `dtype`.
    Raises:
        InvalidInputError: another width.
    """
    check(dim % 2 == 0 and dim >= 4, f"dim must be even and at least 4, got {dim}")
    half = dim // 2
    index = torch.arange(half, device=positions.device, dtype=dtype)
    period = torch.full([], max_period, device=positions.device, dtype=dtype)
    phase = positions.to(dtype).unsqueeze(-1) / period ** (index / (half - 1))
    return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1)


def codebook_embedding(codes: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Sum of one embedding row per codebook: `out[b, s] = sum_k tables[k][codes[b, k, s]]`.

    Args:
        codes: int64 `[B, K, S]`.
        tables: K tensors `[card + 1, D]`.
    Returns:
        `[B, S, D]`, float32 (float64 for float64 tables), summed in the order of the codebooks.
    """
    total = _widen(torch.nn.functional.embedding(codes[:, 0], tables[0]))
    for k in range(1, len(tables)):
        total = total + _widen(torch.nn.functional.embedding(codes[:, k], tables[k]))
    return total


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm over the last dimension, computed and returned in at least float32."""
    x = _widen(x)
    bias = None if bias is None else bias.to(x.dtype)
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias, eps)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Residual add, then layer norm over the last dimension: the pre-norm block's join.

    Args:
        x: `[..., N]`, the branch.
        residual: `[..., N]`, the residual stream.
        weight, bias: `[N]`; the bias may be None.
        out_dtype: dtype of the normalised result, computed in at least float32 and rounded once;
            None for float32 (float64 for float64 input).
    Returns:
        The normalised sum, and the sum in the dtype of `residual`, both `[..., N]`.
    """
    total = (_widen(x) + _widen(residual)).to(residual.dtype)
    normed = layer_norm(total, weight, bias, eps)
    return (normed if out_dtype is None else normed.to(out_dtype)), total


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` for `[..., D]` and `[N, D]`."""
    return torch.nn.functional.linear(x, weight)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax(q k^T / sqrt(d)) v` over the steps up to the query's own, all `[B, H, T, d]`."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def mlp(x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    """Feed-forward block without biases: `gelu(x @ weight1.T) @ weight2.T`, GELU exact by erf.

    Args:
        x: `[..., D]`.
        weight1, weight2: `[F, D]` and `[D, F]`; the products run in their dtype.
    Returns:
        `[..., D]` in the dtype of the weights.
    """
    hidden = torch.nn.functional.linear(x.to(weight1.dtype), weight1)
    return torch.nn.functional.linear(torch.nn.functional.gelu(hidden), weight2)


def norm_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-5,
    guidance: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """A linear map with a layer norm and a mix of rows before it, and a GELU after it.

    `y = W a + bias` with `a = x`, or `LN(x)`, or, for the first half c and the second half u of
    the rows, `LN(u) + guidance (LN(c) - LN(u))`. Mixing before a linear map is mixing after it:
    that is how guidance needs the output heads for half of the rows only.

    Args:
        x: `[R, K]`, or `[2 R, K]` with `guidance`.
        weight, bias: `[N, K]` and `[N]`.
        norm: weight and bias `[K]` of a layer norm.
        guidance: `[R]`; needs `norm`.
        gelu: the exact one, `y (1 + erf(y / sqrt 2)) / 2`.
    Returns:
        `[R, N]`, at least float32.
    """
    a = _widen(x) if norm is None else layer_norm(x, norm[0], norm[1], eps)
    if guidance is not None:
        conditional, unconditional = a.chunk(2)
        a = unconditional + guidance.to(a.dtype).unsqueeze(1) * (conditional - unconditional)
    y = torch.nn.functional.linear(
        a, weight.to(a.dtype), None if bias is None else bias.to(a.dtype)
    )
    return torch.nn.functional.gelu(y) if gelu else y


def attention_decode(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    """Self-attention of one new step over a static cache.

    `out = softmax(q . k_i / sqrt(d)) v_i` over the cached positions `i <= positions`, the row's
    own new one included; what lies past it is never used.

    Args:
        q: `[R, H, d]`.
        k, v: `[R, H, C, d]`.
        positions: int `[R]`, each in [0, C).
    Returns:
        `[R, H, d]` in the dtype of `q`.
    """
    filled = torch.arange(k.shape[2], device=k.device) <= positions.view(-1, 1, 1)
    scores = (_widen(k) @ _widen(q).unsqueeze(-1)).squeeze(-1) / q.shape[-1] ** 0.5
    weights = torch.softmax(scores.masked_fill(~filled, float("-inf")), dim=-1)
    values = _widen(v).masked_fill(~filled.unsqueeze(-1), 0.0)
    return (weights.unsqueeze(-2) @ values).squeeze(-2).to(q.dtype)


def cross_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, n_pad: Tensor) -> Tensor:
    """Attention over short text, where `n_pad` zero slots dilute the softmax.

    `out = sum_i exp(s_i) v_i / (sum_i exp(s_i) + n_pad)` with `s_i = q . k_i / sqrt(d)`, over the
    row's own `i < length`. AudioGen pads a batch of descriptions with zero vectors and masks
    nothing: without a bias a padded slot has key and value 0, hence score 0, so all it does is add
    1 to the denominator. A row of length 0 is exactly zero.

    Args:
        q: `[B, H, T, d]`.
        k, v: `[B, H, L, d]`; slots at or past the row's length are never used.
        lengths: int `[B]`, the number of real text tokens of each row.
        n_pad: int `[B]`, how many zero slots the row had in its padded batch.
    Returns:
        `[B, H, T, d]` in the dtype of `q`.
    """
    real = torch.arange(k.shape[2], device=k.device) < lengths.view(-1, 1, 1, 1)
    scores = _widen(q) @ _widen(k).transpose(-1, -2) / q.shape[-1] ** 0.5
    # Together the zero slots weigh exp(log(n_pad)): one more score, whose value is zero.
    pads = n_pad.to(scores.dtype).log().view(-1, 1, 1, 1).expand(*scores.shape[:-1], 1)
    scores = torch.cat([scores.masked_fill(~real, float("-inf")), pads], dim=-1)
    # Masked once more, because the softmax of a row with nothing at all is NaN.
    weights = torch.softmax(scores, dim=-1)[..., :-1].masked_fill(~real, 0.0)
    values = _widen(v).masked_fill(~real.transpose(-1, -2), 0.0)
    out = weights @ values
    return out.to(q.dtype)


def codebook_cross_entropy(
    hidden: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    targets: Tensor,
    divisors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output heads and cross entropy: each codebook over its own targets, then their mean.

    With the delay pattern (arXiv 2306.05284, section 2.2) the codebooks have different numbers of
    targets; averaging each over its own count weighs them equally. A codebook without a target
    counts as zero.

    Args:
        hidden: `[B, S, D]`.
        weights: K tensors `[card, D]`; the products run in their dtype.
        biases: K tensors `[card]`, or nothing.
        targets: int64 `[B, K, S]` in [0, card); a negative one is left out.
        divisors: float `[K]`, each positive, what to divide each codebook's sum by; None for its
            own number of targets. A part of a batch passes those of the whole.
    Returns:
        The loss, a scalar, and the cross entropy of each codebook `[K]`, in nats, float32
        (float64 for float64 weights).
    """
    biases = biases or [None] * len(weights)
    heads = zip(weights, biases, strict=True)
    logits = [torch.nn.functional.linear(hidden.to(w.dtype), w, b) for w, b in heads]
    entropy = torch.nn.functional.cross_entropy(
        _widen(torch.stack(logits, dim=1)).flatten(0, 2),
        torch.where(targets < 0, -100, targets).flatten(),
        reduction="none",
        ignore_index=-100,
    ).view(targets.shape)
    if divisors is None:
        divisors = (targets >= 0).sum(dim=(0, 2)).clamp(min=1)
    per_codebook = entropy.sum(dim=(0, 2)) / divisors
    return per_codebook.mean(), per_codebook


def rvq_decode(codes: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Residual vector quantiser decode: the sum of one vector per codebook.

    Args:
        codes: int64 `[B, K, T]`.
        codebooks: at least K tensors `[card, D]`.
    Returns:
        `[B, D, T]`, summed in the order of the codebooks.
    """
    total = torch.zeros((), dtype=codebooks[0].dtype, device=codes.device)
    for k in range(codes.shape[1]):
        total = total + torch.nn.functional.embedding(codes[:, k], codebooks[k])
    return total.transpose(1, 2)


def philox4x32_10(
    key0: Tensor, key1: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox 4x32 on int64 tensors that hold 32-bit words (broadcast together)."""
    for _ in range(10):
        # int64 products wrap modulo 2^64, which keeps both 32-bit halves right.
        product0, product1 = c0 * _PHILOX_M[0], c2 * _PHILOX_M[1]
        high0, low0 = (product0 >> 32) & _MASK32, product0 & _MASK32
        high1, low1 = (product1 >> 32) & _MASK32, product1 & _MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + _PHILOX_W[0]) & _MASK32, (key1 + _PHILOX_W[1]) & _MASK32
    return c0, c1, c2, c3


def philox_exponential(
    seeds: Tensor, items: Tensor, step: int | Tensor, n_codebooks: int, card: int
) -> Tensor:
    """Exp(1) noise that depends only on (seed, item, step, codebook, entry).

    Entry j of (item, codebook) is word `j % 4` of the Philox block with counter
    `(j // 4, step, codebook, item)` and the two halves of the seed as key; with
    `u = ((word >> 8) + 0.5) / 2^24` the result is `-log(u)`, always positive and finite.

    Args:
        seeds: int64 `[N]` (64 bits, two's complement).
        items: int64 `[N]`, the item's number, below 2^32.
        step: number of the draw, below 2^32; a tensor int64 `[N]` gives each item its own.
    Returns:
        float32 `[N, n_codebooks, card]`.
    """
    device, n_blocks = seeds.device, (card + 3) // 4
    if not isinstance(step, Tensor):
        step = torch.full([1], step, device=device)
    block = torch.arange(n_blocks, device=device).view(1, 1, -1)
    codebook = torch.arange(n_codebooks, device=device).view(1, -1, 1)
    key0, key1 = (seeds & _MASK32).view(-1, 1, 1), ((seeds >> 32) & _MASK32).view(-1, 1, 1)
    shape = (seeds.shape[0], n_codebooks, n_blocks)
    words = philox4x32_10(
        key0.expand(shape),
        key1.expand(shape),
        block.expand(shape),
        step.view(-1, 1, 1).expand(shape),
        codebook.expand(shape),
        items.view(-1, 1, 1).expand(shape),
    )
    word = torch.stack(words, dim=-1).flatten(2).narrow(2, 0, card)
    # In float64, rounded once: the nearest float32, the same on every machine.
    uniform = ((word >> 8).to(torch.float64) + 0.5) * 2.0**-24
    return -torch.log(uniform).to(torch.float32)


def filter_top_k(probs: Tensor, k: int | Tensor) -> Tensor:
    """Keep every probability at least as large as the k-th largest (ties stay), renormalised.

    A k past the number of entries keeps them all. As a tensor of ints that broadcasts against
    `probs` `[..., 1]`, k is read on the device; a k below 1 then counts as 1.
    """
    entries = probs.shape[-1]
    if isinstance(k, Tensor):
        ordered = torch.sort(probs, dim=-1, descending=True).values
        place = (k.long() - 1).clamp(0, entries - 1).expand(*probs.shape[:-1], 1)
        threshold = ordered.gather(-1, place)
    else:
        threshold = torch.topk(probs, min(k, entries), dim=-1).values[..., -1:]
    kept = torch.where(probs >= threshold, probs, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True)


def filter_top_p(probs: Tensor, p: float | Tensor) -> Tensor:
    """Keep the most likely entries up to and including the one that crosses `p`, renormalised.

    Of equal entries the first ones are kept. `p` may be a tensor that broadcasts against `probs`.
    """
    ordered, order = torch.sort(probs, dim=-1, descending=True, stable=True)
    before = torch.cumsum(ordered, dim=-1) - ordered
    ordered = torch.where(before > p, 0.0, ordered)
    ordered = ordered / ordered.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, order, ordered)


def sample_codebooks(
    logits: Tensor, noise: Tensor | None, temperature: float, top_k: int, top_p: float
) -> Tensor:
    """Draw one entry per row, or take the most likely one when `noise` is None.

    The draw is `argmax(p / q)` with `q ~ Exp(1)`, which picks entry i with probability `p_i`
    and needs no sum and no host synchronisation. `top_p > 0` takes precedence over `top_k`.

    Args:
        logits: `[B, K, card]`.
        noise: float32 `[B, K, card]` from `philox_exponential`, or None for greedy.
    Returns:
        int64 `[B, K]`.
    """
    if noise is None:
        return torch.argmax(logits, dim=-1)
    probs = torch.softmax((logits / temperature).float(), dim=-1)
    if top_p > 0.0:
        probs = filter_top_p(probs, top_p)
    elif top_k > 0:
        probs = filter_top_k(probs, top_k)
    return torch.argmax(probs / noise, dim=-1)


def sample_slots(
    logits: Tensor, noise: Tensor | None, temperature: Tensor, top_k: Tensor, top_p: Tensor
) -> Tensor:
    """`sample_codebooks` with parameters of their own for every row, read on the device.

    Args:
        logits, noise: see there; without noise every row takes its most likely entry.
        temperature: float32 `[B]`; 0 takes the most likely entry.
        top_k: int `[B]`, 0 for no limit.
        top_p: float32 `[B]`, 0 for none; takes precedence over `top_k`.
    Returns:
        int64 `[B, K]`.
    """
    greedy = torch.argmax(logits, dim=-1)
    if noise is None:
        return greedy
    temperature, top_k, top_p = (t.view(-1, 1, 1) for t in (temperature, top_k, top_p))
    sampled = temperature > 0
    divisor = torch.where(sampled, temperature, 1.0)
    # Divided in float32 and rounded once, as a division by a number does.
    probs = torch.softmax((logits.float() / divisor).to(logits.dtype).float(), dim=-1)
    limited = torch.where(top_k > 0, filter_top_k(probs, top_k), probs)
    probs = torch.where(top_p > 0, filter_top_p(probs, top_p), limited)
    return torch.where(sampled.squeeze(-1), torch.argmax(probs / noise, dim=-1), greedy)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
