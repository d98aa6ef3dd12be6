"""Heads with cross entropy, and gradients, against the reference in float64."""

import os

import pytest
import torch

from audiogen_fast.ops import reference

module = pytest.importorskip("audiogen_fast.kernels.codebook_cross_entropy")
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [  # B, K, S, D, card, chunk
    (1, 1, 1, 1, 1, None),
    (2, 3, 5, 8, 11, None),
    (3, 4, 7, 16, 70, 4),
    (1, 2, 3, 8, 4100, 2),  # more than a block of logits
]


def make(shape, dtype=torch.float32, hidden_dtype=torch.float32, bias=False):
    B, K, S, D, card, _ = shape
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, S, D, generator=generator).to(DEVICE, hidden_dtype)
    weights = [torch.randn(card, D, generator=generator).to(DEVICE, dtype) for _ in range(K)]
    biases = [torch.randn(card, generator=generator).to(DEVICE, dtype) for _ in range(K * bias)]
    targets = torch.randint(0, card, (B, K, S), generator=generator)
    # As with the delay pattern: codebook k lacks its last k steps.
    targets[torch.arange(S) >= S - torch.arange(K).view(-1, 1).expand(B, K, 1)] = -1
    return hidden, weights, biases, targets.to(DEVICE)


def run(hidden, weights, biases, targets, chunk=None, divisors=None):
    results = module.codebook_cross_entropy(hidden, weights, biases, targets, divisors, True, chunk)
    loss, each, scale, *grads = results
    return [loss, each, *(scale * g.double() for g in grads)]


def autograd(hidden, weights, biases, targets, dtype=torch.float64, divisors=None):
    hidden = hidden.to(dtype).requires_grad_()
    weights, biases = ([t.to(dtype).requires_grad_() for t in x] for x in (weights, biases))
    loss, each = reference.codebook_cross_entropy(hidden, weights, biases, targets, divisors)
    grads = torch.autograd.grad(loss, [hidden, *weights, *biases])
    K, card = len(weights), weights[0].shape[0]
    bias_grads = torch.stack(grads[1 + K :]) if biases else torch.zeros(0, card, device=DEVICE)
    return [loss.detach(), each.detach(), grads[0], torch.stack(grads[1 : 1 + K]), bias_grads]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float32),
        (torch.float16,) * 2,
        (torch.bfloat16,) * 2,
        (torch.float16, torch.float32),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradients(shape, dtypes, bias, monkeypatch):
    empty = torch.empty
    arguments = make(shape, *dtypes, bias)
    exact = autograd(*arguments)
    plain = autograd(*arguments, dtype=dtypes[0])
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    for one, other, third in zip(run(*arguments, shape[-1]), plain, exact, strict=True):
        assert one.shape == third.shape
        if one.numel() == 0:
            continue
        error, allowed = ((x.double() - third).abs().max() for x in (one, other))
        epsilon = 1e-6 if dtypes[0] == torch.float32 else 2 * torch.finfo(dtypes[0]).eps
        assert error <= 2 * allowed + epsilon * third.abs().max().clamp(min=1e-3), (error, allowed)


