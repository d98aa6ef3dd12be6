"""The feed-forward block and its gradients against the reference in float64."""

import math
import os

import pytest
import torch
import torch.nn.functional as F

from audiogen_fast.ops import reference

module = pytest.importorskip("audiogen_fast.kernels.mlp")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EXTREMES = [0.0, -0.0, 1e-30, -1e-30, 1.0, -1.0, 5.5, -5.5, -13.0, 40.0, -40.0, 1e4, -1e4, 6e4]


def make(shape, hidden, dtype):
    generator = torch.Generator().manual_seed(0)
    width = shape[-1]
    x = torch.randn(shape, generator=generator)
    weight1 = torch.randn(hidden, width, generator=generator) / math.sqrt(width)
    weight2 = torch.randn(width, hidden, generator=generator) / math.sqrt(hidden)
    grad = torch.randn(shape, generator=generator)
    return [t.to(DEVICE, dtype) for t in (x, weight1, weight2, grad)]


def autograd(x, weight1, weight2, grad, dtype):
    inputs = [t.to(dtype).requires_grad_() for t in (x, weight1, weight2)]
    out = reference.mlp(*inputs)
    return [out, *torch.autograd.grad(out, inputs, grad.to(dtype))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 1000, 1024, 2500])
def test_gelu_and_its_derivative(size, dtype, monkeypatch):
    like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: like(*a, **k).fill_(float("nan")))
    generator = torch.Generator().manual_seed(0)
    u = 3 * torch.randn(size, generator=generator)
    u[: min(size, len(EXTREMES))] = torch.tensor(EXTREMES[:size])
    u = u.to(DEVICE, dtype)
    grad = torch.randn(size, generator=generator).to(DEVICE, dtype)
    wide = u.double().requires_grad_()
    exact = F.gelu(wide)
    (exact_grad,) = torch.autograd.grad(exact, wide, grad.double())
    out = module.gelu(u)
    epsilon = torch.finfo(dtype).eps
    # 0.5 + 0.5 erf cancels in the left tail, as it does in torch's float32.
    floor = 2e-6
    torch.testing.assert_close(out.double(), exact.detach(), rtol=epsilon, atol=floor)
    again = module.gelu_backward_(grad, u)
    assert torch.equal(again, out)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=epsilon + 1e-6, atol=floor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "hidden"), [((1, 1), 1), ((2, 3, 8), 20), ((5, 33), 70)])
def test_results_and_gradients(shape, hidden, dtype):
    x, weight1, weight2, grad = make(shape, hidden, dtype)
    out, kept = module.mlp(x, weight1, weight2)
    actual = [out, *module.mlp_backward(grad, x, kept, weight1, weight2)]
    exact = autograd(x, weight1, weight2, grad, torch.float64)
    plain = autograd(x, weight1, weight2, grad, dtype)
    for one, other, third in zip(actual, plain, exact, strict=True):
        assert one.shape == other.shape and one.dtype == dtype
        error = (one.double() - third).abs().max()
        allowed = (other.double() - third).abs().max()
        # The interpreter cuts bfloat16 off instead of rounding it.
        floor = 2**-7 if INTERPRETED and dtype == torch.bfloat16 else 1e-6
        assert error <= 2 * allowed + floor * third.abs().max(), (error, allowed)


def test_strided_input_and_no_rows():
    x, weight1, weight2, grad = make((4, 6, 8), 20, torch.float32)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    out, kept = module.mlp(x, weight1, weight2)
    other, other_kept = module.mlp(strided, weight1, weight2)
    assert torch.equal(out, other)
    expected = module.mlp_backward(grad, x, kept, weight1, weight2)
    grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    actual = module.mlp_backward(grad, strided, other_kept, weight1, weight2)
    assert all(map(torch.equal, actual, expected))
    out, kept = module.mlp(x[:0], weight1, weight2)
    grads = module.mlp_backward(out, x[:0], kept, weight1, weight2)
    assert out.shape == (0, 6, 8) and not grads[1].any() and not grads[2].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight1": torch.zeros(20, 9)}, r"weight1 must be \[F, 8\]"),
        ({"weight2": torch.zeros(8, 21)}, r"weight2 must be \[D, 20\]"),
        ({"x": torch.zeros(2, 8, dtype=torch.float16)}, "x must be of the dtype of weight1"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"x": torch.zeros(2, 8), "weight1": torch.zeros(20, 8)}
    arguments["weight2"] = torch.zeros(8, 20)
    with pytest.raises(ValueError, match=message):
        module.mlp(**{**arguments, **change})


def test_wrong_dtype_of_the_activation():
    with pytest.raises(ValueError, match="a float dtype, got torch.float64"):
        module.gelu(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="must be contiguous"):
        module.gelu(torch.zeros(6)[::2])
