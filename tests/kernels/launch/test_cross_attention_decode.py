"""Cross-attention to cached text against the reference, on a GPU or interpreted on the CPU."""

import os

import pytest
import torch

from audiogen_fast.ops import reference

module = pytest.importorskip("audiogen_fast.kernels.cross_attention_decode")
launch = module.cross_attention_decode
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
NAN = float("nan")


def make(heads, text, width, lengths, pads, dtype=torch.float32, seed=0):
    """(q, keys, values, lengths, n_pad): random, NaN from each row's length on."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(lengths)
    q = torch.randn(rows, heads * width, generator=generator).to(DEVICE, dtype)
    cache = torch.randn(2, rows, heads, text, width, generator=generator).to(DEVICE, dtype)
    for row, length in enumerate(lengths):
        cache[:, row, :, length:] = NAN
    numbers = (torch.tensor(n, dtype=torch.int32, device=DEVICE) for n in (lengths, pads))
    return q, cache[0], cache[1], *numbers


def exact(q, keys, values, lengths, pads):
    rows, heads, _, width = keys.shape
    q = q.view(rows, heads, 1, width).double()
    # Only the caches of rows shorter than the text hold NaN; the reference masks after a product.
    keys, values = keys.double().nan_to_num(), values.double().nan_to_num()
    return reference.cross_attention(q, keys, values, lengths, pads).flatten(1)


CASES = [
    (1, 1, 1, [1], [0]),
    (2, 5, 8, [5, 2, 0], [0, 3, 5]),
    (3, 16, 20, [16, 1], [0, 0]),
    (2, 150, 16, [150, 64, 65, 0], [0, 86, 1, 0]),
]


@pytest.mark.parametrize(("heads", "text", "width", "lengths", "pads"), CASES)
def test_equals_the_reference_and_reads_only_real_text(heads, text, width, lengths, pads):
    arguments = make(heads, text, width, lengths, pads)
    out = torch.full((len(lengths), heads * width), NAN, device=DEVICE)
    assert launch(*arguments, out) is out
    torch.testing.assert_close(out.double(), exact(*arguments), rtol=2e-6, atol=2e-6)
    assert not any(out[row].any() for row, length in enumerate(lengths) if length == 0)


def test_padding_equals_zero_slots_that_are_attended_to():
    q, keys, values, lengths, pads = make(2, 7, 8, [3, 7], [4, 0])
    out = torch.full((2, 16), NAN, device=DEVICE)
    launch(q, keys, values, lengths, pads, out)
    padded = [cache.nan_to_num(0.0) for cache in (keys, values)]
    plain = torch.nn.functional.scaled_dot_product_attention(q.view(2, 2, 1, 8), *padded)
    torch.testing.assert_close(out, plain.flatten(1), rtol=1e-5, atol=1e-6)


def test_inactive_rows_write_nothing():
    arguments = make(2, 5, 8, [5, 0, 3, 4], [0, 5, 2, 1])
    out = torch.full((4, 16), NAN, device=DEVICE)
    launch(*arguments, out, active=torch.tensor([True, False], device=DEVICE))
    assert out[1::2].isnan().all()
    torch.testing.assert_close(out[::2].double(), exact(*arguments)[::2], rtol=2e-6, atol=2e-6)


def test_extreme_scores():
    """Neither far above the padding's score of 0, nor so far below that only padding counts."""
    q, keys, values, lengths, pads = make(1, 4, 4, [4, 4], [2, 0])
    keys = keys * 1e3
    out = torch.full((2, 4), NAN, device=DEVICE)
    launch(q, keys, values, lengths, pads, out)
    torch.testing.assert_close(
        out.double(), exact(q, keys, values, lengths, pads), rtol=1e-4, atol=1e-5
    )
    q, keys = torch.ones_like(q), torch.full_like(keys, -1e4)
    launch(q, keys, values, lengths, pads, out)
    assert not out[0].any()
    torch.testing.assert_close(out[1], values[1, 0].mean(0), rtol=1e-5, atol=1e-6)


def test_strided_caches():
    q, keys, values, lengths, pads = make(3, 6, 8, [4, 6], [2, 0])
    strided = [c.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for c in (keys, values)]
    out = torch.full((2, 24), NAN, device=DEVICE)
    launch(q, *strided, lengths, pads, out)
    expected = exact(q, keys, values, lengths, pads)
    torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_error_is_at_most_twice_that_of_torch(dtype):
    q, keys, values, lengths, pads = make(4, 12, 32, [12, 12], [0, 0], dtype)
    out = torch.full((2, 128), NAN, device=DEVICE, dtype=dtype)
    launch(q, keys, values, lengths, pads, out)
    theirs = torch.nn.functional.scaled_dot_product_attention(q.view(2, 4, 1, 32), keys, values)
    right = exact(q, keys, values, lengths, pads)
    assert (out - right).norm() <= 2 * (theirs.flatten(1) - right).norm()


def test_nothing_to_do():
    empty = torch.empty(0, 2, 4, 8, device=DEVICE)
    numbers = torch.empty(0, dtype=torch.int32, device=DEVICE)
    out = torch.empty(0, 16, device=DEVICE)
    assert launch(torch.empty(0, 16, device=DEVICE), empty, empty, numbers, numbers, out) is out
    # Rows of a model whose text has no slots at all.
    none = torch.empty(2, 2, 0, 8, device=DEVICE)
    numbers = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    out = torch.full((2, 16), NAN, device=DEVICE)
    launch(torch.ones(2, 16, device=DEVICE), none, none, numbers, numbers, out)
    assert not out.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(2, 8, 4)}, r"keys must be \[R, H, L, d\]"),
        ({"q": torch.zeros(2, 5)}, r"q must have the shape \(2, 8\)"),
        ({"values": torch.zeros(2, 2, 6, 4, dtype=torch.float16)}, "values must be one of"),
        ({"values": torch.zeros(6, 2, 2, 4).transpose(0, 2)}, "same strides"),
        ({"lengths": torch.zeros(2, dtype=torch.int64)}, "lengths must be one of.*int32"),
        ({"n_pad": torch.zeros(3, dtype=torch.int32)}, r"n_pad must have the shape \(2,\)"),
        ({"out": torch.zeros(8, 2).t()}, "out must be contiguous"),
        ({"active": torch.ones(2)}, "active must be one of.*bool"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {
        "q": torch.zeros(2, 8),
        "keys": torch.zeros(2, 2, 6, 4),
        "values": torch.zeros(2, 2, 6, 4),
        "lengths": torch.zeros(2, dtype=torch.int32),
        "n_pad": torch.zeros(2, dtype=torch.int32),
        "out": torch.zeros(2, 8),
    }
    with pytest.raises(ValueError, match=message):
        launch(**{**arguments, **change})
