"""The kernel against the reference, on a GPU or, in its own process, interpreted on the CPU."""

import os

import pytest
import torch

from audiogen_fast.ops import reference

codebook_embedding = pytest.importorskip("audiogen_fast.kernels.codebook_embedding")
launch = codebook_embedding.codebook_embedding
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [  # B, K, S, card, D
    (1, 1, 1, 1, 4),
    (2, 4, 1, 16, 64),
    (3, 9, 2, 7, 6),
    (2, 3, 5, 11, 130),
    (1, 4, 2, 5, 516),
]


def make(shape, dtype=torch.float32, seed=0):
    batch, n_codebooks, steps, card, dim = shape
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, card + 1, (batch, n_codebooks, steps), generator=generator)
    tables = torch.randn(n_codebooks, card + 1, dim, generator=generator)
    return codes.to(DEVICE), tables.to(DEVICE, dtype)


def guarded(shape):
    """A NaN tensor of `shape` in the middle of a buffer, and that buffer."""
    size = torch.Size(shape).numel()
    buffer = torch.full([size + 128], float("nan"), device=DEVICE)
    return buffer[64 : 64 + size].view(shape), buffer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_sum_equals_reference_and_writes_only_its_output(shape, dtype):
    codes, tables = make(shape, dtype)
    out, buffer = guarded((shape[0], shape[2], shape[4]))
    assert launch(codes, tables, out=out) is out
    # One rounding per addition in the same order: equal to the last bit.
    assert torch.equal(out, reference.codebook_embedding(codes, list(tables)))
    assert buffer[:64].isnan().all() and buffer[-64:].isnan().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_positions(shape):
    codes, tables = make(shape)
    batch, _, steps, _, dim = shape
    generator = torch.Generator().manual_seed(1)
    positions = torch.randint(0, 1500, (batch, steps), generator=generator).to(DEVICE)
    expected = reference.codebook_embedding(codes, list(tables))
    expected = expected + reference.sin_embedding(positions, dim)
    actual = launch(codes, tables, positions)
    assert actual.dtype == torch.float32
    # Both divide with IEEE rounding; what is left is an ulp of the cosine and of the sum.
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_known_values_of_the_position():
    tables = torch.zeros(1, 1, 1536, device=DEVICE)
    codes = torch.zeros(1, 1, 2, dtype=torch.int64, device=DEVICE)
    zero, one = launch(codes, tables, torch.tensor([[0, 1]], device=DEVICE))[0]
    assert torch.equal(zero[:768], torch.ones_like(zero[:768]))
    assert torch.equal(zero[768:], torch.zeros_like(zero[768:]))
    expected = torch.tensor([0.540302, 0.999999995, 0.841471, 9.9999999833e-05])
    torch.testing.assert_close(one[[0, 767, 768, 1535]].cpu(), expected, rtol=0, atol=1e-6)


def test_float16_tables_are_summed_in_float32():
    tables = torch.full((4, 1, 8), 65504.0, dtype=torch.float16, device=DEVICE)
    codes = torch.zeros(1, 4, 1, dtype=torch.int64, device=DEVICE)
    assert torch.equal(launch(codes, tables), torch.full((1, 1, 8), 4 * 65504.0, device=DEVICE))


def test_strided_codes_and_expanded_positions():
    codes, tables = make((2, 3, 5, 11, 32))
    strided = codes.permute(2, 0, 1).contiguous().permute(1, 2, 0).to(torch.int32)
    positions = torch.arange(5, device=DEVICE).expand(2, 5)
    assert not strided.is_contiguous() and not positions.is_contiguous()
    expected = launch(codes, tables, positions.contiguous())
    assert torch.equal(launch(strided, tables, positions), expected)


@pytest.mark.parametrize("wrong", [-1, 12, 2**40])
def test_code_outside_the_table_gives_nan_in_its_row_only(wrong):
    codes, tables = make((2, 3, 2, 11, 10))
    codes[1, 2, 0] = wrong
    rows = launch(codes, tables).isnan()
    assert rows[1, 0].all() and rows.sum() == 10


def test_half_precision_output():
    codes, tables = make((2, 3, 2, 11, 10))
    out = torch.empty(2, 2, 10, dtype=torch.float16, device=DEVICE)
    launch(codes, tables, out=out)
    assert torch.equal(out, launch(codes, tables).to(torch.float16))


@pytest.mark.parametrize("shape", [(0, 2, 3, 5, 8), (2, 2, 0, 5, 8)])
def test_nothing_to_do(shape):
    codes, tables = make(shape)
    assert launch(codes, tables).shape == (shape[0], shape[2], 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(2, 3, dtype=torch.int64)}, r"codes must be \[B, K, S\]"),
        ({"codes": torch.zeros(2, 3, 5)}, "codes must be int64 or int32, got torch.float32"),
        ({"codes": torch.zeros(2, 4, 5, dtype=torch.int64)}, "the 4 codebooks of codes, got 3"),
        ({"tables": torch.zeros(3, 12)}, r"tables must be \[K, card \+ 1, D\]"),
        ({"tables": torch.zeros(3, 12, 8, dtype=torch.float64)}, "tables must be a float dtype"),
        ({"tables": torch.zeros(3, 8, 12).mT}, "tables must be contiguous"),
        ({"tables": torch.zeros(3, 12, 7)}, "D must be even and at least 4, got 7"),
        ({"positions": torch.zeros(2, dtype=torch.int64)}, r"positions must be \(2, 5\)"),
        ({"positions": torch.zeros(2, 5)}, "positions must be int64 or int32"),
        ({"out": torch.zeros(2, 5, 9)}, r"out must be \(2, 5, 8\)"),
        ({"out": torch.zeros(2, 5, 8, dtype=torch.int32)}, "out must be a float dtype"),
        ({"out": torch.zeros(2, 8, 5).mT}, "out must be contiguous"),
        ({"tables": torch.zeros(3, 12, 8, device="meta")}, "must be on the device of tables"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {
        "codes": torch.zeros(2, 3, 5, dtype=torch.int64),
        "tables": torch.zeros(3, 12, 8),
        "positions": torch.zeros(2, 5, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        launch(**{**arguments, **change})
