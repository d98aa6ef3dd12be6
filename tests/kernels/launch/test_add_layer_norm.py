"""Add and layer norm, forward and backward, against the reference in float64."""

import os

import pytest
import torch

from audiogen_fast.ops import reference

module = pytest.importorskip("audiogen_fast.kernels.add_layer_norm")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
SHAPES = [(1, 1), (3, 7), (2, 3, 64), (5, 130), (1, 1536)]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
]


def make(shape, dtype=torch.float32, residual_dtype=torch.float32, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    residual = (offset + torch.randn(shape, generator=generator)).to(residual_dtype)
    weight, bias = (torch.randn(shape[-1], generator=generator) for _ in range(2))
    return [t.to(DEVICE) for t in (x, residual, weight, bias)]


def gradients(arguments, grad_out, grad_sum, dtype=torch.float64):
    """Results and gradients of the reference, computed in `dtype`."""
    wide = [t.to(dtype).requires_grad_() for t in arguments]
    out, total = reference.add_layer_norm(*wide, 1e-5)
    grads = torch.autograd.grad((out, total), wide, (grad_out.to(dtype), grad_sum.to(dtype)))
    return out, total, grads


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory is NaN, so that what a kernel does not write shows."""
    empty, like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: like(*a, **k).fill_(float("nan")))


def at_most_twice(actual, plain, exact):
    """Our error is at most twice that of torch in the same dtype."""
    error, allowed = (actual.double() - exact).abs().max(), (plain.double() - exact).abs().max()
    floor = 1e-6 * exact.abs().max().clamp(min=1)
    if INTERPRETED and actual.dtype == torch.bfloat16:
        floor *= 2**-7 / 1e-6  # the interpreter cuts bfloat16 off instead of rounding it
    assert error <= 2 * allowed + floor, (error, allowed)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward(shape, dtypes, poisoned):
    arguments = make(shape, *dtypes)
    out, total, _, _ = module.add_layer_norm(*arguments, 1e-5)
    plain, plain_total = reference.add_layer_norm(*arguments, 1e-5)
    assert out.dtype == torch.float32 and total.dtype == dtypes[1]
    ulp = 2**-7 if INTERPRETED and dtypes[1] == torch.bfloat16 else 0
    torch.testing.assert_close(total, plain_total, rtol=ulp, atol=0)
    # From the rounded sum, as the reference defines it.
    exact = reference.layer_norm(total.double(), *[t.double() for t in arguments[2:]], 1e-5)
    at_most_twice(out, plain, exact)
    half = module.add_layer_norm(*arguments, 1e-5, torch.float16)[0]
    assert torch.equal(half, out.to(torch.float16))


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_backward(shape, dtypes, poisoned):
    arguments = make(shape, *dtypes)
    generator = torch.Generator().manual_seed(1)
    grad_out = torch.randn(shape, generator=generator).to(DEVICE)
    grad_sum = torch.randn(shape, generator=generator).to(DEVICE, dtypes[1])
    _, total, mean, rstd = module.add_layer_norm(*arguments, 1e-5)
    actual = module.add_layer_norm_backward(grad_out, grad_sum, total, arguments[2], mean, rstd)
    assert [t.dtype for t in actual] == [dtypes[1], torch.float32, torch.float32]
    start = [torch.zeros_like(total), total, *arguments[2:]]
    _, _, exact = gradients(start, grad_out, grad_sum)
    _, _, plain = gradients(start, grad_out, grad_sum, torch.float32)
    plain = [plain[1].to(dtypes[1]), *plain[2:]]
    for one, other, third in zip(actual, plain, exact[1:], strict=True):
        at_most_twice(one, other, third)
    assert all(
        map(
            torch.equal,
            actual,
            module.add_layer_norm_backward(grad_out, grad_sum, total, arguments[2], mean, rstd),
        )
    )


def test_more_rows_than_programs_and_strided_rows(poisoned):
    x, residual, weight, bias = make((37, 24))
    wide = torch.full((37, 60), float("nan"), device=DEVICE)
    wide[:, 8:32], wide[:, 34:58] = x, residual
    expected = module.add_layer_norm(x, residual, weight, bias, 1e-5)
    actual = module.add_layer_norm(wide[:, 8:32], wide[:, 34:58], weight, bias, 1e-5)
    assert all(map(torch.equal, actual, expected))
    column = x.t().contiguous().t()  # last stride is not 1
    actual = module.add_layer_norm(column, residual, weight, bias, 1e-5)
    assert all(map(torch.equal, actual, expected))
    _, total, mean, rstd = expected
    grads = module.add_layer_norm_backward(x, residual, total, weight, mean, rstd)
    strided = module.add_layer_norm_backward(
        wide[:, 8:32], wide[:, 34:58], total, weight, mean, rstd
    )
    assert all(map(torch.equal, grads, strided))
    exact = gradients([torch.zeros_like(total), total, weight, bias], x, residual)[2]
    for one, third in zip(grads, exact[1:], strict=True):
        torch.testing.assert_close(one.double(), third, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", [1e4, -3e4])
def test_a_mean_far_from_zero_keeps_the_variance(offset):
    arguments = make((3, 256), offset=offset)
    out, total, mean, _ = module.add_layer_norm(*arguments, 1e-5)
    exact = reference.layer_norm(total.double(), *[t.double() for t in arguments[2:]], 1e-5)
    plain = reference.layer_norm(total, *arguments[2:], 1e-5)
    at_most_twice(out, plain, exact)
    torch.testing.assert_close(mean.double(), total.double().mean(-1), rtol=1e-6, atol=0)


def test_constant_rows_give_the_bias():
    _, _, weight, bias = make((2, 48))
    x = torch.full((2, 48), 3.0, device=DEVICE)
    out = module.add_layer_norm(x, -x, weight, bias, 1e-5)[0]
    assert torch.equal(out, bias.expand(2, 48))


def test_without_bias_and_without_rows():
    x, residual, weight, _ = make((4, 20))
    out = module.add_layer_norm(x, residual, weight, None, 1e-5)[0]
    plain, _ = reference.add_layer_norm(x, residual, weight, None, 1e-5)
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-6)
    out, total, mean, rstd = module.add_layer_norm(x[:0], residual[:0], weight, None, 1e-5)
    grads = module.add_layer_norm_backward(out, total, total, weight, mean, rstd)
    assert out.shape == (0, 20) and not grads[1].any() and not grads[2].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 9)}, r"x must be \(2, 8\), got \(2, 9\)"),
        ({"x": torch.zeros(2, 8, dtype=torch.int32)}, "x must be a float dtype"),
        ({"weight": torch.zeros(9)}, r"weight must be \[8\], got \(9,\)"),
        ({"bias": torch.zeros(16)[::2]}, "bias must be contiguous"),
        ({"out_dtype": torch.int64}, "out_dtype must be a float dtype, got torch.int64"),
        ({"weight": torch.zeros(8, device="meta")}, "weight must be on the device of x"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"x": torch.zeros(2, 8), "residual": torch.zeros(2, 8)}
    arguments |= {"weight": torch.zeros(8), "bias": torch.zeros(8), "eps": 1e-5}
    with pytest.raises(ValueError, match=message):
        module.add_layer_norm(**{**arguments, **change})
