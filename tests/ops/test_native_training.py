"""The native products and attention of training against float64, and against torch's errors."""

import math

import pytest
import torch
import torch.nn.functional as F

from audiogen_fast.errors import InvalidInputError, MissingDependencyError
from audiogen_fast.ops import autograd, cpu, native_training, reference

pytestmark = pytest.mark.skipif(
    not native_training.available(), reason="needs the native module and AVX-512"
)
NAN = float("nan")


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory is NaN, so that what is never written shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(NAN))


def at_most_twice_as_wrong(ours, torchs, exact):
    error, allowed = ((x.double() - exact).abs().max() for x in (ours, torchs))
    floor = 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert error <= 2 * allowed + floor, (error, allowed)


SHAPES = [
    (1, 1, 1), (7, 5, 3), (8, 48, 16), (9, 49, 17), (16, 33, 512), (100, 130, 513), (201, 96, 1030),
    (3, 3100, 20), (5, 7, 0),
]  # fmt: skip


@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape, transposed, poisoned):
    m, n, k = shape
    a = random(k, m, seed=1).t() if "a" in transposed else random(m, k, seed=1)
    b = random(n, k, seed=2).t() if "b" in transposed else random(k, n, seed=2)
    exact = a.double() @ b.double()
    actual = native_training.product(a, b)
    assert actual.shape == (m, n)
    at_most_twice_as_wrong(actual, a @ b, exact)
    # Into a part of a larger matrix, whose rest stays.
    whole = random(m + 2, n + 3, seed=3)
    before = whole.clone()
    native_training.product(a, b, whole[1:-1, 1:-2], alpha=-0.5, add=True)
    expected, plain = before.double(), before.clone()
    expected[1:-1, 1:-2] -= 0.5 * exact
    plain[1:-1, 1:-2].addmm_(a, b, alpha=-0.5)
    assert torch.equal(whole[0], before[0]) and torch.equal(whole[:, -2:], before[:, -2:])
    at_most_twice_as_wrong(whole, plain, expected)


def test_products_read_views_and_any_strides():
    a, b = random(20, 31, seed=1)[::2, 1::3], random(40, 9, seed=2)[5:15].t()
    assert a.shape[1] == 10 and 1 not in a.stride()
    actual = native_training.product(a, b.t())
    torch.testing.assert_close(actual, a @ b.t())


def test_products_do_not_depend_on_the_threads():
    a, b = random(301, 700, seed=1), random(700, 130, seed=2)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(native_training.product(a, b))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_products_of_what_is_not_finite():
    a, b = random(9, 20, seed=1), random(20, 50, seed=2)
    a[3, 4], b[5, 49] = NAN, math.inf
    actual = native_training.product(a, b)
    assert torch.equal(actual.isfinite(), (a @ b).isfinite())


def causal(q, k, v):
    return reference.causal_attention(q, k, v)


def text(lengths, n_pad):
    return lambda q, k, v: reference.cross_attention(q, k, v, lengths, n_pad)


def attention_case(B, H, T, L, d, scale=1.0):
    """Heads that are views of a projection, as in the model."""
    q = random(B, T, 3 * H * d, seed=1, scale=scale)
    q, k, v = (x.unflatten(-1, (H, d)).transpose(1, 2) for x in q.split(H * d, dim=-1))
    if L is not None:
        k, v = (random(B, L, H, d, seed=s, scale=scale).transpose(1, 2) for s in (2, 3))
    return (q, k, v), random(B, T, H, d, seed=4).transpose(1, 2)


def check_attention(tensors, grad, definition, lengths=None, n_pad=None):
    out, log_sums = native_training.attention(*tensors, lengths, n_pad)
    grads = native_training.attention_backward(grad, *tensors, log_sums, lengths, n_pad)
    results = []
    for dtype in (torch.float32, torch.float64):
        inputs = [t.detach().to(dtype).requires_grad_() for t in tensors]
        result = definition(*inputs)
        results.append([result, *torch.autograd.grad(result, inputs, grad.to(dtype))])
    for ours, torchs, exact in zip((out, *grads), *results, strict=True):
        at_most_twice_as_wrong(ours, torchs, exact)


ATTENTION = [(1, 1, 1, 8), (2, 3, 7, 8), (1, 2, 48, 16), (2, 1, 49, 64), (1, 1, 100, 24),
             (1, 2, 131, 128), (1, 1, 65, 5), (1, 1, 17, 200)]  # fmt: skip


@pytest.mark.parametrize("shape", ATTENTION)
def test_causal_attention(shape, poisoned):
    B, H, T, d = shape
    check_attention(*attention_case(B, H, T, None, d), causal)


@pytest.mark.parametrize("scale", [1e-3, 3.0, 10.0, 30.0])
def test_causal_attention_of_flat_and_peaked_scores(scale, poisoned):
    check_attention(*attention_case(1, 2, 60, None, 16, scale), causal)


