"""Random draws and the filters before them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.generation.job import SamplingParams, make_keys
from audiogen_fast.ops import reference
from audiogen_fast.ops.reference import (
    filter_top_k,
    filter_top_p,
    philox4x32_10,
    philox_exponential,
    sample_codebooks,
)

GOLDEN = Path(__file__).parent.parent / "data" / "golden"

# Known answers of the Random123 library: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    words = philox4x32_10(*(torch.tensor([word]) for word in (*key, *counter)))
    assert tuple(int(word) for word in words) == expected


def exponential(seed=7, item=0, step=3, n_codebooks=2, card=9):
    return philox_exponential(torch.tensor([seed]), torch.tensor([item]), step, n_codebooks, card)


def test_noise_depends_on_every_part_of_its_key():
    base = exponential()
    for change in ({"seed": 8}, {"seed": 7 + 2**40}, {"item": 1}, {"step": 4}):
        assert not torch.equal(exponential(**change), base), change
    assert not torch.equal(base[:, 0], base[:, 1])
    assert torch.equal(exponential(card=5), base[..., :5])
    assert torch.equal(exponential(n_codebooks=1), base[:, :1])


def test_noise_of_an_item_does_not_depend_on_the_batch():
    seeds, items = torch.tensor([5, -9, 2**62]), torch.tensor([0, 3, 2**32 - 1])
    batch = philox_exponential(seeds, items, 11, 3, 13)
    for row in range(3):
        alone = philox_exponential(seeds[row : row + 1], items[row : row + 1], 11, 3, 13)
        assert torch.equal(batch[row], alone[0])


def test_noise_is_exponential():
    noise = philox_exponential(torch.arange(64), torch.zeros(64, dtype=torch.long), 0, 4, 512)
    assert noise.min() > 0 and noise.isfinite().all()
    # 131072 draws: the mean's deviation is 0.0028, the variance's 0.008.
    assert abs(noise.mean().item() - 1) < 0.012
    assert abs(noise.var().item() - 1) < 0.035
    below = (noise < 0.6931).float().mean().item()  # the median is log 2
    assert abs(below - 0.5) < 0.006


@pytest.mark.parametrize("case", ["plain", "biased"])
def test_filters_equal_the_recorded_distributions(case):
    tensors = load_file(GOLDEN / case / "golden.safetensors")
    probs = torch.softmax(tensors["sample.logits"] / 0.9, dim=-1)
    names = [name for name in tensors if name.startswith("sample.top_")]
    assert len(names) >= 6
    for name in names:
        kind, value = name.removeprefix("sample.top_").split("_")
        actual = (
            filter_top_k(probs, int(value)) if kind == "k" else filter_top_p(probs, float(value))
        )
        torch.testing.assert_close(actual, tensors[name], rtol=1e-5, atol=1e-7)


def test_top_k_keeps_all_ties_with_the_last():
    probs = torch.tensor([[0.1, 0.3, 0.2, 0.2, 0.2]])
    assert (filter_top_k(probs, 2) > 0).tolist() == [[False, True, True, True, True]]
    torch.testing.assert_close(filter_top_k(probs, 2)[0, 1], torch.tensor(0.3 / 0.9))
    assert (filter_top_k(probs, 1) > 0).tolist() == [[False, True, False, False, False]]
    assert torch.equal(filter_top_k(probs, 99), probs / probs.sum())


def test_top_p_keeps_the_entry_that_crosses():
    probs = torch.tensor([[0.05, 0.5, 0.15, 0.3]])
    assert (filter_top_p(probs, 0.6) > 0).tolist() == [[False, True, False, True]]
    assert (filter_top_p(probs, 0.01) > 0).tolist() == [[False, True, False, False]]
    torch.testing.assert_close(filter_top_p(probs, 1.0), probs)


def test_draws_follow_the_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0]).expand(20000, 1, 5)
    seeds = torch.arange(20000)
    noise = philox_exponential(seeds, torch.zeros_like(seeds), 0, 1, 5)
    drawn = sample_codebooks(logits, noise, temperature=0.8, top_k=0, top_p=0.0)
    counts = torch.bincount(drawn.flatten(), minlength=5) / 20000
    expected = torch.softmax(logits[0, 0] / 0.8, dim=-1)
    # Four deviations of a frequency of 20000 draws are at most 0.0142.
    assert (counts - expected).abs().max() < 0.0142
    top2 = sample_codebooks(logits, noise, temperature=0.8, top_k=2, top_p=0.0)
    assert set(top2.unique().tolist()) == {0, 1}


def test_top_p_takes_precedence_over_top_k():
    logits = torch.tensor([0.0, 0.1, 0.2, 3.0]).expand(300, 1, 4)
    seeds = torch.arange(300)
    noise = philox_exponential(seeds, torch.zeros_like(seeds), 0, 1, 4)
    both = sample_codebooks(logits, noise, 1.0, top_k=4, top_p=0.5)
    assert (both == 3).all()
    assert len(sample_codebooks(logits, noise, 1.0, top_k=4, top_p=0.0).unique()) > 1


def test_greedy_takes_the_first_of_equals():
    logits = torch.tensor([[[1.0, 5.0, 5.0, 2.0]]])
    assert sample_codebooks(logits, None, 1.0, 0, 0.0).item() == 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12),
    st.integers(0, 14),
    st.floats(0.0, 1.0),
    st.floats(1e-3, 100.0),
)
def test_any_logits_give_a_valid_draw(values, top_k, top_p, temperature):
    logits = torch.tensor(values).view(1, 1, -1)
    noise = exponential(n_codebooks=1, card=len(values))
    drawn = sample_codebooks(logits, noise, temperature, top_k, top_p).item()
    assert 0 <= drawn < len(values)
    probs = torch.softmax(logits / temperature, dim=-1)
    assert probs[0, 0, drawn] > 0


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": 1.5},
        {"top_p": -0.1},
        {"top_p": float("nan")},
    ],
)
def test_parameters_out_of_their_limits_are_refused(bad):
    ((name, value),) = bad.items()
    with pytest.raises(InvalidInputError, match=name) as caught:
        SamplingParams(**bad)
    assert str(value) in str(caught.value)


def test_keys():
    cpu = torch.device("cpu")
    one = make_keys(5, None, 3, cpu)
    assert one.seeds.tolist() == [5, 5, 5] and one.items.tolist() == [0, 1, 2]
    many = make_keys([5, 6, 2**64 - 1], None, 3, cpu)
    assert many.seeds.tolist() == [5, 6, -1] and many.items.tolist() == [0, 0, 0]
    assert torch.equal(make_keys(torch.arange(5, 8).numpy()[0], None, 3, cpu).seeds, one.seeds)
    for wrong in ([1, 2], [1, 2, 2**64], ["a", 1, 2], [True, 1.5, 2]):
        with pytest.raises(InvalidInputError, match="seed"):
            make_keys(wrong, None, 3, cpu)


def test_without_a_seed_the_key_comes_from_a_generator():
    cpu = torch.device("cpu")
    torch.manual_seed(3)
    first = make_keys(None, None, 2, cpu)
    torch.manual_seed(3)
    again = make_keys(None, None, 2, cpu)
    assert torch.equal(first.seeds, again.seeds)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(3)
    own = make_keys(None, generator, 2, cpu)
    assert torch.equal(own.seeds, first.seeds)
    assert not torch.equal(make_keys(None, generator, 2, cpu).seeds, own.seeds)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_of_items_at_draws_of_their_own():
    seeds, items = torch.tensor([7, 7, -3]), torch.tensor([0, 5, 2**32 - 1])
    draws = torch.tensor([0, 9, 2**31 + 3])
    noise = reference.philox_exponential(seeds, items, draws, 3, 10)
    for row in range(3):
        one = slice(row, row + 1)
        alone = reference.philox_exponential(seeds[one], items[one], int(draws[row]), 3, 10)
        assert torch.equal(noise[one], alone)


def test_slots_sample_with_parameters_of_their_own():
    """Every row of `sample_slots` is what `sample_codebooks` draws with that row's parameters."""
    parameters = [  # temperature, top_k, top_p
        (1.0, 250, 0.0),
        (0.7, 3, 0.0),
        (2.5, 0, 0.0),
        (1.0, 5, 0.6),
        (1.3, 0, 1.0),
        (0.0, 4, 0.5),
        (1.0, 1, 0.0),
    ]
    B = len(parameters)
    generator = torch.Generator().manual_seed(2)
    columns = [torch.tensor(column) for column in zip(*parameters, strict=True)]
    for dtype in (torch.float32, torch.float16):
        logits = (torch.randn(B, 4, 300, generator=generator) * 3).round(decimals=1).to(dtype)
        noise = reference.philox_exponential(torch.arange(B), torch.arange(B), 5, 4, 300)
        drawn = reference.sample_slots(logits, noise, *columns)
        for row, (temperature, top_k, top_p) in enumerate(parameters):
            one = slice(row, row + 1)
            expected = reference.sample_codebooks(
                logits[one], noise[one] if temperature else None, temperature or 1, top_k, top_p
            )
            assert torch.equal(drawn[one], expected), parameters[row]
        greedy = reference.sample_slots(logits, None, *columns)
        assert torch.equal(greedy, logits.argmax(-1))
