"""Sampling, writing and advancing of slots, on a GPU or, in its own process, interpreted."""

import os

import pytest
import torch
import triton
import triton.language as tl

from audiogen_fast.ops import reference

module = pytest.importorskip("audiogen_fast.kernels.sample_codebooks")
launch, Slots, UNKNOWN = module.sample_codebooks, module.Slots, module.UNKNOWN
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
UNIT = 2.0**-24  # of the relative error of a float32


def make(batch, n_codebooks, steps, rows=None, **changes) -> Slots:
    """Active slots at step 1 of empty sequences, with parameters as lists or numbers."""

    def tensor(value, dtype):
        return torch.as_tensor(value, dtype=dtype).expand(batch).contiguous().to(DEVICE)

    numbers = {
        "active": (True, torch.bool),
        "step": (1, torch.int32),
        "ends": (steps, torch.int32),
        "seeds": (7, torch.int64),
        "items": (list(range(batch)), torch.int64),
        "draws": (0, torch.int64),
        "temperature": (1.0, torch.float32),
        "top_k": (0, torch.int32),
        "top_p": (0.0, torch.float32),
        "counters": (0, torch.int32),
    }
    fields = {
        name: tensor(changes.pop(name, default), dtype)
        for name, (default, dtype) in numbers.items()
    }
    slots = Slots(
        sequence=torch.full((batch, n_codebooks, steps), UNKNOWN, device=DEVICE),
        pattern_mask=torch.ones(batch, n_codebooks, steps, dtype=torch.bool, device=DEVICE),
        positions=torch.arange(rows or batch, dtype=torch.int32, device=DEVICE),
        **fields,
    )
    for name, value in changes.items():
        setattr(slots, name, value)
    return slots


def expected(logits, slots: Slots) -> torch.Tensor:
    noise = reference.philox_exponential(slots.seeds, slots.items, slots.draws, *logits.shape[1:])
    return reference.sample_slots(logits, noise, slots.temperature, slots.top_k, slots.top_p)


def random(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE) * 3


@triton.jit
def _exponential_of(words_ptr, out_ptr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + place, module.exponential(tl.load(words_ptr + place).to(tl.uint32)))


def test_noise_is_within_two_ulp_of_the_exact_value():
    """Of the 2^24 values of a word's upper 24 bits: both ends, the seam in the middle, and more."""
    ends = [torch.arange(2**17) + start for start in (0, 2**23 - 2**16, 2**24 - 2**17)]
    m = torch.cat([*ends, torch.arange(2**20 - 3 * 2**17) * 25])
    m = m.to(DEVICE)
    words = (m << 8) | 0x5A
    out = torch.full([len(m)], float("nan"), device=DEVICE)
    _exponential_of[(len(m) // 4096,)](words, out, 4096)
    exact = -torch.log((m.double() + 0.5) * 2.0**-24)
    ulp = 2.0 ** torch.floor(torch.log2(exact)) * 2.0**-23
    assert ((out.double() - exact).abs() / ulp).max() <= 2
    assert out.min() > 0 and out.isfinite().all()


@triton.jit
def _noise_of(seeds_ptr, out_ptr, item, draw, codebook, BLOCK: tl.constexpr):
    seed = tl.load(seeds_ptr)
    noise = module.exponential_noise(seed, item, draw, codebook, BLOCK)
    tl.store(out_ptr + tl.arange(0, BLOCK), noise)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 12345, -(2**63)])
@pytest.mark.parametrize(("item", "draw"), [(0, 0), (3, 502), (2**31 + 5, 2**32 - 1)])
def test_noise_has_the_counters_of_the_reference(seed, item, draw):
    seeds, out = torch.tensor([seed], device=DEVICE), torch.empty(64, device=DEVICE)
    _noise_of[(1,)](seeds, out, item, draw, 2, 64)
    items = torch.tensor([item], device=DEVICE)
    exact = reference.philox_exponential(seeds, items, draw, 3, 64)[0, 2]
    torch.testing.assert_close(out, exact, rtol=6 * UNIT, atol=0)


PARAMETERS = [
    {},
    {"temperature": 0.0},
    {"temperature": [0.0, 0.3, 2.5]},
    {"top_k": 1},
    {"top_k": [5, 0, 3]},
    {"top_k": 10**6},
    {"top_p": [0.5, 0.9, 0.0], "top_k": 2},
    {"top_p": 1.0},
    {"top_p": 1e-9},
]


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("card", [1, 7, 100])
def test_draws_are_those_of_the_reference(card, parameters):
    slots = make(3, 3, 6, draws=[4, 0, 77], **parameters)
    logits = random(3, 3, card)
    right = expected(logits, slots)
    launch(logits, slots)
    assert torch.equal(slots.sequence[:, :, 1], right)


