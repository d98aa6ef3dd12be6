"""Gradient of the tables, against float64 autograd of the reference."""

import os

import pytest
import torch

from audiogen_fast.ops import reference

module = pytest.importorskip("audiogen_fast.kernels.codebook_embedding")
backward = module.codebook_embedding_backward
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [  # B, K, S, card, D
    (1, 1, 1, 1, 4),
    (2, 4, 3, 5, 64),
    (3, 9, 2, 7, 6),
    (2, 3, 19, 2, 130),
    (1, 2, 3, 4, 516),
]


def make(shape, dtype=torch.float32):
    batch, n_codebooks, steps, card, dim = shape
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, card + 1, (batch, n_codebooks, steps), generator=generator)
    grad = torch.randn(batch, steps, dim, generator=generator).to(dtype)
    return grad.to(DEVICE), codes.to(DEVICE), card + 1


def expected(grad, codes, rows):
    tables = [
        torch.zeros(rows, grad.shape[-1], dtype=torch.float64, device=DEVICE, requires_grad=True)
        for _ in range(codes.shape[1])
    ]
    out = reference.codebook_embedding(codes, tables)
    return torch.stack(torch.autograd.grad(out, tables, grad.double()))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_float64_autograd(shape, dtype, deterministic):
    grad, codes, rows = make(shape, dtype)
    actual = backward(grad, codes, rows, deterministic)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected(grad, codes, rows), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("deterministic", [False, True])
def test_strides_and_int32_codes(deterministic):
    grad, codes, rows = make((2, 3, 5, 4, 32))
    strided = codes.permute(2, 0, 1).contiguous().permute(1, 2, 0).to(torch.int32)
    other = grad.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous() and not other.is_contiguous()
    result = backward(other, strided, rows, deterministic)
    assert torch.equal(result, backward(grad, codes, rows, deterministic))


@pytest.mark.parametrize("deterministic", [False, True])
def test_codes_outside_the_table_add_nothing(deterministic):
    grad, codes, rows = make((1, 2, 6, 4, 8))
    codes[0, 1, :3] = torch.tensor([-1, rows, 2**40], device=DEVICE)
    kept = grad.clone()
    kept[:, :3] = 0
    result = backward(grad, codes, rows, deterministic)
    inside = torch.where(codes.abs() < rows, codes, 0).clamp(min=0)
    assert torch.equal(result[1], backward(kept, inside, rows, deterministic)[1])
    assert result[0].abs().sum() > 0


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("shape", [(0, 2, 3, 5, 8), (2, 2, 0, 5, 8)])
def test_without_tokens_the_gradient_is_zero(shape, deterministic):
    result = backward(*make(shape), deterministic)
    assert result.shape == (2, 6, 8) and not result.any()


def test_the_deterministic_order_is_that_of_the_tokens(monkeypatch):
    """Small terms before a large one survive in float32 only in this order; and all is written."""
    monkeypatch.setattr(torch, "empty", lambda *a, **k: torch.full(a, float("nan"), **k))
    grad = torch.ones(1, 17, 1, device=DEVICE)
    grad[0, :16] = 2.0**-24
    codes = torch.ones(1, 1, 17, dtype=torch.int64, device=DEVICE)
    result = backward(grad, codes, 3, True)
    assert result.flatten().tolist() == [0.0, 1 + 2.0**-20, 0.0]
    assert torch.equal(backward(grad, codes, 3, True), result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(2, 3, dtype=torch.int64)}, r"codes must be \[B, K, S\]"),
        ({"codes": torch.zeros(2, 3, 5)}, "codes must be int64 or int32"),
        ({"grad": torch.zeros(2, 4, 8)}, r"grad must be \[2, 5, D\]"),
        ({"grad": torch.zeros(2, 5, 8, dtype=torch.float64)}, "grad must be a float dtype"),
        ({"grad": torch.zeros(2, 5, 8, device="meta")}, "grad must be on the device of codes"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"grad": torch.zeros(2, 5, 8), "codes": torch.zeros(2, 3, 5, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        backward(**{**arguments, **change}, rows=4)
