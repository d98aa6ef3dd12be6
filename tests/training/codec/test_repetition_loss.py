"""Correlations of frames with those before them."""

import math

import pytest
import torch

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training.codec.repetition_loss import FrameRepetitionLoss


@pytest.fixture
def noise():
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(2, 1, 32_000, generator=generator)


def test_a_repeated_frame_is_told_from_noise(noise):
    loss = FrameRepetitionLoss(320)
    buzz = noise[..., :320].repeat(1, 1, 100)
    louder = buzz * torch.linspace(0.1, 1, 32_000)  # one waveform, whatever its level
    assert loss.correlations(noise).abs().max() < 0.25
    assert loss.correlations(buzz).min() > 0.97 and loss.correlations(louder).min() > 0.95
    assert loss(buzz, noise) > 0.9 and loss(noise, noise.roll(5000, -1)) < 0.06
    # Frames of another length are not alike, but the fifth: five of 256 samples are four of 320.
    found = FrameRepetitionLoss(256).correlations(buzz).abs().mean((0, 1))
    assert found[4] > 0.97 and found[[0, 1, 2, 3, 5, 6, 7]].max() < 0.4


@pytest.mark.parametrize("frequency", [440.0, 1234.0])
def test_a_tone_is_like_itself_by_its_phase(frequency):
    tone = 0.1 * torch.sin(2 * math.pi * frequency / 16_000 * torch.arange(32_000)).view(1, 1, -1)
    found = FrameRepetitionLoss(320, lags=3).correlations(tone)
    band = int(frequency / (16_000 / 512 * 16))
    expected = torch.tensor([math.cos(2 * math.pi * frequency * 0.02 * lag) for lag in (1, 2, 3)])
    torch.testing.assert_close(found[0, band], expected, atol=0.03, rtol=0)
    assert found.shape == (1, 16, 3)


def test_what_is_far_below_the_floor_is_like_nothing(noise):
    loss = FrameRepetitionLoss(320)
    silent = torch.zeros_like(noise, requires_grad=True)
    assert (loss.correlations(silent) == 0).all()
    assert loss.correlations(1e-6 * noise[..., :320].repeat(1, 1, 100)).abs().max() < 1e-3
    loss(silent, noise).backward()
    assert silent.grad.isfinite().all()


def test_its_gradient_ends_a_repetition(noise):
    loss = FrameRepetitionLoss(320)
    made = noise[..., :320].repeat(1, 1, 100).requires_grad_()
    optimizer = torch.optim.Adam([made], 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss(made, noise).backward()
        optimizer.step()
    assert loss(made, noise) < 0.3


def test_shapes_that_differ_are_refused(noise):
    with pytest.raises(InvalidInputError, match="x and y must be .* of one shape"):
        FrameRepetitionLoss(320)(noise, noise[..., 1:])
