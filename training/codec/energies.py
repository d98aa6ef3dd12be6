"""Energies of bands, read from a codec's latents: what its encoder has to tell."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.data.mel import MelSpectrogram

_MEAN, _SPREAD = -3.0, 2.0
"""Of the logarithms to the base of 10, roughly, of sounds at usual levels: a start for the
predictions, which are learnt."""


class EnergyReader(nn.Module):
    """Three layers that predict log-mel spectrograms from latents, and their error.

    Beside a codec in training, the error is a loss that reaches encoder and codebooks without the
    way through decoder and waveform, so that they learn in few updates to tell how loud each band
    is, also where it is far below the loudest. A codec does not hold it once it is trained.

    Args:
        dimension: channels of the latents.
        frame_length: samples of a frame of the latents.
        sample_rate: in Hz.
        channels: of the audio.
        n_ffts, hop_lengths, n_mels: one spectrogram each, see `MelSpectrogram`; each hop divides
            `frame_length`.
        floor_level: added to the energies, normalised by their window's, before the logarithm.
        hidden: channels between the layers.
        kernel_size: frames that the first layer sees, odd.
    """

    def __init__(
        self,
        dimension: int,
        frame_length: int,
        sample_rate: int,
        channels: int = 1,
        n_ffts: Sequence[int] = (256, 1024, 2048),
        hop_lengths: Sequence[int] = (80, 320, 320),
        n_mels: Sequence[int] = (8, 32, 128),
        floor_level: float = 1e-7,
        hidden: int = 512,
        kernel_size: int = 7,
    ):
        super().__init__()
        self.frame_length, self.floor_level = frame_length, floor_level
        self.mels = nn.ModuleList(
            MelSpectrogram(sample_rate, *sizes, normalized=True)
            for sizes in zip(n_ffts, hop_lengths, n_mels, strict=True)
        )
        self.values = [
            channels * bands * (frame_length // hop)
            for hop, bands in zip(hop_lengths, n_mels, strict=True)
        ]
        self.layers = nn.Sequential(
            nn.Conv1d(dimension, hidden, kernel_size, padding=kernel_size // 2),
            nn.ReLU(),
            nn.Conv1d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv1d(hidden, sum(self.values), 1),
        )

    def forward(self, latents: Tensor, wav: Tensor) -> Tensor:
        """Mean absolute error in bel (10 dB) over the spectrograms, each counting the same.

        Args:
            latents: `[B, D, T]`.
            wav: audio `[B, C, samples]` that they are of, in its last frame at most padded.
        """
        wav = F.pad(wav, (0, latents.shape[-1] * self.frame_length - wav.shape[-1]))
        read = (_MEAN + _SPREAD * self.layers(latents)).split(self.values, dim=1)
        pairs = zip(read, self.mels, strict=True)
        errors = [F.l1_loss(one, self.energies(mel, wav)) for one, mel in pairs]
        return sum(errors) / len(errors)

    def energies(self, mel: nn.Module, wav: Tensor) -> Tensor:
        """Logarithms to the base of 10, `[B, values of a frame, T]`, of one spectrogram."""
        levels = (mel(wav) + self.floor_level).log10()  # [B * C, n_mels, T * parts]
        frames = wav.shape[-1] // self.frame_length
        split = levels.unflatten(-1, (frames, -1)).transpose(-1, -2)  # ..., parts, T]
        return split.reshape(len(wav), -1, frames)
