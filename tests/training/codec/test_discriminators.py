"""Discriminators against the original's outputs, and the STFT by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training.codec.adversarial import feature_matching_loss
from audiogen_fast.training.codec.discriminators import (
    MultiScaleSTFTDiscriminator,
    STFTDiscriminator,
)
from audiogen_fast.training.codec.waveform_discriminators import (
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
)

CLASSES = {
    "msstftd": MultiScaleSTFTDiscriminator,
    "mpd": MultiPeriodDiscriminator,
    "msd": MultiScaleDiscriminator,
}


def load(recorded, name: str) -> nn.Module:
    model = CLASSES[name](**recorded.cases["discriminators"][name])
    state = recorded.state(f"{name}.state.")
    # There the first layer of the waveform discriminator has its padding as a layer.
    state = {key.replace("convs.0.1.", "convs.0."): value for key, value in state.items()}
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_of_the_original(recorded, name):
    model = load(recorded, name)
    x = recorded["fake"].clone().requires_grad_()
    logits, maps = model(x)
    with torch.no_grad():  # convolutions take another path then
        _, real_maps = model(recorded["real"])
    for i, (logit, own, real) in enumerate(zip(logits, maps, real_maps, strict=True)):
        expected = recorded[f"{name}.logits.{i}"]
        error = (logit.detach().flatten()[::11] - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max()
        means = torch.stack([m.detach().square().mean() for m in own])
        assert_close(means, recorded[f"{name}.map_means.{i}"], rtol=1e-4, atol=0)
        feature = feature_matching_loss(own, real).detach()
        assert_close(feature, recorded[f"{name}.feature.{i}"], rtol=1e-4, atol=0)
    sum(logit.square().mean() for logit in logits).backward()
    expected = recorded[f"{name}.grad"]
    assert (x.grad[..., ::31] - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_spectrogram_by_hand():
    model = STFTDiscriminator(filters=2, in_channels=2, n_fft=32, hop_length=8, win_length=32)
    x = torch.randn(3, 2, 101, generator=torch.Generator().manual_seed(0))
    window = np.sin(np.pi * np.arange(32) / 32) ** 2
    frames = (101 - 32) // 8 + 1
    actual = model.spectrogram(x)
    assert actual.shape == (3, 4, frames, 17)
    for b in range(3):
        for c in range(2):
            for f in range(frames):
                piece = window * x[b, c, 8 * f : 8 * f + 32].double().numpy()
                expected = np.fft.rfft(piece) / np.sqrt((window**2).sum())
                got = actual[b, c, f].double() + 1j * actual[b, 2 + c, f].double()
                assert np.abs(got.numpy() - expected).max() < 1e-5


def test_the_layers_of_the_original_configuration():
    """32 filters, (3, 9) over time and frequency, dilated 1, 2, 4 over time, then (3, 3) twice."""
    model = MultiScaleSTFTDiscriminator()
    assert [d.n_fft for d in model.discriminators] == [1024, 2048, 512, 256, 128]
    assert all(d.hop_length == d.n_fft // 4 for d in model.discriminators)
    for sub in model.discriminators:
        convs = [layer.conv for layer in (*sub.convs, sub.conv_post)]
        assert [c.kernel_size for c in convs] == [(3, 9)] * 4 + [(3, 3)] * 2
        assert [c.stride for c in convs] == [(1, 1)] + [(1, 2)] * 3 + [(1, 1)] * 2
        assert [c.dilation[0] for c in convs] == [1, 1, 2, 4, 1, 1]
        assert [c.out_channels for c in convs] == [32] * 5 + [1]
        assert [hasattr(c, "parametrizations") for c in convs] == [False] + [True] * 5
        logits, maps = sub(torch.randn(1, 1, 4096))
        assert logits.shape[2] == maps[0].shape[2] and len(maps) == 5


def test_widths_grow_to_their_limit():
    sub = STFTDiscriminator(filters=2, filters_scale=3, max_filters=30, n_fft=64, hop_length=16)
    assert [layer.conv.out_channels for layer in sub.convs] == [2, 6, 18, 30, 30]


def test_lower_scales_hear_less_of_high_frequencies():
    """The second scale hears averages of four samples every two, which erase the highest tone."""
    torch.manual_seed(0)
    model = MultiScaleDiscriminator(num_scales=2, filters=4, downsample_scales=[4])
    tone = torch.tensor([1.0, -1.0]).repeat(200).view(1, 1, -1)
    (first, second), _ = model(tone)
    (quiet_first, quiet_second), _ = model(torch.zeros_like(tone))
    assert (first - quiet_first).abs().max() > 1e-3
    middle = slice(10, -10)  # where no padding is heard
    assert_close(second[..., middle], quiet_second[..., middle], rtol=0, atol=1e-6)
    assert 2 * second.shape[-1] <= first.shape[-1] + 2


def test_mistakes_are_named():
    with pytest.raises(InvalidInputError, match="1024"):
        STFTDiscriminator()(torch.zeros(1, 1, 1000))
    with pytest.raises(InvalidInputError, match="win_lengths"):
        MultiScaleSTFTDiscriminator(win_lengths=[1])
    with pytest.raises(InvalidInputError, match="norm"):
        STFTDiscriminator(norm="batch_norm")


@pytest.mark.parametrize("channels", [1, 2])
def test_magnitudes_are_compressed_and_phases_kept(channels):
    sizes = {"in_channels": channels, "n_fft": 256, "hop_length": 64, "win_length": 256}
    torch.manual_seed(0)
    wav = torch.randn(2, channels, 1000) * torch.logspace(-3, 0, 1000)
    plain, compressed = (
        STFTDiscriminator(**sizes, power=power).spectrogram(wav).unflatten(1, (2, channels))
        for power in (1.0, 0.3)
    )
    before, after = (torch.complex(*parts.unbind(1)) for parts in (plain, compressed))
    loud = before.abs() > 2e-3
    assert loud.float().mean() > 0.9
    expected = torch.polar(before.abs() ** 0.3, before.angle())
    torch.testing.assert_close(after[loud], expected[loud], rtol=2e-3, atol=1e-5)
    silence = torch.zeros(1, channels, 1000, requires_grad=True)
    STFTDiscriminator(**sizes, power=0.3).spectrogram(silence).sum().backward()
    assert silence.grad.isfinite().all()


@pytest.mark.parametrize("power", [0.0, -1.0, 1.5])
def test_a_power_that_does_not_compress_is_refused(power):
    with pytest.raises(InvalidInputError, match="power must lie above 0 and be at most 1, got"):
        STFTDiscriminator(power=power)
