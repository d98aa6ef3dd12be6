"""Energies that are read from latents."""

import pytest
import torch

from audiogen_fast.data.mel import MelSpectrogram
from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training.codec.energies import EnergyReader

ON = {"energies__weight": 1}
SIZES = {"n_ffts": [128, 512], "hop_lengths": [80, 320], "n_mels": [4, 10], "hidden": 16}


def reader(channels=1, **changes):
    torch.manual_seed(0)
    return EnergyReader(6, 320, 16000, channels, **SIZES | changes)


@pytest.mark.parametrize(("channels", "samples"), [(1, 1600), (2, 1333), (1, 1), (1, 320)])
def test_the_error_is_that_of_every_band_and_part(channels, samples):
    """Against loops over bands, parts of frames and frames; the end of the last is silence."""
    network = reader(channels)
    wav = torch.randn(3, channels, samples) * torch.logspace(-4, 0, samples)
    frames = -(-samples // 320)
    latents = torch.randn(3, 6, frames)
    padded = torch.zeros(3, channels, frames * 320)
    padded[..., :samples] = wav
    read = network.layers(latents) * 2 - 3
    errors, offset = [], 0
    for n_fft, hop, bands in ((128, 80, 4), (512, 320, 10)):
        mel = MelSpectrogram(16000, n_fft, hop, bands, normalized=True)
        levels = (mel(padded).view(3, channels, bands, -1) + 1e-7).log10()
        parts, found = 320 // hop, []
        for c in range(channels):
            for band in range(bands):
                for part in range(parts):
                    expected = levels[:, c, band, part::parts]
                    found.append((read[:, offset] - expected).abs().mean())
                    offset += 1
        errors.append(torch.stack(found).mean())
    assert offset == read.shape[1]
    torch.testing.assert_close(network(latents, wav), sum(errors) / 2, rtol=1e-5, atol=1e-6)


def test_quiet_and_loud_count_the_same():
    """Ten times the amplitude is two bel more in every band, above the floor."""
    network = reader(floor_level=1e-20)
    wav = torch.randn(2, 1, 1600)
    for mel in network.mels:
        change = network.energies(mel, 10 * wav) - network.energies(mel, wav)
        torch.testing.assert_close(change, torch.full_like(change, 2.0), rtol=1e-4, atol=1e-4)
    silence = torch.zeros(1, 1, 640)
    assert reader()(torch.zeros(1, 6, 2), silence).isfinite()
    assert (reader().energies(network.mels[0], silence) == -7).all()


def test_it_learns_what_latents_tell():
    """Latents that are the logarithm of each frame's level are enough for white noise."""
    network = reader()
    torch.manual_seed(1)
    level = torch.rand(8, 1, 20) * 4 - 4
    wav = torch.randn(8, 1, 6400) * (10**level).repeat_interleave(320, -1)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)

    def train(latents):
        for _ in range(150):
            optimizer.zero_grad()
            loss = network(latents, wav)
            loss.backward()
            optimizer.step()
        return loss.item()

    blind = train(torch.zeros(8, 6, 20))
    assert train(level.repeat(1, 6, 1)) < 0.5 * blind


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energies__weight": -1}, "energies.weight must be at least 0, got -1"),
        ({"learn": "encoder"}, "energies.weight must be above 0 with learn = encoder, got 0"),
        ({"learn": "decoder", "energies__weight": 1}, "energies.weight must be 0 with learn = dec"),
        (
            {"energies__n_mels": [8, 32], **ON},
            r"must be of one length, at least 1, got \[3, 3, 2\]",
        ),
        (
            {"energies__hop_lengths": [80, 320, 300], **ON},
            "divide the 320 samples .* got 300 with 2048",
        ),
        ({"energies__n_ffts": [64, 1024, 2048], **ON}, "at most their n_ffts, got 80 with 64"),
        ({"energies__n_mels": [8, 32, 0], **ON}, "energies.n_mels must be at least 1, got 0"),
        (
            {"energies__floor_level": 0, **ON},
            "energies.floor_level must be above 0 and finite, got 0",
        ),
        ({"energies__hidden": 0, **ON}, "energies.hidden must be at least 1, got 0"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(small_recipe, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        small_recipe(continue_from="anything", **changes)


def test_sizes_need_not_fit_where_no_energies_are_read(small_recipe):
    ratios = {"seanet__ratios": [8, 4, 4, 2]}
    assert small_recipe(**ratios).energies.weight == 0
    with pytest.raises(InvalidInputError, match="divide the 256 samples of a frame.* got 80 "):
        small_recipe(**ratios, energies__weight=1)
