"""One decode step in plain torch over a `DecodeState`: what the fused step is measured against.

Every shape is fixed, positions are read on the device, and nothing is copied from or to the host,
so that a CUDA graph can capture it. It runs on any device. Tensors are never indexed with `[]`,
which would keep the capture-safety test from running on fake CUDA tensors without a GPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from audiogen_fast.generation.cuda_graph.state import DecodeState
from audiogen_fast.generation.cuda_graph.weights import LayerWeights, Linear, Norm, StepWeights
from audiogen_fast.generation.job import UNKNOWN
from audiogen_fast.ops import reference
from audiogen_fast.ops.weight_formats import QuantizedWeight, dequantize


@torch.no_grad()
def torch_steps(
    weights: StepWeights, state: DecodeState, limit: int, count: int = 1, sampled: bool = True
) -> None:
    """`count` decode steps of every active slot.

    Args:
        limit: no slot's position reaches this during these steps; at most the state's positions.
        sampled: False where every slot is known to be greedy: no noise is made.
    """
    noise = noise_ahead(state, count).unbind() if sampled else [None] * count
    for one in noise:
        _step(weights, state, limit, one)


def noise_ahead(state: DecodeState, count: int) -> Tensor:
    """Noise float32 `[count, B, K, card]` of the next draws of every slot, in one pass."""
    ahead = torch.arange(count, device=state.device).view(-1, 1)
    draws = (state.draws + ahead).flatten()
    seeds, items = state.seeds.repeat(count), state.items.repeat(count)
    size = state.size
    noise = reference.philox_exponential(seeds, items, draws, size.n_q, size.card)
    return noise.unflatten(0, (count, -1))


def _step(weights: StepWeights, state: DecodeState, limit: int, noise: Tensor | None) -> None:
    x = embed(weights, state)
    attended = torch.arange(limit, device=state.device) <= state.positions.view(-1, 1, 1, 1)
    slots = text_mask(state)
    for index, layer in enumerate(weights.layers):
        x = x + _self_attention(weights, layer, state, index, x, attended)
        if slots is not None:
            rows = x.narrow(0, 0, state.shape.text_rows)
            rows.add_(_cross_attention(weights, layer, state, index, rows, slots))
        hidden = _linear(layer.ff1, _norm(layer.norm2, x, weights), weights)
        x = x + _linear(layer.ff2, F.gelu(hidden), weights)
    logits = _linear(weights.heads, _norm(weights.out_norm, x, weights), weights)
    logits = logits.unflatten(1, (state.size.n_q, state.size.card))
    if state.guided:
        logits = _guided(logits, state.cfg_coef)
    state.logits.copy_(logits)
    drawn = reference.sample_slots(logits, noise, state.temperature, state.top_k, state.top_p)
    write_codes(state, drawn)


def embed(weights: StepWeights, state: DecodeState) -> Tensor:
    """The next token of every row, float32 `[R, D]`: its codes and its position."""
    size, shape = state.size, state.shape
    fed = (state.step - 1).long().view(-1, 1, 1).expand(-1, size.n_q, 1)
    # A slot that was never used holds UNKNOWN; no table has such a row.
    codes = state.sequence.gather(2, fed).squeeze(2).clamp(min=0)
    first = torch.arange(size.n_q, device=state.device) * weights.tables.shape[1]
    vectors = F.embedding(codes + first, weights.tables.flatten(0, 1)).float()
    total, *others = vectors.unbind(1)
    for vector in others:
        total = total + vector
    total = total.repeat(shape.rows // shape.slots, 1)
    return total + F.embedding(state.positions, weights.positions(shape.positions))


def _self_attention(
    weights: StepWeights,
    layer: LayerWeights,
    state: DecodeState,
    index: int,
    x: Tensor,
    attended: Tensor,
) -> Tensor:
    projected = _linear(layer.qkv, _norm(layer.norm1, x, weights), weights)
    heads = (3, state.size.heads, state.size.head_dim)
    q, k, v = projected.unflatten(1, heads).unsqueeze(3).unbind(1)  # [R, H, 1, d] each
    # Rows of slots that are not active write where their next token will overwrite it.
    place = state.positions.long().view(-1, 1, 1, 1).expand_as(k)
    limit = attended.shape[-1]
    caches = []
    for cache, new in ((state.keys[index], k), (state.values[index], v)):
        cache.scatter_(2, place, new.to(cache.dtype))
        caches.append(cache.narrow(2, 0, limit).to(q.dtype))
    out = F.scaled_dot_product_attention(q, *caches, attn_mask=attended)
    return _linear(layer.out, out.flatten(1), weights)


def text_mask(state: DecodeState) -> Tensor | None:
    """Text slots that are attended to, bool `[text_rows, 1, 1, L]`; None without text.

    The padding of a row is part of it: zero keys and values, just as in the original.
    """
    if state.shape.text_rows == 0:
        return None
    # A row with nothing at all takes one zero slot, or its softmax would be NaN.
    used = (state.text_lengths + state.text_pads).clamp(min=1).view(-1, 1, 1, 1)
    return torch.arange(state.shape.text, device=state.device) < used


def _cross_attention(
    weights: StepWeights, layer: LayerWeights, state: DecodeState, index: int, x: Tensor, mask
) -> Tensor:
    q = _linear(layer.cross_q, _norm(layer.norm_cross, x, weights), weights)
    q = q.unflatten(1, (state.size.heads, state.size.head_dim)).unsqueeze(2)
    k, v = state.text_keys[index].to(q.dtype), state.text_values[index].to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return _linear(layer.cross_out, out.flatten(1), weights)


def _guided(logits: Tensor, cfg_coef: Tensor) -> Tensor:
    """`u + (c - u) * w` of the conditional and unconditional halves, rounded after each op."""
    conditional, unconditional = logits.chunk(2)
    scaled = (conditional - unconditional).float() * cfg_coef.view(-1, 1, 1)
    return unconditional + scaled.to(logits.dtype)


def write_codes(state: DecodeState, drawn: Tensor) -> None:
    """Put the codes in place and go on to the next step, where the slot is active."""
    steps = state.shape.positions
    place = state.step.long().clamp(max=steps - 1).view(-1, 1, 1).expand(-1, state.size.n_q, 1)
    held = state.sequence.gather(2, place)
    coded = state.pattern_mask.gather(2, place)
    code = drawn.unsqueeze(2).masked_fill(coded.logical_not(), state.size.card)  # the special token
    # Codes of a prompt that the pattern delays past the start are kept.
    wanted = (held == UNKNOWN) & state.active.view(-1, 1, 1)
    state.sequence.scatter_(2, place, torch.where(wanted, code, held))
    grow = state.active.to(torch.int32)
    state.step.add_(grow)
    state.draws.add_(grow)
    state.positions.add_(grow.repeat(state.shape.rows // state.shape.slots))
    state.active.logical_and_(state.step < state.ends)


def _norm(norm: Norm, x: Tensor, weights: StepWeights) -> Tensor:
    return reference.layer_norm(x, norm.weight, norm.bias, weights.size.eps)


def _linear(linear: Linear, x: Tensor, weights: StepWeights) -> Tensor:
    weight = linear.weight
    if isinstance(weight, QuantizedWeight):
        weight = dequantize(weight).to(weights.dtype)
    return F.linear(x.to(weights.dtype), weight, linear.bias)