def test_chunks_change_nothing_and_runs_agree():
    arguments = make(SHAPES[2], bias=True)
    once = run(*arguments, 1000)
    for one, other in zip(once, run(*arguments, 1), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert all(map(torch.equal, once, run(*arguments, 1000)))


def test_without_gradients_the_loss_is_the_same_and_nothing_more_is_made():
    arguments = make(SHAPES[1], bias=True)
    expected = module.codebook_cross_entropy(*arguments, None, True)
    actual = module.codebook_cross_entropy(*arguments, None, False)
    assert all(map(torch.equal, actual[:3], expected[:3]))
    assert [t.numel() for t in actual[3:]] == [0, 0, 0]


def test_divisors_take_the_place_of_the_counts():
    arguments, divisors = make(SHAPES[1], bias=True), torch.tensor([3.0, 70.0, 0.5], device=DEVICE)
    actual = run(*arguments, divisors=divisors)
    exact = autograd(*arguments, divisors=divisors.double())
    for one, other in zip(actual, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


def test_an_empty_codebook_counts_as_zero_and_targets_left_out_do_not_matter():
    hidden, weights, biases, targets = make(SHAPES[1])
    targets[:, 1] = -7
    hidden[0, 4] = 1e6
    targets[0, :, 4] = -1
    loss, each, d_hidden, d_weights, _ = run(hidden, weights, biases, targets)
    expected, expected_each, exact, _, _ = autograd(hidden, weights, biases, targets)
    assert each[1] == 0
    torch.testing.assert_close(each.double(), expected_each, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(d_hidden, exact, rtol=1e-4, atol=1e-6)
    assert not d_hidden[0, 4].any()
    assert not d_weights[1].any()
    targets[:] = -1
    loss, each, d_hidden, d_weights, _ = run(hidden, weights, biases, targets)
    assert loss == 0 and not each.any() and not d_hidden.any() and not d_weights.any()


def test_extreme_logits_and_float16_gradients_below_its_range():
    """Logits of 6e4 do not overflow, and a factor of 1e-6 per row is not lost in float16."""
    hidden = torch.tensor([[[1.0], [-1.0]]], device=DEVICE, dtype=torch.float16)
    weights = [torch.tensor([[6e4], [-6e4], [0.0]], device=DEVICE, dtype=torch.float16)]
    targets = torch.tensor([[[0, 0]]], device=DEVICE)
    loss, _, d_hidden, _, _ = run(hidden, weights, [], targets)
    assert loss.item() == pytest.approx(6e4, rel=1e-3)
    assert d_hidden[0, 0] == 0 and d_hidden[0, 1].isinf()  # 1.2e5 / 2 is past float16
    B, S = 1, 20000
    hidden = torch.zeros(B, S, 1, device=DEVICE, dtype=torch.float16)
    weights = [torch.tensor([[1.0], [-1.0]], device=DEVICE, dtype=torch.float16)]
    targets = torch.zeros(B, 1, S, device=DEVICE, dtype=torch.int64)
    if DEVICE == "cuda":
        _, _, d_hidden, _, _ = run(hidden, weights, [], targets)
        torch.testing.assert_close(d_hidden, torch.full_like(d_hidden, -1 / S), rtol=1e-3, atol=0)


@pytest.mark.parametrize("wrong", [11, 2**40])
def test_a_target_outside_the_card_gives_nan(wrong):
    hidden, weights, biases, targets = make(SHAPES[1])
    targets[1, 2, 0] = wrong
    loss, each, *_ = run(hidden, weights, biases, targets)
    assert loss.isnan() and each.isnan().tolist() == [False, False, True]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_not_hidden(value):
    hidden, weights, biases, targets = make(SHAPES[1])
    weights[1][3, 2] = value
    loss, each, *_ = run(hidden, weights, biases, targets)
    assert loss.isnan() and each.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 5, None), (2, 2, 0, 4, 5, None)])
def test_nothing_to_do(shape):
    loss, each, d_hidden, d_weights, _ = run(*make(shape))
    assert loss == 0 and each.tolist() == [0, 0] and not d_weights.any()
    assert d_hidden.shape == (shape[0], shape[2], 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(2, 8)}, r"hidden must be \[B, S, D\]"),
        ({"weights": []}, "weights must have at least one head"),
        ({"weights": [torch.zeros(5, 9)] * 3}, r"weights must be \[card, 8\]"),
        ({"weights": [torch.zeros(5, 8), torch.zeros(6, 8)]}, r"weights\[1\] must be \(5, 8\)"),
        ({"weights": [torch.zeros(5, 8).double()] * 3}, "weights must be a float dtype"),
        ({"biases": [torch.zeros(5)] * 2}, "biases must be none or 3, got 2"),
        ({"biases": [torch.zeros(6)] * 3}, r"biases\[0\] must be \[5\]"),
        ({"targets": torch.zeros(2, 2, 4).long()}, r"targets must be \(2, 3, 4\)"),
        ({"targets": torch.zeros(2, 3, 4)}, "targets must be int64"),
        ({"divisors": torch.ones(2)}, r"divisors must be \[3\]"),
        ({"hidden": torch.zeros(2, 4, 8, device="meta")}, "must be on one device"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"hidden": torch.zeros(2, 4, 8), "weights": [torch.zeros(5, 8)] * 3, "biases": []}
    arguments |= {"targets": torch.zeros(2, 3, 4).long(), "with_gradients": True, "divisors": None}
    with pytest.raises(ValueError, match=message):
        module.codebook_cross_entropy(**{**arguments, **change})
