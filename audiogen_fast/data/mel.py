"""Mel filters and spectrograms."""

import math

import torch
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
