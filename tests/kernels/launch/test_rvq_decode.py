"""The kernel against the reference, bit for bit."""

import os

import pytest
import torch

from audiogen_fast.ops import reference

module = pytest.importorskip("audiogen_fast.kernels.rvq_decode")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
SHAPES = [(1, 1, 1, 1, 1), (2, 4, 5, 16, 24), (1, 9, 33, 3, 65), (3, 2, 70, 7, 128)]


def make(shape, dtype=torch.float32, extra=1):
    batch, n_codebooks, frames, card, dim = shape
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, card, (batch, n_codebooks, frames), generator=generator)
    books = [torch.randn(card, dim, generator=generator) for _ in range(n_codebooks + extra)]
    return codes.to(DEVICE), [book.to(DEVICE, dtype) for book in books]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(shape, dtype, monkeypatch):
    codes, books = make(shape, dtype)
    expected = reference.rvq_decode(codes, books)
    if dtype == torch.bfloat16 and INTERPRETED:
        expected = cut_off(codes, books)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    actual = module.rvq_decode(codes, books)
    assert actual.dtype == dtype and actual.is_contiguous()
    assert torch.equal(actual, expected)


def cut_off(codes, books):
    """The sum as the interpreter makes it: it cuts float32 off to bfloat16 instead of rounding."""
    total = torch.zeros(())
    for k in range(codes.shape[1]):
        total = (total + books[k][codes[:, k]].float()).view(torch.int32) & ~0xFFFF
        total = total.view(torch.float32)
    return total.transpose(1, 2).to(torch.bfloat16)


@pytest.mark.parametrize("wrong", [-1, 7, 2**40])
def test_code_outside_its_codebook_gives_nan_in_its_frame_only(wrong):
    codes, books = make((2, 3, 4, 7, 10))
    codes[1, 2, 3] = wrong
    frames = module.rvq_decode(codes, books).isnan()
    assert frames[1, :, 3].all() and frames.sum() == 10


def test_strided_int32_codes_and_nothing_to_do():
    codes, books = make((2, 3, 4, 7, 10))
    strided = codes.permute(2, 1, 0).contiguous().permute(2, 1, 0).to(torch.int32)
    assert torch.equal(module.rvq_decode(strided, books), module.rvq_decode(codes, books))
    assert module.rvq_decode(codes[:0], books).shape == (0, 10, 4)
    assert module.rvq_decode(codes[:, :, :0], books).shape == (2, 10, 0)


@pytest.mark.parametrize(
    ("codes", "books", "message"),
    [
        (torch.zeros(3, 4).long(), [torch.zeros(7, 8)] * 3, r"codes must be \[B, K, T\]"),
        (torch.zeros(2, 3, 4), [torch.zeros(7, 8)] * 3, "codes must be int64 or int32"),
        (torch.zeros(2, 4, 4).long(), [torch.zeros(7, 8)] * 3, "between 1 and 3 codebooks, got 4"),
        (torch.zeros(2, 3, 4).long(), [torch.zeros(7, 8).double()] * 3, "must be a float dtype"),
        (
            torch.zeros(2, 2, 4).long(),
            [torch.zeros(7, 8), torch.zeros(6, 8)],
            r"codebooks\[1\] must have the shape",
        ),
        (torch.zeros(2, 1, 4).long(), [torch.zeros(8, 7).t()], r"codebooks\[0\] must be contig"),
        (torch.zeros(2, 1, 4).long(), [torch.zeros(8, 7, device="meta")], "codes must be on the"),
    ],
)
def test_wrong_arguments(codes, books, message):
    with pytest.raises(ValueError, match=message):
        module.rvq_decode(codes, books)
