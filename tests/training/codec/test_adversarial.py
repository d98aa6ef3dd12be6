"""Adversarial losses: known values, the original's, and who learns what."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training.codec.adversarial import (
    CRITERIA,
    AdversarialLoss,
    feature_matching_loss,
)
from audiogen_fast.training.codec.discriminators import MultiScaleSTFTDiscriminator


class Toy(nn.Module):
    """Two sub-discriminators with known weights: logits `w x`, feature maps `x` and `w x`."""

    def __init__(self, *weights: float):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.tensor(w)) for w in weights])

    def forward(self, x):
        logits = [w * x for w in self.weights]
        return logits, [[x, logit] for logit in logits]


def toy(kind: str = "hinge", normalize: bool = True, lr: float = 0.1):
    model = Toy(2.0, -1.0)
    return AdversarialLoss(model, torch.optim.SGD(model.parameters(), lr), kind, normalize)


REAL = torch.tensor([0.25, 2.0]).view(2, 1, 1)
FAKE = torch.tensor([-1.0, 0.5]).view(2, 1, 1)


@pytest.mark.parametrize("kind", CRITERIA)
def test_criteria_of_the_original(recorded, kind):
    for part, criterion in zip(("adv", "real", "fake"), CRITERIA[kind], strict=True):
        value = criterion(10 * recorded["fake"])
        assert_close(value, recorded[f"criterion.{kind}.{part}"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("normalize", "factor"), [(True, 1.0), (False, 2.0)])
def test_hinge_by_hand(normalize, factor):
    """Weight 2: real 0.5 and 4, fake -2 and 1. Weight -1: real -0.25 and -2, fake 1 and -0.5."""
    loss = toy(normalize=normalize)
    adversarial, features = loss.generator_losses(FAKE, REAL)
    assert adversarial.item() == pytest.approx(factor * (0.5 - 0.25) / 2)
    # Maps differ by 1.25 and 1.5: mean 1.375; times |w| in the second map.
    sums = [1.375 + 2 * 1.375, 1.375 + 1.375]
    expected = sum(s / 2 for s in sums) / 2 if normalize else sum(sums)
    assert features.item() == pytest.approx(expected)
    real = [(0.5 + 0) / 2, (1.25 + 3) / 2]
    fake = [(0 + 2) / 2, (2 + 0.5) / 2]
    expected = factor * (sum(real) + sum(fake)) / 2
    assert loss.train_step(FAKE, REAL).item() == pytest.approx(expected)
    # Gradient of the first weight: -0.25 / 2 where 1 - w x > 0, and 0.5 / 2 where 1 + w x > 0.
    step = 0.1 * factor / 2 * (-0.125 + 0.25)
    assert loss.adversary.weights[0].item() == pytest.approx(2.0 - step)


def test_mse_by_hand():
    adversarial, _ = toy("mse").generator_losses(FAKE, REAL)
    expected = ((9 + 0) / 2 + (0 + 2.25) / 2) / 2
    assert adversarial.item() == pytest.approx(expected)


def test_the_generator_learns_and_the_discriminator_does_not():
    loss = toy()
    fake = FAKE.clone().requires_grad_()
    adversarial, features = loss.generator_losses(fake, REAL)
    (adversarial + features).backward()
    assert fake.grad.abs().min() > 0
    assert all(w.grad is None and w.requires_grad for w in loss.adversary.parameters())
    fake = FAKE.clone().requires_grad_()
    loss.train_step(fake, REAL)
    assert fake.grad is None


def test_gradients_that_are_not_finite_change_nothing():
    loss = toy()
    before = [w.item() for w in loss.adversary.weights]
    loss.train_step(torch.full_like(FAKE, float("nan")), REAL)
    assert [w.item() for w in loss.adversary.weights] == before
    loss.train_step(FAKE, REAL)
    assert [w.item() for w in loss.adversary.weights] != before


def test_a_discriminator_in_bfloat16_errs_by_its_rounding():
    """Its layers are computed in bfloat16, its losses and what the generator learns in float32."""
    fake, real = (
        torch.randn(4, 1, 4000, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(2)
        model = MultiScaleSTFTDiscriminator([512, 128], [128, 32], [512, 128], filters=4)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loss = AdversarialLoss(model, optimizer, dtype=dtype)
        x = (0.1 * fake).requires_grad_()
        losses = loss.generator_losses(x, real)
        (gradient,) = torch.autograd.grad(losses[1], x)
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        losses = (*losses, loss.train_step(x, real))
        assert all(value.dtype == torch.float32 for value in (*losses, gradient))
        step = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
        found[dtype] = (torch.stack([value.detach() for value in losses]), gradient, step)
    for exact, rounded in zip(found[torch.float32], found[torch.bfloat16], strict=True):
        error = ((rounded - exact).norm() / exact.norm()).item()
        assert 0 < error < 0.05


def test_mistakes_are_named():
    with pytest.raises(InvalidInputError, match="kind"):
        toy("wasserstein")
    with pytest.raises(InvalidInputError, match="2 and 1"):
        feature_matching_loss([REAL, REAL], [REAL])
