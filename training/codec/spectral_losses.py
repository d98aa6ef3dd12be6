"""Losses between mel spectrograms, at one resolution and at several."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.modules.conv import pad1d, pad_for_conv1d


def mel_filterbank(
    n_fft: int, n_mels: int, sample_rate: int, f_min: float = 0.0, f_max: float | None = None
) -> Tensor:
    """Triangular filters, equally spaced in mel: `2595 log10(1 + f / 700)` (the HTK formula).

    Every filter has height 1; those narrower than a bin may be empty.

    Args:
        n_fft: length of the Fourier transform.
        n_mels: number of filters.
        sample_rate: in Hz.
        f_min, f_max: ends of the covered range in Hz; None is half the sample rate.
    Returns:
        float32 `[n_fft // 2 + 1, n_mels]`.
    """
    f_max = sample_rate / 2 if f_max is None else f_max
    check(
        0 <= f_min < f_max <= sample_rate / 2,
        f"f_min < f_max must lie in 0..{sample_rate / 2} Hz, got {f_min} and {f_max}",
    )
    bins = torch.linspace(0, sample_rate // 2, n_fft // 2 + 1)
    low, high = (2595.0 * math.log10(1.0 + f / 700.0) for f in (f_min, f_max))
    edges = 700.0 * (10.0 ** (torch.linspace(low, high, n_mels + 2) / 2595.0) - 1.0)
    width = edges.diff()
    distance = edges.unsqueeze(0) - bins.unsqueeze(1)  # [bins, n_mels + 2]
    rising = -distance[:, :-2] / width[:-1]
    falling = distance[:, 2:] / width[1:]
    return torch.minimum(rising, falling).clamp(min=0)


class MelSpectrogram(nn.Module):
    """Mel power spectrogram with Hann windows; the ends of the recording are reflected.

    The recording is continued by `(n_fft - hop_length) / 2` samples on each side and on the right
    to a whole number of frames.

    Args:
        sample_rate, n_fft, hop_length, n_mels, f_min, f_max: see `mel_filterbank`; the windows
            have `n_fft` samples.
        normalized: divide the power by the energy of the window.
    """

    def __init__(
        self,
        sample_rate: int,
        n_fft: int = 1024,
        hop_length: int = 256,
        n_mels: int = 80,
        f_min: float = 0.0,
        f_max: float | None = None,
        normalized: bool = False,
    ):
        super().__init__()
        self.n_fft, self.hop_length = n_fft, hop_length
        window = torch.hann_window(n_fft)
        if normalized:
            window = window / window.square().sum().sqrt()
        filters = mel_filterbank(n_fft, n_mels, sample_rate, f_min, f_max)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 `[B * C, n_mels, frames]` of audio `[B, C, T]`."""
        side = (self.n_fft - self.hop_length) // 2
        x = pad1d(x.flatten(0, 1).unsqueeze(1).float(), (side, side), "reflect")
        x = pad_for_conv1d(x, self.n_fft, self.hop_length).squeeze(1)
        spectrum = torch.stft(
            x, self.n_fft, self.hop_length, window=self.window, center=False, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        return self.filters.t() @ power


class MelSpectrogramL1Loss(nn.Module):
    """Mean absolute difference of mel spectrograms, of their base-10 logarithms with `log`.

    Args:
        floor_level: added before the logarithm.
        Other arguments: see `MelSpectrogram`.
    """

    def __init__(
        self,
        sample_rate: int,
        n_fft: int = 1024,
        hop_length: int = 256,
        n_mels: int = 80,
        f_min: float = 0.0,
        f_max: float | None = None,
        log: bool = True,
        normalized: bool = False,
        floor_level: float = 1e-5,
    ):
        super().__init__()
        self.mel = MelSpectrogram(sample_rate, n_fft, hop_length, n_mels, f_min, f_max, normalized)
        self.log, self.floor_level = log, floor_level

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss, a scalar, of audio `x` against the reference `y`, both `[B, C, T]`."""
        _check_pair(x, y)
        mel_x, mel_y = self.mel(x), self.mel(y)
        if self.log:
            mel_x, mel_y = ((self.floor_level + mel).log10() for mel in (mel_x, mel_y))
        return F.l1_loss(mel_x, mel_y)


class MultiScaleMelSpectrogramLoss(nn.Module):
    """L1 of mel spectrograms and squared error of their logarithms, at several resolutions.

    Scale i has `n_fft = 2^i` and a hop of a quarter of that. The loss is the sum over the scales
    of `L1(mel) + alpha_i * MSE(log10(floor + mel))`, with `normalized` divided by the sum of all
    factors (Défossez et al. 2022, section 3.4, where the second term has the root of the error and
    `alpha_i = sqrt(2^i - 1)`).

    Args:
        range_start, range_end: the scales are `range_start <= i < range_end`.
        alphas: `alpha_i = sqrt(2^i - 1)`; otherwise 1.
        normalized: divide the loss by the sum of the factors, and power by the windows' energy.
        Other arguments: see `MelSpectrogramL1Loss`.
    """

    def __init__(
        self,
        sample_rate: int,
        range_start: int = 6,
        range_end: int = 11,
        n_mels: int = 64,
        f_min: float = 0.0,
        f_max: float | None = None,
        normalized: bool = False,
        alphas: bool = True,
        floor_level: float = 1e-5,
    ):
        super().__init__()
        check(
            2 <= range_start < range_end,
            f"range_start must lie in 2..range_end - 1, got {range_start} and {range_end}",
        )
        scales = range(range_start, range_end)
        self.mels = nn.ModuleList(
            MelSpectrogram(sample_rate, 2**i, 2**i // 4, n_mels, f_min, f_max, normalized)
            for i in scales
        )
        self.alphas = [math.sqrt(2**i - 1) if alphas else 1.0 for i in scales]
        self.floor_level = floor_level
        self.divisor = sum(1 + alpha for alpha in self.alphas) if normalized else 1.0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss, a scalar, of audio `x` against the reference `y`, both `[B, C, T]`."""
        _check_pair(x, y)
        loss = torch.zeros((), device=x.device)
        for mel, alpha in zip(self.mels, self.alphas, strict=True):
            mel_x, mel_y = mel(x), mel(y)
            log_x, log_y = ((self.floor_level + m).log10() for m in (mel_x, mel_y))
            loss = loss + F.l1_loss(mel_x, mel_y) + alpha * F.mse_loss(log_x, log_y)
        return loss / self.divisor


def _check_pair(x: Tensor, y: Tensor) -> None:
    check(
        x.ndim == 3 and x.shape == y.shape,
        f"x and y must be [B, C, T] of one shape, got {tuple(x.shape)} and {tuple(y.shape)}",
    )