@pytest.mark.parametrize("shape", [(4, 2, 5, 7, 8), (4, 1, 50, 33, 24), (4, 2, 1, 1, 16)])
def test_attention_to_text(shape, poisoned):
    L = shape[3]
    lengths, n_pad = torch.tensor([L, L // 2, 1, 0]), torch.tensor([0, 3, 8, 5])
    tensors, grad = attention_case(*shape)
    for row, n in enumerate(lengths):  # slots past the length are never used
        for x in tensors[1:]:
            x[row, :, n:] = NAN
    out, log_sums = native_training.attention(*tensors, lengths, n_pad)
    grads = native_training.attention_backward(grad, *tensors, log_sums, lengths, n_pad)
    assert not any(x.isnan().any() for x in (out, log_sums, *grads))
    assert not out[3].any() and not grads[1][3].any() and not grads[2][2, :, 1:].any()
    for x in tensors[1:]:
        x.nan_to_num_()
    check_attention(tensors, grad, text(lengths, n_pad), lengths, n_pad)


def test_attention_to_nothing_is_zero(poisoned):
    tensors, grad = attention_case(2, 1, 3, 0, 8)
    none = torch.zeros(2, dtype=torch.int64)
    out, log_sums = native_training.attention(*tensors, none, none)
    grads = native_training.attention_backward(grad, *tensors, log_sums, none, none)
    assert not out.any() and not grads[0].any() and grads[1].shape == (2, 1, 0, 8)


def test_attention_keeps_what_is_not_finite():
    """A query that is not a number must not come out as one: the step is skipped by its norm."""
    (q, k, v), grad = attention_case(1, 1, 20, None, 8)
    q = q.clone()
    q[0, 0, 11, 3] = NAN
    out, log_sums = native_training.attention(q, k, v)
    bad = out.isnan().any(dim=-1)[0, 0]
    assert bad[11] and bad.sum() == 1
    grads = native_training.attention_backward(grad, q, k, v, log_sums)
    assert all(g.isnan().any() for g in grads)


def test_attention_does_not_depend_on_the_threads():
    tensors, grad = attention_case(2, 3, 70, None, 16)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out, log_sums = native_training.attention(*tensors)
            results.append([out, *native_training.attention_backward(grad, *tensors, log_sums)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("available", [True, False])
def test_the_ops_with_and_without_it(available, monkeypatch):
    """The same results where the native module is missing, for large products too."""
    monkeypatch.setattr(native_training, "available", lambda: available)
    monkeypatch.setattr(native_training, "is_amd", lambda: True)
    x, weight = random(70, 130, seed=1), random(140, 130, seed=2)
    assert cpu._multiplies(x, weight.t()) is available
    tensors, _ = attention_case(1, 2, 50, None, 16)
    inputs = [t.detach().requires_grad_() for t in (x, weight, *tensors)]
    results = [autograd.linear(*inputs[:2]), autograd.causal_attention(*inputs[2:])]
    grads = torch.autograd.grad([r.square().sum() for r in results], inputs)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    exact = [F.linear(*wide[:2]), causal(*wide[2:])]
    expected = torch.autograd.grad([r.square().sum() for r in exact], wide)
    for one, other in zip((*results, *grads), (*exact, *expected), strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("AUDIOGEN_FAST_BACKEND", "reference")
    assert not native_training.available()
    with pytest.raises(MissingDependencyError, match="turned off by AUDIOGEN_FAST_BACKEND"):
        native_training.product(torch.ones(1, 1), torch.ones(1, 1))


Q = torch.zeros(2, 1, 3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: native_training.product(Q, Q), "a must be float32 on the CPU with 2 dim"),
        (lambda: native_training.product(Q[0, 0], Q[0, 0]), "b must have 4 rows"),
        (
            lambda: native_training.product(Q[0, 0], Q[0, 0].t(), torch.zeros(3, 4)),
            r"out must be \(3, 3\)",
        ),
        (lambda: native_training.product(Q[0, 0], Q[0, 0].t(), add=True), "out must be given"),
        (lambda: native_training.attention(Q.double(), Q, Q), "q must be float32"),
        (lambda: native_training.attention(Q, Q, Q[:, :, 1:]), r"v must be \(2, 1, 3, 4\)"),
        (
            lambda: native_training.attention(Q, Q, Q, torch.tensor([3, 4]), torch.zeros(2).long()),
            r"lengths must be in \[0, 3\], the slots of k, got 3 to 4",
        ),
        (
            lambda: native_training.attention(Q, Q, Q, torch.tensor([3, 3]), torch.tensor([0, -1])),
            "n_pad must be at least 0, got -1",
        ),
        (
            lambda: native_training.attention(Q, Q, Q, torch.tensor([3.0, 1.0]), None),
            r"lengths must be int64 \[2\]",
        ),
        (
            lambda: native_training.attention_backward(Q, Q, Q, Q, torch.zeros(2, 1, 2)),
            r"log_sums must be \(2, 1, 3\)",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
