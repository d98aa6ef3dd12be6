"""Noise, degradations and shuffles are what they say."""

import numpy as np
import pytest
import torch

from audiogen_fast.evaluation import anchors
from audiogen_fast.evaluation.clips import Clip, ClipSet


@pytest.fixture
def clips():
    generator = torch.Generator().manual_seed(0)
    waves = [torch.randn(size, generator=generator) * 0.1 for size in (16000, 8000, 12345)]
    return ClipSet(
        "reference", [Clip(f"c{i}", f"x{i}", w, 16000, len(w) / 16000) for i, w in enumerate(waves)]
    )


def rms(wave):
    return float(wave.square().mean().sqrt())


def test_noise_has_length_and_level_of_another_clip_and_a_flat_spectrum(clips):
    made = anchors.noise(clips, 3)
    lengths = {len(clip.source): clip for clip in clips.clips}
    taken = []
    for clip, own in zip(made.clips, clips.clips, strict=True):
        wave = clip.read(16000)
        other = lengths[len(wave)]
        taken.append(other.name)
        assert other.name != own.name
        assert (clip.name, clip.caption, clip.reference) == (own.name, own.caption, own.name)
        assert rms(wave) == pytest.approx(rms(other.read(16000)), rel=0.03)
        power = torch.fft.rfft(wave).abs().square()
        bands = torch.stack([band.mean() for band in power.tensor_split(8)])
        assert float(bands.max() / bands.min()) < 1.5
    assert sorted(taken) == ["c0", "c1", "c2"]
    again = anchors.noise(clips, 3)
    assert all(
        a.read(16000).equal(b.read(16000)) for a, b in zip(again.clips, made.clips, strict=True)
    )
    different = {wave.read(16000).sum().item() for wave in anchors.noise(clips, 4).clips}
    assert not different & {wave.read(16000).sum().item() for wave in made.clips}


@pytest.mark.parametrize("snr_db", [10.0, 0.0, 30.0])
def test_added_noise_has_its_ratio(clips, snr_db):
    made = anchors.noisy(clips, 0, snr_db)
    for clip, source in zip(made.clips, clips.clips, strict=True):
        added = clip.read(16000) - source.read(16000)
        found = 20 * np.log10(rms(source.read(16000)) / rms(added))
        assert found == pytest.approx(snr_db, abs=0.3)


def test_low_pass_keeps_below_and_removes_above():
    time = torch.arange(16000, dtype=torch.float64) / 16000
    low, high = torch.sin(2 * torch.pi * 440 * time), torch.sin(2 * torch.pi * 3000 * time)
    torch.testing.assert_close(anchors.low_pass(low + high, 16000, 1000.0), low, atol=1e-4, rtol=0)


def test_partners_have_the_same_caption_and_are_others():
    captions = ["a dog", "rain", "A  Dog", None, "wind", "a dog", None]
    found = anchors.partners(captions)
    assert found == [2, None, 5, None, None, 0, None]


def test_shuffles_put_no_caption_in_its_own_place():
    groups = tuple("aaabbbccdefgh")
    found = anchors.shuffles(groups, 50, 0)
    assert found.shape == (50, len(groups))
    labels = np.array(groups)
    for order in found:
        assert sorted(order) == list(range(len(groups)))
        assert (labels[order] != labels).all()
    assert len({tuple(order) for order in found}) == 50
    assert (found == anchors.shuffles(groups, 50, 0)).all()


def test_a_shuffle_does_what_can_be_done():
    order = anchors.shuffles(tuple("aaab"), 5, 0)
    labels = np.array(list("aaab"))
    assert all((labels[o] != labels).sum() == 2 for o in order)
    assert (anchors.shuffles(("a", "a"), 3, 0) >= 0).all()
