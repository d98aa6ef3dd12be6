"""Each loss against what the original gave, its definition spelled out, and known values."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.data.mel import MelSpectrogram, mel_filterbank
from audiogen_fast.errors import InvalidInputError
from audiogen_fast.evaluation.sisnr import SISNR
from audiogen_fast.training.codec.spectral_losses import (
    MelSpectrogramL1Loss,
    MultiScaleMelSpectrogramLoss,
)
from audiogen_fast.training.codec.stft_losses import MultiResolutionSTFTLoss, STFTLoss

CLASSES = {
    "MelSpectrogramL1Loss": MelSpectrogramL1Loss,
    "MultiScaleMelSpectrogramLoss": MultiScaleMelSpectrogramLoss,
    "MRSTFTLoss": MultiResolutionSTFTLoss,
    "SISNR": SISNR,
}
NAMES = ["mel", "mel_plain", "msspec", "msspec_alphas", "mrstft", "mrstft_normalized"]
NAMES += ["sisnr", "sisnr_short"]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_of_the_original(recorded, name):
    kind, options = recorded.cases["losses"][name]
    x = recorded["fake"].clone().requires_grad_()
    loss = CLASSES[kind](**options)(x, recorded["real"])
    loss.backward()
    expected = recorded[f"loss.{name}"].squeeze()  # the MRSTFT loss has the shape [1] there
    assert_close(loss.detach(), expected, rtol=5e-5, atol=0)
    expected = recorded[f"loss.{name}.grad"]
    error = (x.grad[..., ::31] - expected).abs().max()
    # In `mrstft` one bin has the least power that is told apart, where the gradient jumps: rounding
    # decides on which side it falls, and what was recorded is 8e-4 from the gradient in float64.
    assert error <= (1e-3 if name == "mrstft" else 1e-4) * expected.abs().max()


def mel_by_hand(x: np.ndarray, rate: int, n_fft: int, hop: int, n_mels: int) -> np.ndarray:
    """Power mel spectrogram `[n_mels, frames]` of one channel, in float64 and with loops."""
    side = (n_fft - hop) // 2
    x = np.pad(x.astype(np.float64), side, mode="reflect")
    frames = math.ceil((len(x) - n_fft) / hop) + 1
    x = np.pad(x, (0, (frames - 1) * hop + n_fft - len(x)))
    window = np.array([math.sin(math.pi * i / n_fft) ** 2 for i in range(n_fft)])
    power = np.stack(
        [np.abs(np.fft.rfft(window * x[i * hop : i * hop + n_fft])) ** 2 for i in range(frames)]
    )
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = [700 * (10 ** (top * i / (n_mels + 1) / 2595) - 1) for i in range(n_mels + 2)]
    filters = np.zeros((n_fft // 2 + 1, n_mels))
    for k in range(n_fft // 2 + 1):
        f = k * rate / n_fft
        for m in range(n_mels):
            low, middle, high = edges[m : m + 3]
            filters[k, m] = max(0, min((f - low) / (middle - low), (high - f) / (high - middle)))
    return (power @ filters).T


@pytest.mark.parametrize(("length", "n_fft", "hop"), [(700, 128, 32), (513, 64, 20), (97, 64, 16)])
def test_mel_spectrogram_by_hand(length, n_fft, hop):
    x = noise(2, 1, length)
    actual = MelSpectrogram(8000, n_fft, hop, n_mels=9)(x)
    for i in range(2):
        expected = mel_by_hand(x[i, 0].numpy(), 8000, n_fft, hop, 9)
        error = np.abs(actual[i].double().numpy() - expected).max()
        assert actual.shape[1:] == expected.shape and error <= 1e-5 * np.abs(expected).max()


def test_mel_filters_peak_at_their_centre_and_cover_the_range():
    filters = mel_filterbank(2048, 40, 16000, 100, 7000)
    centres = filters.argmax(0) * 16000 / 2048
    assert (centres.diff() > 0).all() and 100 < centres[0] and centres[-1] < 7000
    bins = torch.arange(1025) * 16000 / 2048
    assert not filters[(bins < 100) | (bins > 7000)].any()
    inside = (bins > centres[0] + 8) & (bins < centres[-1] - 8)
    assert_close(filters[inside].sum(1), torch.ones(int(inside.sum())))  # neighbours add up to 1


def test_mel_loss_of_a_scaled_signal_is_its_level():
    """Ten times the amplitude is 100 times the power, 2 in its decimal logarithm."""
    x = noise(1, 1, 4000)
    loss = MelSpectrogramL1Loss(16000, n_mels=40, f_min=100)
    assert loss(10 * x, x).item() == pytest.approx(2.0, abs=1e-4)
    assert loss(x, x).item() == 0
    multi = MultiScaleMelSpectrogramLoss(16000, 8, 10, n_mels=8, alphas=False, normalized=True)
    mels = [mel(x) for mel in multi.mels]
    expected = sum(99 * mel.mean().item() + 4.0 for mel in mels) / 4
    assert multi(10 * x, x).item() == pytest.approx(expected, rel=1e-4)


def test_alphas_weigh_the_logarithms():
    x, y = noise(1, 1, 900), noise(1, 1, 900, seed=1)
    parts = []
    for i in (6, 7):
        mel = MelSpectrogram(8000, 2**i, 2**i // 4, 5)
        a, b = mel(x).double(), mel(y).double()
        logs = ((a + 1e-5).log10() - (b + 1e-5).log10()).square().mean()
        parts.append(((a - b).abs().mean(), logs, math.sqrt(2**i - 1)))
    expected = sum(linear + alpha * logs for linear, logs, alpha in parts)
    actual = MultiScaleMelSpectrogramLoss(8000, 6, 8, n_mels=5)(x, y)
    assert_close(actual.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("floor", [1e-5, 1e-8])
def test_what_lies_below_the_floor_is_not_heard(floor):
    quiet, silence = 1e-4 * noise(1, 1, 4000), torch.zeros(1, 1, 4000)
    mel = MelSpectrogram(16000, 512, 128, 24, normalized=True)(quiet)
    difference = torch.log10(1 + mel / floor)
    loss = MelSpectrogramL1Loss(16000, 512, 128, 24, normalized=True, floor_level=floor)
    assert_close(loss(quiet, silence), difference.mean(), rtol=1e-4, atol=1e-6)
    multi = MultiScaleMelSpectrogramLoss(
        16000, 9, 10, n_mels=24, alphas=False, normalized=True, floor_level=floor
    )
    expected = (mel.mean() + difference.square().mean()) / 2
    assert_close(multi(quiet, silence), expected, rtol=1e-4, atol=1e-6)
    assert (difference.mean() > 0.5) == (floor < 1e-6)


def test_stft_loss_by_hand():
    x, y = noise(2, 1, 300), noise(2, 1, 300, seed=1)
    loss = STFTLoss(64, 16, 48, factor_sc=0.3, factor_mag=0.7)
    window = np.zeros(64)
    window[8:56] = [math.sin(math.pi * i / 48) ** 2 for i in range(48)]
    magnitudes = []
    for signal in (x, y):
        padded = np.pad(signal[:, 0].double().numpy(), ((0, 0), (32, 32)), mode="reflect")
        frames = [padded[:, i * 16 : i * 16 + 64] * window for i in range(300 // 16 + 1)]
        magnitudes.append(np.abs(np.fft.rfft(np.stack(frames))))
    a, b = magnitudes
    convergence = np.linalg.norm(b - a) / np.linalg.norm(b)
    logs = np.abs(np.log(a) - np.log(b)).mean()
    assert [t.item() for t in loss.terms(x, y)] == pytest.approx([convergence, logs], rel=1e-4)
    assert loss(x, y).item() == pytest.approx(0.3 * convergence + 0.7 * logs, rel=1e-4)


def test_stft_loss_has_finite_gradients_at_silence():
    x = torch.zeros(1, 1, 4096, requires_grad=True)
    MultiResolutionSTFTLoss()(x, noise(1, 1, 4096)).backward()
    assert x.grad.isfinite().all()


def test_sisnr_of_orthogonal_noise():
    """A sine with noise at a right angle and a tenth of the amplitude: 20 dB, at any scale."""
    time = torch.arange(1600) / 1600
    y = torch.sin(2 * math.pi * 5 * time).view(1, 1, -1)
    n = torch.cos(2 * math.pi * 7 * time).view(1, 1, -1)
    whole = SISNR(1600, segment=None, epsilon=1e-15)
    for scale in (1.0, -0.3, 50.0):
        assert whole(scale * (y + 0.1 * n) + 0.4, y).item() == pytest.approx(-20.0, abs=2e-3)
    assert whole(y, y).item() < -60 and whole(n, y).item() > 60


def test_sisnr_segments():
    """A quarter second at 100 Hz with half overlap: starts at 0, 12, 24 ... until the end."""
    x, y = noise(2, 1, 61), noise(2, 1, 61, seed=1)
    ratios = SISNR(100, segment=0.25).ratios(x, y)
    assert ratios.shape == (2, 1, 6)
    epsilon = torch.finfo(torch.float32).eps * 25
    for b in range(2):
        for i in range(6):
            padded = np.zeros((2, 25))
            for row, signal in enumerate((x, y)):
                piece = signal[b, 0, i * 12 : i * 12 + 25].double().numpy()
                padded[row, : len(piece)] = piece
            a, r = padded - padded.mean(axis=1, keepdims=True)
            along = (a @ r) / (r @ r + epsilon) * r
            rest = a - along
            expected = 10 * math.log10((along @ along + epsilon) / (rest @ rest + epsilon))
            assert ratios[b, 0, i].item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("factor", [1e-6, 1e3])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_levels_are_finite(recorded, name, factor):
    kind, options = recorded.cases["losses"][name]
    loss = CLASSES[kind](**options)
    for other in (recorded["real"], torch.zeros_like(recorded["real"])):
        x = (factor * recorded["fake"]).requires_grad_()
        value = loss(x, factor * other)
        value.backward()
        assert value.isfinite() and x.grad.isfinite().all()


def test_mistakes_are_named():
    x = noise(1, 1, 200)
    for loss in (MelSpectrogramL1Loss(16000, 64, 16), SISNR(), MultiResolutionSTFTLoss()):
        with pytest.raises(InvalidInputError, match=r"\(1, 1, 200\)"):
            loss(x, x[..., :-1])
    with pytest.raises(InvalidInputError, match="512"):
        STFTLoss()(x, x)
    with pytest.raises(InvalidInputError, match="f_min"):
        mel_filterbank(64, 8, 16000, 4000, 9000)
    with pytest.raises(InvalidInputError, match="overlap"):
        SISNR(overlap=1.0)
