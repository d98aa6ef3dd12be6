"""Spectral convergence and log-magnitude losses (Yamamoto et al. 2020, arXiv 1910.11480)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.training.codec.spectral_losses import check_pair

_EPSILON = torch.finfo(torch.float32).eps
_SMALLEST_POWER = 1e-7


class STFTLoss(nn.Module):
    """`factor_sc * ||Y - X|| / ||Y|| + factor_mag * mean |log Y - log X|` of STFT magnitudes.

    The norms are Frobenius norms over the whole batch (equations 3 and 4 of the paper).

    Args:
        n_fft, hop_length, win_length: of the transform, in samples; Hann windows, centred, the
            ends reflected.
        factor_sc, factor_mag: weights of spectral convergence and of the logarithms.
        normalized: divide the transform by `sqrt(n_fft)`.
        epsilon: added to the denominator and before the logarithms.
    """

    def __init__(
        self,
        n_fft: int = 1024,
        hop_length: int = 120,
        win_length: int = 600,
        factor_sc: float = 0.1,
        factor_mag: float = 0.1,
        normalized: bool = False,
        epsilon: float = _EPSILON,
    ):
        super().__init__()
        check(win_length <= n_fft, f"win_length must be at most {n_fft} (n_fft), got {win_length}")
        self.n_fft, self.hop_length, self.win_length = n_fft, hop_length, win_length
        self.factor_sc, self.factor_mag = factor_sc, factor_mag
        self.normalized, self.epsilon = normalized, epsilon
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)

    def magnitude(self, x: Tensor) -> Tensor:
        """Magnitudes `[B * C, bins, frames]`, at least 3e-4, of audio `[B, C, T]`."""
        check(
            x.shape[-1] > self.n_fft // 2,
            f"x must have more than {self.n_fft // 2} samples (n_fft / 2), got {x.shape[-1]}",
        )
        spectrum = torch.stft(
            x.flatten(0, 1).float(),
            self.n_fft,
            self.hop_length,
            self.win_length,
            self.window,
            normalized=self.normalized,
            return_complex=True,
        )
        # The root has no gradient at zero.
        return (spectrum.real.square() + spectrum.imag.square()).clamp(min=_SMALLEST_POWER).sqrt()

    def terms(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Spectral convergence and log-magnitude distance, without their factors."""
        mag_x, mag_y = self.magnitude(x), self.magnitude(y)
        convergence = (mag_y - mag_x).norm() / (mag_y.norm() + self.epsilon)
        return convergence, F.l1_loss((self.epsilon + mag_x).log(), (self.epsilon + mag_y).log())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss, a scalar, of audio `x` against the reference `y`, both `[B, C, T]`."""
        convergence, log_distance = self.terms(x, y)
        return self.factor_sc * convergence + self.factor_mag * log_distance


class MultiResolutionSTFTLoss(nn.Module):
    """The mean of `STFTLoss` over several resolutions; arguments as there, one list entry each."""

    def __init__(
        self,
        n_ffts: Sequence[int] = (1024, 2048, 512),
        hop_lengths: Sequence[int] = (120, 240, 50),
        win_lengths: Sequence[int] = (600, 1200, 240),
        factor_sc: float = 0.1,
        factor_mag: float = 0.1,
        normalized: bool = False,
        epsilon: float = _EPSILON,
    ):
        super().__init__()
        check(
            len(n_ffts) == len(hop_lengths) == len(win_lengths) > 0,
            "n_ffts, hop_lengths and win_lengths must have one length above 0, got "
            f"{len(n_ffts)}, {len(hop_lengths)} and {len(win_lengths)}",
        )
        options = (factor_sc, factor_mag, normalized, epsilon)
        self.losses = nn.ModuleList(
            STFTLoss(*sizes, *options)
            for sizes in zip(n_ffts, hop_lengths, win_lengths, strict=True)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss, a scalar, of audio `x` against the reference `y`, both `[B, C, T]`."""
        check_pair(x, y)
        return torch.stack([loss(x, y) for loss in self.losses]).mean()
