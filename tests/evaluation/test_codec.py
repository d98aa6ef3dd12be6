"""Metrics with known values."""

import math

import pytest
import torch

from audiogen_fast.errors import InvalidInputError, MissingDependencyError
from audiogen_fast.evaluation import visqol as visqol_module
from audiogen_fast.evaluation.codec import CodebookUsage, MelDistance, si_sdr
from audiogen_fast.evaluation.visqol import load_score, visqol


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_si_sdr_of_each_item():
    """Noise at a right angle, at a tenth and at a hundredth of the power."""
    time = torch.arange(1000) / 1000
    y = torch.sin(2 * math.pi * 4 * time).expand(2, 2, -1)
    n = torch.cos(2 * math.pi * 9 * time) * torch.tensor([0.1, 0.01]).sqrt().view(2, 1, 1)
    assert si_sdr(0.2 * (y + n), y).tolist() == pytest.approx([10.0, 20.0], abs=0.01)


def test_mel_distance_is_the_difference_of_levels_in_db():
    distance = MelDistance(16000)
    x = noise(2, 1, 8000)
    x[1] = noise(1, 8000, seed=1)
    y = x * torch.tensor([2.0, 10.0]).view(2, 1, 1)
    expected = [20 * math.log10(2), 20.0]
    assert distance(x, y).tolist() == pytest.approx(expected, rel=1e-3)
    assert distance(x, x).tolist() == [0.0, 0.0]
    assert distance(y, x).tolist() == pytest.approx(expected, rel=1e-3)


def test_mel_distance_hears_a_missing_band():
    """A low-passed copy is far off, and the farther the more is missing."""
    x = noise(1, 1, 16000)
    spectrum = torch.fft.rfft(x)
    found = []
    for kept in (8001, 6000, 2000):
        low = spectrum.clone()
        low[..., kept:] = 0
        found.append(MelDistance(16000)(torch.fft.irfft(low), x).item())
    assert found[0] < 1e-2 and 1 < found[1] < found[2]


def test_mel_distance_of_silence_and_short_clips_is_finite():
    distance = MelDistance(16000)
    for length in (1, 33, 700):
        x = noise(1, 1, length)
        assert 0 < distance(torch.zeros_like(x), x).item() < 200


def test_codebook_usage_by_hand():
    usage = CodebookUsage(3, 8)
    usage.update(torch.tensor([[[0, 1, 2, 3], [5, 5, 5, 5], [7, 7, 0, 0]]]))
    usage.update(torch.tensor([[[0, 1, 2, 3], [5, 5, 5, 5]]]))  # the last one left out
    found = usage.metrics()
    assert [found[f"usage_q{k}"] for k in (1, 2, 3)] == pytest.approx([0.5, 0.125, 0.25])
    perplexities = [found[f"perplexity_q{k}"] for k in (1, 2, 3)]
    assert perplexities == pytest.approx([4.0, 1.0, 2.0])
    skewed = CodebookUsage(1, 4)
    skewed.update(torch.tensor([[[0, 0, 0, 1]]]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert skewed.perplexities().item() == pytest.approx(math.exp(entropy))


def test_visqol_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(visqol_module, "_PACKAGE", "audiogen_fast_no_such_package")
    with pytest.raises(
        MissingDependencyError, match="--no-deps --only-binary :all: audio-samples-qoe"
    ):
        visqol(noise(1, 1, 100), noise(1, 1, 100), 16000)


def test_visqol_falls_with_noise():
    try:
        load_score()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    time = torch.arange(3 * 16000) / 16000
    y = sum(torch.sin(2 * math.pi * f * time) / 8 for f in (220, 450, 910, 1800, 3500)).view(
        1, 1, -1
    )
    y = y * (1 + torch.sin(2 * math.pi * 3 * time))
    noisy = [visqol(y + level * noise(*y.shape), y, 16000)[0] for level in (0.0, 0.01, 0.3)]
    assert noisy[0] > 4.5 and noisy[0] > noisy[1] > noisy[2] and 1 <= noisy[2] < 4


def test_mistakes_are_named():
    x = noise(1, 1, 50)
    for measure in (si_sdr, MelDistance(16000), lambda a, b: visqol(a, b, 16000)):
        with pytest.raises(InvalidInputError, match="49"):
            measure(x, x[..., :49])