def test_a_large_codebook():
    slots = make(2, 2, 4, top_k=250)
    logits = random(2, 2, 2048)
    right = expected(logits, slots)
    launch(logits, slots)
    assert torch.equal(slots.sequence[:, :, 1], right)


@triton.jit
def _kept_of(probs_ptr, out_ptr, k, p, TOP_P: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    probs = tl.load(probs_ptr + place)
    bits = probs.to(tl.int32, bitcast=True)
    if TOP_P:
        kept = module.top_p_kept(probs, bits, p)
    else:
        kept = bits >= module.top_k_threshold(bits, k)
    tl.store(out_ptr + place, kept.to(tl.int32))


PROBS = [0.05, 0.4, 0.1, 0.1, 0.2, 0.1, 0.05, 0.0]


@pytest.mark.parametrize(
    ("k", "p", "kept"),
    [
        (1, 0, {1}),
        (2, 0, {1, 4}),
        (3, 0, {1, 4, 2, 3, 5}),  # three are asked for, the third ties with two more
        (5, 0, {1, 4, 2, 3, 5}),
        (6, 0, {0, 1, 2, 3, 4, 5, 6}),
        (8, 0, {0, 1, 2, 3, 4, 5, 6, 7}),
        # What has been gathered before an entry decides, of equal ones from the first on.
        (0, 0.3, {1}),
        (0, 0.5, {1, 4}),
        (0, 0.65, {1, 4, 2}),
        (0, 0.75, {1, 4, 2, 3}),
        (0, 0.92, {1, 4, 2, 3, 5, 0}),
    ],
)
def test_limits_and_ties(k, p, kept):
    probs = torch.tensor(PROBS, device=DEVICE)
    out = torch.full([8], 9, dtype=torch.int32, device=DEVICE)
    _kept_of[(1,)](probs, out, k, float(p), TOP_P=p > 0, BLOCK=8)
    assert set(out.nonzero().flatten().tolist()) == kept
    right = reference.filter_top_p(probs, p) if p else reference.filter_top_k(probs, k)
    assert torch.equal(right > 0, (out == 1) & (probs > 0))


@pytest.mark.parametrize("seed", range(4))
def test_limits_at_random(seed):
    """Against a sort: distinct values, coarse ones with many ties, and values that underflow."""
    probs = torch.softmax(random(512, seed=seed) * [1, 0, 20, 1][seed], 0)
    if seed == 3:
        probs = (probs * 1024).ceil() / 1024 / 2  # about 20 different values
    out = torch.empty(512, dtype=torch.int32, device=DEVICE)
    for k in (1, 2, 100, 512):
        _kept_of[(1,)](probs, out, k, 0.0, TOP_P=False, BLOCK=512)
        assert torch.equal(out == 1, probs >= probs.sort(descending=True).values[k - 1])
    for p in (0.1, 0.5, 0.9):
        _kept_of[(1,)](probs, out, 0, p, TOP_P=True, BLOCK=512)
        assert torch.equal(out == 1, reference.filter_top_p(probs, p) > 0)


def test_greedy_takes_the_first_of_equals_and_needs_no_noise():
    logits = torch.tensor([[[1.0, 5.0, 5.0, -1.0]]], device=DEVICE)
    for sampled in (True, False):
        slots = make(1, 1, 3, temperature=0.0)
        launch(logits, slots, sampled=sampled)
        assert slots.sequence[0, 0].tolist() == [UNKNOWN, 1, UNKNOWN]


@pytest.mark.filterwarnings("ignore:invalid value")  # of the interpreter, about NaN
def test_extreme_logits():
    logits = torch.full((2, 1, 9), -1e30, device=DEVICE)
    logits[0, 0, 4] = 3e38
    logits[1] = float("-inf")
    logits[1, 0, 8] = 0.0
    for parameters in PARAMETERS:
        slots = make(2, 1, 3, **{n: v for n, v in parameters.items() if not isinstance(v, list)})
        launch(logits, slots)
        assert slots.sequence[:, 0, 1].tolist() == [4, 8]
    logits[0] = float("nan")
    slots = make(2, 1, 3)
    launch(logits, slots)
    assert 0 <= slots.sequence[0, 0, 1] < 9 and slots.sequence[1, 0, 1] == 8


def test_pattern_prompt_activity_and_ends():
    """Every slot at its own step: a hole of the pattern, a prompt's code, an inactive, an end."""
    steps = [3, 2, 4, 5]
    slots = make(
        4, 2, 6, rows=8, active=[True, True, False, True], step=steps, ends=[6, 6, 6, 6],
        draws=[0, 10, 20, 30], temperature=0.0,
    )  # fmt: skip
    slots.pattern_mask[0, 1, 3] = False
    slots.sequence[1, 0, 2] = 5
    before, positions = slots.sequence.clone(), slots.positions.clone()
    logits = torch.zeros(4, 2, 8, device=DEVICE)
    logits[..., 6] = 1.0
    launch(logits, slots)
    before[0, :, 3] = torch.tensor([6, 8])  # the special token is the number of entries
    before[1, :, 2] = torch.tensor([5, 6])
    before[3, :, 5] = 6
    assert torch.equal(slots.sequence, before)
    grow = torch.tensor([1, 1, 0, 1], dtype=torch.int32, device=DEVICE)
    assert slots.step.tolist() == [4, 3, 4, 6]
    assert slots.draws.tolist() == [1, 11, 20, 31]
    assert torch.equal(slots.positions, positions + grow.repeat(2))
    assert slots.active.tolist() == [True, True, False, False]
    assert not slots.counters.any()


def test_a_mask_shared_by_expand_and_a_strided_sequence():
    wide = torch.full((2, 3, 9), UNKNOWN, device=DEVICE)
    mask = torch.ones(3, 5, dtype=torch.bool, device=DEVICE).expand(2, 3, 5)
    slots = make(2, 3, 5, sequence=wide[:, :, 2:7], pattern_mask=mask)
    logits = random(2, 3, 8)
    right = expected(logits, slots)
    launch(logits, slots)
    assert torch.equal(wide[:, :, 3], right)
    assert (wide[:, :, :3] == UNKNOWN).all() and (wide[:, :, 4:] == UNKNOWN).all()


def test_draws_depend_on_the_key_and_not_on_the_place():
    logits = torch.zeros(3, 2, 1000, device=DEVICE)
    slots = make(3, 2, 4, seeds=[5, 6, 5], items=[1, 1, 1], draws=[9, 9, 9])
    launch(logits, slots)
    drawn = slots.sequence[:, :, 1]
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])


