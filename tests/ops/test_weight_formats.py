"""int8 and int4 weights: the documented rule, the layout, and the native engine's own numbers."""

import math
import struct

import pytest
import torch

from audiogen_fast import InvalidInputError
from audiogen_fast._backend import load_native
from audiogen_fast.ops.weight_formats import dequantize, integers, quantize

NATIVE, REASON = load_native()
CASES = [("int8", 128), ("int4", 64), ("int4", 128)]
SHAPES = [(1, 1), (3, 5), (17, 64), (16, 130), (5, 300)]


def matrix(shape, scale=1.0, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def bfloat16_up(value: float) -> float:
    """The smallest bfloat16 that is not below a float32 `value >= 0`, by its bits."""
    bits = struct.unpack("I", struct.pack("f", value))[0]
    return struct.unpack("f", struct.pack("I", (bits + 0xFFFF) & 0xFFFF0000))[0]


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("format", "group"), CASES)
def test_values_follow_the_rule(format, group, shape, scale):
    """One by one, in plain Python: the scale, and the nearest of its multiples."""
    weight = matrix(shape, scale)
    packed = quantize(weight, format, group)
    actual, columns = dequantize(packed), shape[1] if format == "int8" else group
    limit = 127 if format == "int8" else 7
    for row in range(0, shape[0], 4):
        for begin in range(0, shape[1], columns):
            part = weight[row, begin : begin + columns]
            exact = (part.abs().max() / limit).item()
            step = exact if format == "int8" else bfloat16_up(exact)
            quotients = (part / torch.tensor(step)).tolist()
            expected = [max(-limit, min(limit, round(q))) for q in quotients]
            multiples = torch.tensor(expected).float() * torch.tensor(step)
            assert torch.equal(actual[row, begin : begin + columns], multiples)


@pytest.mark.parametrize(("format", "group"), CASES)
def test_layout(format, group):
    packed = quantize(matrix((5, 300)), format, group)
    q = integers(packed)
    assert packed.data.is_contiguous() and packed.scale.is_contiguous()
    assert not q[:, 300:].any()
    if format == "int8":
        assert packed.data.shape == (5, 304) and packed.scale.shape == (5,)
        return
    padded = math.ceil(300 / group) * group
    assert packed.data.shape == (5, padded // 2) and packed.scale.shape == (5, padded // group)
    for column in (0, 1, group // 2 - 1, group // 2, group - 1, group, 299):
        place, j = divmod(column, group)
        byte = packed.data[:, place * group // 2 + j % (group // 2)].int()
        nibble = byte & 15 if j < group // 2 else byte >> 4
        assert torch.equal(nibble - 8, q[:, column].int())


@pytest.mark.parametrize(("format", "group"), CASES)
def test_zero_rows_and_the_largest_value(format, group):
    weight = torch.zeros(3, 70)
    weight[1, 69] = -3e38
    weight[2] = 0.1
    packed = quantize(weight, format, group)
    actual = dequantize(packed)
    assert actual.isfinite().all() and not actual[0].any() and not actual[1, :69].any()
    assert abs(actual[1, 69] / -3e38 - 1) < 0.01
    assert integers(packed)[2, 3] == (127 if format == "int8" else 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_widened_first(dtype):
    weight = matrix((4, 64)).to(dtype)
    expected = quantize(weight.float(), "int4", 64)
    assert torch.equal(quantize(weight, "int4", 64).data, expected.data)


@pytest.mark.parametrize(("format", "group"), CASES)
def test_bytes(format, group):
    packed = quantize(matrix((16, 256)), format, group)
    expected = 16 * 256 + 16 * 4 if format == "int8" else 16 * 128 + 16 * (256 // group) * 2
    assert packed.nbytes == expected


@pytest.mark.skipif(NATIVE is None, reason=f"no native module: {REASON}")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("format", "group"), CASES)
def test_the_native_engine_packs_the_same_numbers(format, group, shape):
    """Unit vectors pick single columns out of the native engine's packed product.

    A unit vector quantises to 127 with the scale 1 / 127, so each product is the weight, off by
    the rounding of 127 * (1 / 127) and of the product: far less than one step.
    """
    n, k = shape
    weight, x = matrix(shape, seed=3), torch.eye(k)
    out = torch.full((k, n), float("nan"))
    NATIVE.packed_multiply(
        format, group, "portable", weight.data_ptr(), n, k, 0, x.data_ptr(), k, False,
        out.data_ptr(),
    )  # fmt: skip
    expected = dequantize(quantize(weight, format, group))
    torch.testing.assert_close(out.t(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 4), "int2"), "format must be one of.*int2"),
        ((torch.ones(3, 4), "int4", 32), "group must be one of.*32"),
        ((torch.ones(3), "int8"), r"matrix \[N, K\], got torch.float32 \(3,\)"),
        ((torch.ones(0, 4), "int8"), r"\(0, 4\)"),
        ((torch.ones(3, 4, dtype=torch.int32), "int8"), "floating.*int32"),
        ((torch.full((3, 4), float("nan")), "int8"), "finite"),
        ((torch.full((3, 4), float("inf")), "int4"), "finite"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        quantize(*arguments)
