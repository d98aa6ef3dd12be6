"""The definitions themselves, against known numbers, float64 loops and plain torch."""

import math
import os
import subprocess
import sys
from inspect import getsource

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.ops import dispatch, native, reference


def test_sin_embedding_has_its_cosines_first_and_divides_by_half_minus_one():
    table = reference.sin_embedding(torch.tensor([0, 1]), 1536, dtype=torch.float64)
    assert torch.equal(table[0], torch.cat([torch.ones(768), torch.zeros(768)]).double())
    expected = {0: math.cos(1), 767: math.cos(1e-4), 768: math.sin(1), 1535: math.sin(1e-4)}
    for index, value in expected.items():
        assert table[1, index].item() == pytest.approx(value, rel=1e-12)


def test_sin_embedding_against_a_loop():
    positions = torch.tensor([[0, 3], [17, 503]])
    table = reference.sin_embedding(positions, 6, max_period=50.0)
    assert table.dtype == torch.float32
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        phases = [positions[i, j].item() / 50.0 ** (k / 2) for k in range(3)]
        expected = [math.cos(p) for p in phases] + [math.sin(p) for p in phases]
        assert_close(table[i, j], torch.tensor(expected), rtol=0, atol=3e-5)


def test_sin_embedding_has_the_asked_dtype():
    half = reference.sin_embedding(torch.arange(4), 8, dtype=torch.float16)
    assert half.dtype == torch.float16
    single = reference.sin_embedding(torch.arange(4), 8)
    assert_close(half.float(), single, rtol=0, atol=3e-3)


@pytest.mark.parametrize("dim", [7, 2])
def test_sin_embedding_refuses_widths_it_is_not_defined_for(dim):
    with pytest.raises(InvalidInputError, match=f"dim must be .*got {dim}"):
        reference.sin_embedding(torch.arange(4), dim)


