"""The end of a decode step: draw a code for every slot and codebook, write it, go on. One launch.

p = softmax(logits / temperature), cut to the top k (ties with the k-th stay) or top p (of equal
entries the first stay); code = argmax(p / q), q ~ Exp(1) from Philox with the counters of
`audiogen_fast.ops.reference.philox_exponential`. The code goes to the sequence where the delay
pattern holds one (the special token elsewhere) and none is in place yet. The last program of a slot
to arrive then advances its step, draw and positions, and stops it at its end.

The limits are found by bisection over the bits of p, which are ordered as p is: no sort, and exact.
-log(u) is computed in float32, within 2 ulp of the exact value, which the reference rounds once
from float64: a token can differ only where the best two p / q are as close as that.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from audiogen_fast.kernels._launch import OPTIONS, require, require_tensor

UNKNOWN = -1  # a code that has not been generated yet

_VARYING = (
    "SLOTS",
    "STEPS",
    "sequence_stride_b",
    "sequence_stride_k",
    "mask_stride_b",
    "mask_stride_k",
)


@triton.jit
def exponential(word):
    """-log(u) of u = ((word >> 8) + 0.5) / 2^24, in float32.

    From 1/2 on, u itself has no float32; 1 - u does, and -log(1 - v) = 2 atanh(v / (2 - v)).
    """
    m = (word >> 8).to(tl.int32)
    low = (m.to(tl.float32) + 0.5) * 5.9604644775390625e-08
    v = ((16777215 - m).to(tl.float32) + 0.5) * 5.9604644775390625e-08
    s = tl.div_rn(v, 2.0 - v)  # at most 1/3 where it is used
    t = s * s
    series = 1.0 / 17
    series = series * t + 1.0 / 15
    series = series * t + 1.0 / 13
    series = series * t + 1.0 / 11
    series = series * t + 1.0 / 9
    series = series * t + 1.0 / 7
    series = series * t + 1.0 / 5
    series = series * t + 1.0 / 3
    return tl.where(m < 8388608, -tl.log(low), 2.0 * (s + s * t * series))


@triton.jit
def exponential_noise(seed, item, draw, codebook, BLOCK: tl.constexpr):
    """Exp(1) noise `[BLOCK]`: entry j is word j % 4 of the block (j // 4, draw, codebook, item)."""
    block = tl.arange(0, BLOCK // 4)
    zero = block * 0
    w0, w1, w2, w3 = tl.philox(
        seed,
        block.to(tl.uint32),
        (zero + draw).to(tl.uint32),
        (zero + codebook).to(tl.uint32),
        (zero + item).to(tl.uint32),
    )
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return exponential(tl.reshape(words, [BLOCK]))


@triton.jit
def top_k_threshold(bits, k):
    """The k-th largest of floats in [0, 1], as bits: the largest t that k of them reach.

    Of their 32 bits the upper two are zero: 1.0 is 0x3f800000.
    """
    t = tl.full([], 0, tl.int32)
    one = tl.full(bits.shape, 1, tl.int64)
    for turn in range(0, 15):
        shift = 28 - 2 * turn
        a = t | (1 << shift)
        b = t | (2 << shift)
        c = t | (3 << shift)
        # Three counts in one sum, 21 bits each.
        counted = tl.where(bits >= a, one, 0)
        counted += tl.where(bits >= b, one << 21, 0)
        counted += tl.where(bits >= c, one << 42, 0)
        counts = tl.sum(counted, 0)
        t = tl.where((counts & 0x1FFFFF) >= k, a, t)
        t = tl.where(((counts >> 21) & 0x1FFFFF) >= k, b, t)
        t = tl.where((counts >> 42) >= k, c, t)
    return t


@triton.jit
def top_p_kept(probs, bits, top_p):
    """Entries before which, from the largest, at most `top_p` has been gathered."""
    t = tl.full([], 0, tl.int32)
    for turn in range(0, 30):
        higher = t | (1 << (29 - turn))
        t = tl.where(tl.sum(tl.where(bits >= higher, probs, 0.0), 0) > top_p, higher, t)
    above = tl.sum(tl.where(bits > t, probs, 0.0), 0)
    equal = bits == t
    rank = tl.cumsum(equal.to(tl.int32), 0) - 1
    return (bits > t) | (equal & (above + rank.to(tl.float32) * probs <= top_p))


@triton.jit(do_not_specialize=_VARYING)
def sample_codebooks_kernel(
    logits_ptr,  # [SLOTS, K, CARD]
    sequence_ptr,  # [SLOTS, K, STEPS], any strides but the last
    mask_ptr,  # [SLOTS, K, STEPS], any strides but the last
    active_ptr,  # [SLOTS]
    step_ptr,  # [SLOTS]
    ends_ptr,  # [SLOTS]
    positions_ptr,  # [ROWS_OF_SLOT * SLOTS]
    seeds_ptr,  # [SLOTS]
    items_ptr,  # [SLOTS]
    draws_ptr,  # [SLOTS]
    temperature_ptr,  # [SLOTS]
    top_k_ptr,  # [SLOTS]
    top_p_ptr,  # [SLOTS]
    counter_ptr,  # [SLOTS], zero
    SLOTS,
    CARD,
    STEPS,
    sequence_stride_b,
    sequence_stride_k,
    mask_stride_b,
    mask_stride_k,
    K: tl.constexpr,
    ROWS_OF_SLOT: tl.constexpr,
    SAMPLED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One slot and codebook."""
    slot = tl.program_id(0).to(tl.int64)
    codebook = tl.program_id(1)
    if tl.load(active_ptr + slot):
        step = tl.load(step_ptr + slot)
        entry = tl.arange(0, BLOCK)
        inside = entry < CARD
        logits = tl.load(
            logits_ptr + (slot * K + codebook) * CARD + entry, mask=inside, other=float("-inf")
        )
        best = tl.argmax(logits, 0)
        temperature = tl.load(temperature_ptr + slot)
        if SAMPLED:
            if temperature > 0:
                scaled = tl.div_rn(logits, tl.zeros_like(logits) + temperature)
                scaled = tl.where(inside, scaled, float("-inf"))
                probs = tl.exp(scaled - tl.max(scaled, 0))
                probs = tl.div_rn(probs, tl.zeros_like(probs) + tl.sum(probs, 0))
                bits = probs.to(tl.int32, bitcast=True)
                kept = inside
                top_k = tl.load(top_k_ptr + slot)
                top_p = tl.load(top_p_ptr + slot)
                if top_p > 0:
                    kept = top_p_kept(probs, bits, top_p)
                elif top_k > 0:
                    kept = bits >= top_k_threshold(bits, tl.minimum(top_k, CARD))
                noise = exponential_noise(
                    tl.load(seeds_ptr + slot),
                    tl.load(items_ptr + slot),
                    tl.load(draws_ptr + slot),
                    codebook,
                    BLOCK,
                )
                best = tl.argmax(tl.where(kept & inside, tl.div_rn(probs, noise), -1.0), 0)
        # Only logits that are NaN could choose an entry past the last.
        best = tl.minimum(best, CARD - 1)
        if step < STEPS:
            place = sequence_ptr + slot * sequence_stride_b + codebook * sequence_stride_k + step
            coded = tl.load(mask_ptr + slot * mask_stride_b + codebook * mask_stride_k + step)
            if tl.load(place) == -1:  # a code of the prompt that is delayed past the start stays
                tl.store(place, tl.where(coded, best, CARD).to(tl.int64))
        tl.debug_barrier()  # all threads have read the slot's step before it may change
        if tl.atomic_add(counter_ptr + slot, 1, sem="acq_rel") == K - 1:
            tl.store(counter_ptr + slot, 0)  # ready for the next launch
            tl.store(step_ptr + slot, step + 1)
            tl.store(draws_ptr + slot, tl.load(draws_ptr + slot) + 1)
            tl.store(active_ptr + slot, step + 1 < tl.load(ends_ptr + slot))
            for turn in tl.static_range(ROWS_OF_SLOT):
                row = slot + turn * SLOTS
                tl.store(positions_ptr + row, tl.load(positions_ptr + row) + 1)


@dataclass
class Slots:
    """What sampling reads and advances, on one device; B slots, R rows (a multiple of B).

    Attributes:
        sequence: int64 `[B, K, S]`, `UNKNOWN` where a code is to be drawn.
        pattern_mask: bool `[B, K, S]`, where the pattern holds a code. Both may have any strides
            but the last, so that a mask can be shared by `expand`.
        active: bool `[B]`; only active slots are handled.
        step, ends: int32 `[B]`, the step to fill and the one to stop before.
        positions: int32 `[R]`, grow by one with the step of slot `r % B`.
        seeds, items, draws: int64 `[B]`, the key of the slot's noise and the number of its draw.
        temperature, top_p: float32 `[B]`; top_k: int32 `[B]`. A temperature of 0 takes the most
            likely code; 0 is no limit; `top_p` takes precedence.
        counters: int32 `[B]`, zero before the first launch and after every one.
    """

    sequence: Tensor
    pattern_mask: Tensor
    active: Tensor
    step: Tensor
    ends: Tensor
    positions: Tensor
    seeds: Tensor
    items: Tensor
    draws: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    counters: Tensor


def sample_codebooks(logits: Tensor, slots: Slots, sampled: bool = True) -> None:
    """Draw and write the codes of every active slot's step, then advance it.

    Args:
        logits: float32 `[B, K, card]`, contiguous, after guidance.
        slots: see there; changed in place.
        sampled: False where every slot is known to be greedy: no noise is made.
    Raises:
        ValueError: an argument of the wrong shape, dtype, device or layout.
    """
    require(logits.ndim == 3, f"logits must be [B, K, card], got {tuple(logits.shape)}")
    batch, n_codebooks, card = logits.shape
    device = logits.device
    require_tensor("logits", logits, tuple(logits.shape), (torch.float32,), device)
    require(1 <= card < 2**21, f"logits must have 1 to {2**21 - 1} entries, got {card}")
    require(slots.sequence.ndim == 3, "sequence must be [B, K, S]")
    shape = (batch, n_codebooks, slots.sequence.shape[2])
    require_tensor("sequence", slots.sequence, shape, (torch.int64,), device, contiguous=False)
    require_tensor("pattern_mask", slots.pattern_mask, shape, (torch.bool,), device, False)
    for name in ("sequence", "pattern_mask"):
        last = getattr(slots, name).stride(2)
        require(last == 1 or shape[2] == 1, f"{name} must have stride 1 along its steps")
    dtypes = {
        torch.bool: ("active",),
        torch.int32: ("step", "ends", "top_k", "counters"),
        torch.int64: ("seeds", "items", "draws"),
        torch.float32: ("temperature", "top_p"),
    }
    for dtype, names in dtypes.items():
        for name in names:
            require_tensor(name, getattr(slots, name), (batch,), (dtype,), device)
    rows = slots.positions.numel()
    require_tensor("positions", slots.positions, (rows,), (torch.int32,), device)
    require(
        rows % max(batch, 1) == 0, f"positions must have a multiple of {batch} rows, got {rows}"
    )
    if batch == 0:
        return
    with torch.cuda.device_of(logits):  # triton launches on the current device
        sample_codebooks_kernel[(batch, n_codebooks)](
            logits,
            slots.sequence,
            slots.pattern_mask,
            slots.active,
            slots.step,
            slots.ends,
            slots.positions,
            slots.seeds,
            slots.items,
            slots.draws,
            slots.temperature,
            slots.top_k,
            slots.top_p,
            slots.counters,
            batch,
            card,
            shape[2],
            *slots.sequence.stride()[:2],
            *slots.pattern_mask.stride()[:2],
            K=n_codebooks,
            ROWS_OF_SLOT=rows // batch,
            SAMPLED=sampled,
            BLOCK=max(triton.next_power_of_2(card), 16),
            num_warps=8 if card > 1024 else 4,
            **OPTIONS,
        )
