"""Losses between mel spectrograms, at one resolution and at several."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.data.mel import MelSpectrogram
from audiogen_fast.errors import check


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
        check_pair(x, y)
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
        check_pair(x, y)
        loss = torch.zeros((), device=x.device)
        for mel, alpha in zip(self.mels, self.alphas, strict=True):
            mel_x, mel_y = mel(x), mel(y)
            log_x, log_y = ((self.floor_level + m).log10() for m in (mel_x, mel_y))
            loss = loss + F.l1_loss(mel_x, mel_y) + alpha * F.mse_loss(log_x, log_y)
        return loss / self.divisor


def check_pair(x: Tensor, y: Tensor) -> None:
    """Raises InvalidInputError unless both are `[B, C, T]` of one shape."""
    check(
        x.ndim == 3 and x.shape == y.shape,
        f"x and y must be [B, C, T] of one shape, got {tuple(x.shape)} and {tuple(y.shape)}",
    )
