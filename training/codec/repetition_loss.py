"""Loss between how alike the frames of two recordings are to those before them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.training.codec.spectral_losses import check_pair

_FLOOR = 1e-7
"""Of a tile's energy, as that of white noise of -70 dB: silence is like nothing."""


class FrameRepetitionLoss(nn.Module):
    """Mean absolute difference of the correlations of frames with the frames before them.

    A decoder whose codes tell energies and nothing else makes noise of one waveform that it repeats
    in every frame, which is heard as a hum at the frame rate, and which spectrograms hardly show.
    The correlation of a band over the frames is near 0 for noise; that of a steady tone is the
    cosine of what its phase turns by in that time.

    Args:
        frame_length: samples between frames that are compared.
        n_fft: samples of a transform, with a Hann window.
        bins: of a band.
        lags: how many frames before.
    """

    def __init__(self, frame_length: int, n_fft: int = 512, bins: int = 16, lags: int = 8):
        super().__init__()
        self.n_fft, self.bins, self.lags = n_fft, bins, lags
        self.parts = 1 if frame_length % 2 else 2  # transforms in a frame
        self.hop_length = frame_length // self.parts
        window = torch.hann_window(n_fft)
        window = window / window.square().sum().sqrt()
        self.register_buffer("window", window, persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss, a scalar, of audio `x` against the reference `y`, both `[B, C, T]`."""
        check_pair(x, y)
        return F.l1_loss(self.correlations(x), self.correlations(y))

    def correlations(self, x: Tensor) -> Tensor:
        """Of each band with itself 1, 2, ... frames before, -1 to 1: `[B * C, bands, lags]`.

        `x` has `lags` frames at least.
        """
        spectrum = torch.stft(
            x.flatten(0, 1).float(),
            self.n_fft,
            self.hop_length,
            window=self.window,
            pad_mode="constant",
            return_complex=True,
        )
        tiles = torch.view_as_real(spectrum[:, :-1])  # without the bin of half the sample rate
        tiles = tiles.unflatten(1, (-1, self.bins)).transpose(2, 3).flatten(3)  # [.., t, 2 bins]
        tiles = tiles / (tiles.square().sum(-1, keepdim=True) + _FLOOR * self.bins).sqrt()
        lags = [self.parts * lag for lag in range(1, self.lags + 1)]
        found = [(tiles[:, :, lag:] * tiles[:, :, :-lag]).sum(-1).mean(-1) for lag in lags]
        return torch.stack(found, -1)