def test_nothing_to_do():
    slots = make(1, 2, 4)
    for name, value in vars(slots).items():
        setattr(slots, name, value[:0])
    launch(torch.empty(0, 2, 8, device=DEVICE), slots)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": torch.zeros(2, dtype=torch.int64)}, "step must be one of.*int32"),
        ({"draws": torch.zeros(3, dtype=torch.int64)}, r"draws must have the shape \(2,\)"),
        ({"temperature": torch.zeros(2, dtype=torch.float64)}, "temperature must be one of"),
        ({"active": torch.zeros(2)}, "active must be one of.*bool"),
        ({"positions": torch.zeros(3, dtype=torch.int32)}, "a multiple of 2 rows, got 3"),
        ({"sequence": torch.zeros(2, 3, 4, dtype=torch.int64)}, r"sequence must have the shape"),
        ({"sequence": torch.zeros(2, 3, dtype=torch.int64)}, r"sequence must be \[B, K, S\]"),
        (
            {"sequence": torch.zeros(4, 2, 5, dtype=torch.int64).permute(1, 2, 0)},
            "stride 1 along its steps",
        ),
        ({"pattern_mask": torch.zeros(2, 5, 4)}, "pattern_mask must be one of.*bool"),
    ],
)
def test_wrong_arguments(change, message):
    slots = make(2, 5, 4)
    for name, value in vars(slots).items():
        setattr(slots, name, change.get(name, value.cpu()))
    with pytest.raises(ValueError, match=message):
        launch(torch.zeros(2, 5, 8), slots)


def test_wrong_logits():
    with pytest.raises(ValueError, match=r"logits must be \[B, K, card\]"):
        launch(torch.zeros(2, 5), make(2, 5, 4))
    with pytest.raises(ValueError, match="logits must be one of.*float16"):
        launch(torch.zeros(2, 5, 8, dtype=torch.float16), make(2, 5, 4))
