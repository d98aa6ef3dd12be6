"""PaSST's spectrograms, and its wiring with random weights where its package is installed."""

import contextlib
import io

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.errors import CheckpointError, MissingDependencyError
from audiogen_fast.evaluation.encoders.passt import PaSST, Spectrogram


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_spectrogram_by_definition():
    """In numpy, frame by frame, from the formulas."""
    wave = (noise(8001) * 0.1).double().numpy()
    x = wave[1:] - 0.97 * wave[:-1]
    x = np.pad(x, 512, mode="reflect")
    window = np.zeros(1024)
    window[112:912] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(800) / 799)
    frames = [x[i : i + 1024] * window for i in range(0, len(x) - 1023, 320)]
    power = np.abs(np.fft.rfft(frames)) ** 2
    mels = 1127 * np.log1p(np.arange(513) * 32000 / 1024 / 700)
    edges = np.linspace(0, 1127 * np.log1p(15000 / 700), 130)
    expected = np.zeros((128, len(frames)))
    for band in range(128):
        low, centre, high = edges[band : band + 3]
        rising, falling = (mels - low) / (centre - low), (high - mels) / (high - centre)
        expected[band] = power @ np.maximum(0, np.minimum(rising, falling))
    expected = (np.log(expected + 1e-5) + 4.5) / 5
    found = Spectrogram()(torch.from_numpy(wave).float()[None])[0]
    assert found.shape == expected.shape == (128, 26)
    assert_close(found, torch.from_numpy(expected).float(), rtol=1e-3, atol=1e-3)


def test_without_its_package_the_error_says_what_to_install(monkeypatch):
    # None in sys.modules is an import that fails, whether it is installed or not.
    monkeypatch.setitem(__import__("sys").modules, "hear21passt", None)
    monkeypatch.setitem(__import__("sys").modules, "hear21passt.models.passt", None)
    with pytest.raises(MissingDependencyError, match="pip install hear21passt"):
        PaSST()


@pytest.mark.slow
def test_posteriors_with_random_weights(tmp_path):
    """The package's own pipeline gives the same; it needs torchaudio for that."""
    passt = pytest.importorskip("hear21passt.models.passt", reason="hear21passt is not installed")
    preprocess = pytest.importorskip("hear21passt.models.preprocess", exc_type=ImportError)
    with contextlib.redirect_stdout(io.StringIO()):
        network = passt.get_model(arch="passt_s_swa_p16_128_ap476", pretrained=False).eval()
        mel = preprocess.AugmentMelSTFT(128, 32000, 800, 320, 1024, fmax_aug_range=2000).eval()
    torch.nn.init.normal_(network.head[1].weight, std=0.1)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    encoder = PaSST(tmp_path / "weights.pt")
    wave = 0.1 * noise(160_000)
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        logits, features = network(mel(wave[None]).unsqueeze(1))
    found = encoder.encode([wave, wave[:1000]])
    assert_close(found["posteriors"][0], logits.softmax(dim=1)[0], rtol=1e-3, atol=1e-6)
    assert_close(found["embedding"][0], features[0], rtol=1e-3, atol=1e-4)
    assert_close(found["posteriors"].sum(dim=1), torch.ones(2))
    with pytest.raises(CheckpointError, match="missing.pt"):
        PaSST(tmp_path / "missing.pt")
