"""The balancer against calculation by hand and the original."""

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training.codec.balancer import Balancer


def linear_losses(y, **gradients):
    """Losses with given gradients at y."""
    return {name: (y * torch.tensor(g)).sum() for name, g in gradients.items()}


def test_two_steps_by_hand():
    """Items of norm 5 and 10 (mean 7.5), and of norm 2 and 0 (mean 1)."""
    balancer = Balancer({"a": 3.0, "b": 1.0}, total_norm=2.0, ema_decay=0.5)
    a, b = [[3.0, 4.0], [6.0, 8.0]], [[0.0, 2.0], [0.0, 0.0]]
    x = torch.ones(2, 2, requires_grad=True)
    effective = balancer.backward(linear_losses(x, a=a, b=b), x)
    scale_a, scale_b = 0.75 * 2 / 7.5, 0.25 * 2 / 1.0
    expected = scale_a * torch.tensor(a) + scale_b * torch.tensor(b)
    assert_close(x.grad, expected)
    assert effective.item() == pytest.approx(scale_a * 21 + scale_b * 2)
    assert balancer.ratios["a"].item() == pytest.approx(7.5 / 8.5)
    # Twice the gradient of a: its average is (0.5 * 7.5 + 15) / 1.5 = 12.5; b is not there.
    x = torch.ones(2, 2, requires_grad=True)
    double = (2 * torch.tensor(a)).tolist()
    balancer.backward(linear_losses(x, a=double), x)
    assert_close(x.grad, 2.0 / 12.5 * torch.tensor(double))
    # Back again with b, whose average has not moved.
    x = torch.ones(2, 2, requires_grad=True)
    balancer.backward(linear_losses(x, a=a, b=b), x)
    average_a = (0.25 * 7.5 + 0.5 * 15 + 7.5) / 1.75
    expected = 1.5 / average_a * torch.tensor(a) + 0.5 / 1.0 * torch.tensor(b)
    assert_close(x.grad, expected)


def test_weights_are_shares_of_the_gradient_whatever_the_scale_of_the_losses():
    """Parallel gradients add up to `total_norm` for each item."""
    for scale in (1e-6, 1.0, 1e6):
        balancer = Balancer({"a": 1.0, "b": 3.0}, total_norm=1.0)
        x = torch.ones(2, 2, requires_grad=True)
        g = [[0.6, 0.8], [0.8, 0.6]]
        scaled = (scale * torch.tensor(g)).tolist()
        balancer.backward(linear_losses(x, a=g, b=scaled), x)
        assert_close(x.grad, torch.tensor(g))


@pytest.mark.parametrize("name", ["balanced", "whole_batch", "plain"])
def test_steps_of_the_original(recorded, name):
    options, real = recorded.cases["balancers"][name], recorded["real"]
    balancer = Balancer({"a": 3.0, "b": 1.0, "c": 0.5}, **options)
    for i in range(3):
        x = (recorded["fake"] * (1 + i)).requires_grad_()
        y = x * 1.0
        losses = {"a": (y - real).abs().mean(), "b": (y - real).square().mean()}
        losses["c"] = (y * real).sum() * (-1) ** i
        effective = balancer.backward(losses, y)
        assert_close(effective, recorded[f"balancer.{name}.effective.{i}"], rtol=1e-4, atol=1e-6)
        expected = recorded[f"balancer.{name}.grad.{i}"]
        error = (x.grad[..., ::31] - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max()
        ratios = torch.stack(list(balancer.ratios.values()))
        assert_close(ratios, recorded[f"balancer.{name}.ratios.{i}"], rtol=1e-4, atol=0)


def test_state_goes_on_exactly():
    g = [[0.3, 0.1], [0.7, 0.9]]

    def steps(balancer, scales):
        grads = []
        for scale in scales:
            x = torch.ones(2, 2, requires_grad=True)
            scaled = (scale * torch.tensor(g)).tolist()
            balancer.backward(linear_losses(x, a=scaled, b=g), x)
            grads.append(x.grad)
        return grads

    weights = {"a": 1.0, "b": 2.0}
    first, second = Balancer(weights), Balancer(weights)
    steps(first, [1.0, 5.0])
    second.load_state_dict(first.state_dict())
    restore = second.snapshot()
    steps(second, [1e9])
    restore()
    for a, b in zip(steps(first, [0.1, 7.0]), steps(second, [0.1, 7.0]), strict=True):
        assert torch.equal(a, b)


def test_mistakes_are_named():
    with pytest.raises(InvalidInputError, match="weights"):
        Balancer({"a": 0.0})
    x = torch.ones(2, 2, requires_grad=True)
    with pytest.raises(InvalidInputError, match="other"):
        Balancer({"a": 1.0}).backward({"other": x.sum()}, x)