def make_attention(B=4, H=2, T=3, L=7, d=5, dtype=torch.float32, scale=1.0):
    """Random inputs; rows of every kind: full, partly filled, a single slot, none."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(B, H, n, d, generator=generator) for n in (T, L, L))
    lengths = torch.tensor([L, 4, 1, 0])[:B]
    n_pad = torch.tensor([0, 3, 8, 5])[:B]
    return (scale * q).to(dtype), k.to(dtype), v.to(dtype), lengths, n_pad


def padded_softmax(q, k, v, lengths, n_pad):
    """What the closed form stands for: attention, in float64, over keys and values with zeros."""
    rows = []
    for b, (n, zeros) in enumerate(zip(lengths.tolist(), n_pad.tolist(), strict=True)):
        if n + zeros == 0:
            rows.append(torch.zeros(q.shape[1:], dtype=torch.float64))
            continue
        keys, values = (F.pad(x[b, :, :n].double(), (0, 0, 0, zeros)) for x in (k, v))
        scores = q[b].double() @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])
        rows.append(torch.softmax(scores, dim=-1) @ values)
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_cross_attention_is_softmax_over_zero_padded_text(dtype):
    inputs = make_attention(dtype=dtype)
    out = reference.cross_attention(*inputs)
    assert out.dtype == dtype
    # Rounded once, from float32 or better.
    epsilon = max(torch.finfo(dtype).eps, 1e-12 if dtype == torch.float64 else 3e-7)
    assert_close(out.double(), padded_softmax(*inputs), rtol=epsilon, atol=epsilon)
    assert torch.equal(out[3], torch.zeros_like(out[3]))


@pytest.mark.parametrize("n_pad", [0, 1, 6])
@pytest.mark.parametrize("sign", [1, -1])
def test_cross_attention_of_extreme_scores(sign, n_pad):
    """Scores near 1e4, all of one sign or mixed: nothing overflows, and no weight is lost."""
    q = torch.full((2, 1, 2, 4), 100.0)
    k = sign * torch.tensor([200.0, 199.9, 100.0]).view(1, 1, 3, 1).expand(2, 1, 3, 4).clone()
    k[1, 0, 1] *= -1
    v = torch.arange(1.0, 25.0).view(2, 1, 3, 4)
    lengths, pads = torch.tensor([3, 2]), torch.tensor([n_pad, n_pad])
    out = reference.cross_attention(q, k, v, lengths, pads)
    assert_close(out.double(), padded_softmax(q, k, v, lengths, pads), rtol=1e-3, atol=1e-3)


def test_cross_attention_never_uses_slots_past_the_length():
    q, k, v, lengths, n_pad = make_attention()
    expected = reference.cross_attention(q, k, v, lengths, n_pad)
    for row, n in enumerate(lengths):
        k[row, :, n:] = float("nan")
        v[row, :, n:] = float("inf")
    assert torch.equal(reference.cross_attention(q, k, v, lengths, n_pad), expected)


def test_cross_attention_of_empty_rows_and_sizes():
    q, k, v, _, _ = make_attention()
    none = torch.zeros(4, dtype=torch.int64)
    assert not reference.cross_attention(q, k, v, none, none).any()
    assert not reference.cross_attention(q, k[:, :, :0], v[:, :, :0], none, none + 2).any()
    out = reference.cross_attention(q[:, :, :0], k, v, none + 2, none)
    assert out.shape == (4, 2, 0, 5)


# 1 + 2^-24 is 1 in float32: the small terms survive only where they are added up first.
ORDERS = [((1.0, 2.0**-24, 2.0**-24), 1.0), ((2.0**-24, 2.0**-24, 1.0), 1 + 2.0**-23)]


@pytest.mark.parametrize(("values", "total"), ORDERS)
def test_sums_are_in_the_order_of_the_codebooks(values, total):
    tables, codes = [torch.full((3, 2), value) for value in values], torch.ones(2, 3, 5).long()
    assert torch.equal(reference.codebook_embedding(codes, tables), torch.full((2, 5, 2), total))
    for op in (reference, dispatch):
        assert torch.equal(op.rvq_decode(codes, tables), torch.full((2, 2, 5), total))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_codebook_embedding_against_a_loop(dtype):
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(6, 3, generator=generator).to(dtype) for _ in range(3)]
    codes = torch.randint(0, 6, (2, 3, 5), generator=generator)
    out = reference.codebook_embedding(codes, tables)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for b in range(2):
        for s in range(5):
            rows = [tables[k][codes[b, k, s]].to(out.dtype) for k in range(3)]
            assert torch.equal(out[b, s], rows[0] + rows[1] + rows[2])
    single = reference.codebook_embedding(codes[:, :1], tables[:1])
    assert single.dtype == out.dtype


def test_rvq_decode_against_a_loop_with_fewer_codebooks_than_tables():
    generator = torch.Generator().manual_seed(1)
    books = [torch.randn(7, 3, generator=generator) for _ in range(4)]
    codes = torch.randint(0, 7, (2, 2, 5), generator=generator)
    out = reference.rvq_decode(codes, books)
    for b in range(2):
        for t in range(5):
            expected = books[0][codes[b, 0, t]] + books[1][codes[b, 1, t]]
            assert torch.equal(out[b, :, t], expected)


@pytest.mark.parametrize(
    ("x", "weight", "out"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.float16, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_layer_norm_computes_and_returns_at_least_float32(x, weight, out):
    generator = torch.Generator().manual_seed(2)
    values = (100 + torch.randn(3, 16, generator=generator)).to(x)
    scale, bias = (torch.randn(16, generator=generator).to(weight) for _ in range(2))
    result = reference.layer_norm(values, scale, bias, 1e-5)
    assert result.dtype == out
    wide = values.double()
    unit = (wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, False, keepdim=True) + 1e-5).sqrt()
    assert_close(result.double(), unit * scale.double() + bias.double(), rtol=1e-4, atol=2e-4)
    no_bias = reference.layer_norm(values, scale, None, 1e-5)
    assert_close(no_bias.double(), unit * scale.double(), rtol=1e-4, atol=2e-4)


def run_dispatched():
    """What was chosen, and results of every dispatched op."""
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 9, (3, 4, 11), generator=generator)
    books = [torch.randn(9, 6, generator=generator) for _ in range(4)]
    seeds, items = torch.tensor([-3, 2**40]), torch.tensor([0, 2**32 - 1])
    noise = dispatch.philox_exponential(seeds, items, 77, 4, 13)
    return dispatch.implementations(), dispatch.rvq_decode(codes, books), noise


def test_the_fast_paths_can_be_turned_off_and_are_bit_equal_to_the_reference(tmp_path):
    probe = f"import torch\nfrom audiogen_fast.ops import dispatch\n{getsource(run_dispatched)}"
    probe += (
        f"\ntorch.save((dispatch.fast_paths_enabled(), run_dispatched()), {str(tmp_path / 'r')!r})"
    )
    environment = {**os.environ, "AUDIOGEN_FAST_BACKEND": "reference"}
    subprocess.run([sys.executable, "-c", probe], env=environment, check=True)
    enabled, (chosen, decoded, noise) = torch.load(tmp_path / "r")
    assert not enabled and set(chosen.values()) == {"reference"}
    here, fast_decoded, fast_noise = run_dispatched()
    assert set(here.values()) == {"native" if native.available() else "reference"}
    assert torch.equal(decoded, fast_decoded)
    assert torch.equal(noise, fast_noise)


def test_an_unknown_backend_is_refused(monkeypatch):
    monkeypatch.setenv("AUDIOGEN_FAST_BACKEND", "fastest")
    with pytest.raises(InvalidInputError, match="auto, reference, got fastest"):
        dispatch.fast_paths_enabled()


def test_differentiable_codebooks_take_the_reference():
    books = [torch.randn(5, 3, requires_grad=True) for _ in range(2)]
    codes = torch.tensor([[[0, 4, 4], [1, 1, 1]]])
    dispatch.rvq_decode(codes, books).sum().backward()
    assert books[0].grad[:, 0].tolist() == [1, 0, 0, 0, 2]
    assert books[1].grad[:, 0].tolist() == [0, 3, 0, 0, 0]
