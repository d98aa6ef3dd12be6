"""aiSFX: a network trained to name the categories of sound-effect libraries.

Ma and Lerch, "Representation learning for the automatic indexing of sound effects libraries"
(ISMIR 2022). The weights (CC-BY-4.0) are read from the package `aisfx`; its code, which requires
old releases of numpy and librosa, is not run.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.data.mel import mel_filterbank
from audiogen_fast.errors import CheckpointError
from audiogen_fast.evaluation.encoders.base import AudioEncoder, check_waves
from audiogen_fast.evaluation.encoders.packages import file_digest, package_file

_INSTALL = "pip install --no-deps aisfx"
_SAMPLE_RATE = 44100
_N_FFT, _HOP_LENGTH, _N_MELS = 2048, 1024, 96
_BLOCK, _BLOCK_HOP = 100, 50
"""Frames of a block, 2.3 s, and from one block to the next."""
_LARGEST = 9.457798957824707
"""Largest value of the logarithmic spectrograms that the network was trained on."""
_CONVENTIONS = "1"
"""Counts changes of what happens around the network, which change the vectors."""


class AiSFX(AudioEncoder):
    """Embeddings of 512 values and the posteriors of 78 categories of one sound library.

    A sound is peak-normalised and cut into blocks of 2.3 s every 1.2 s. Its embedding and its
    posteriors are the means of those of the blocks. Unlike in the original program, the last
    block ends where the sound ends, so that nothing of it goes unheard; a sound that is shorter
    than a block is followed by silence, as there. The names of the categories are not published.

    Args:
        checkpoint: the weights; None for those of the installed package.
        device: to compute on.
    Raises:
        MissingDependencyError: no `checkpoint`, and the package is not installed.
        CheckpointError: the file is damaged or of another network.
    """

    name = "aisfx"
    sample_rate = _SAMPLE_RATE

    def __init__(self, checkpoint: str | Path | None = None, device: torch.device | str = "cpu"):
        path = Path(checkpoint) if checkpoint else _installed()
        self.network = _load(path).to(device)
        self.version = f"{_CONVENTIONS}-{file_digest(path)[:16]}"
        self.device = torch.device(device)

    @torch.no_grad()
    def encode(self, waves: Sequence[Tensor]) -> dict[str, Tensor]:
        """See `AudioEncoder.encode`."""
        check_waves(waves)
        found = [self._encode(wave) for wave in waves]
        return {
            "embedding": torch.stack([embedding for embedding, _ in found]),
            "posteriors": torch.stack([posteriors for _, posteriors in found]),
        }

    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        blocks = _blocks(self.network.spectrogram(wave.to(self.device).float()))
        vectors = self.network.embedding_net(blocks)
        posteriors = self.network.fc(vectors).softmax(dim=1)
        return vectors.mean(dim=0).cpu(), posteriors.mean(dim=0).cpu()


class _Network(nn.Module):
    """The names of its parameters are those of the published file."""

    def __init__(self):
        super().__init__()
        self.embedding_net = _EmbeddingNet()
        self.fc = nn.Sequential(
            *(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 78))
        )
        filters = mel_filterbank(_N_FFT, _N_MELS, _SAMPLE_RATE)
        self.register_buffer("filters", filters / filters.sum(dim=0), persistent=False)
        self.register_buffer("window", torch.hann_window(_N_FFT), persistent=False)

    def spectrogram(self, wave: Tensor) -> Tensor:
        """`log10(1 + 1e4 mel)` of the power, scaled to 1: `[frames, 96]` of `[T]`."""
        peak = wave.abs().max()
        wave = wave / torch.where(peak > 0, peak, 1)
        spectrum = torch.stft(
            wave,
            *(_N_FFT, _HOP_LENGTH),
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        mel = spectrum.abs().square().T @ self.filters
        return (1e4 * mel + 1).log10() / _LARGEST


class _EmbeddingNet(nn.Module):
    def __init__(self):
        super().__init__()
        channels = [1, 64, 128, 256, 512]
        for i in range(4):
            setattr(self, f"conv_block{i + 1}", _ConvBlock(channels[i], channels[i + 1]))

    def forward(self, x: Tensor) -> Tensor:
        """Vectors `[B, 512]` of blocks `[B, frames, bands]`."""
        x = x.unsqueeze(1)
        for block in (self.conv_block1, self.conv_block2, self.conv_block3):
            x = F.max_pool2d(block(x), 2)
        return self.conv_block4(x).mean(dim=3).amax(dim=2)


class _ConvBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(out_channels), nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.bn2(self.conv2(x)).relu()


def _blocks(frames: Tensor) -> Tensor:
    """Blocks `[n, 100, 96]` of frames `[F, 96]`."""
    last = len(frames) - _BLOCK
    if last <= 0:
        return F.pad(frames, (0, 0, 0, -last)).unsqueeze(0)
    starts = [*range(0, last, _BLOCK_HOP), last]
    return torch.stack([frames[start : start + _BLOCK] for start in starts])


def _installed() -> Path:
    return package_file("aisfx", "models/checkpoint.pth", "the encoder aisfx", _INSTALL)


def _load(path: Path) -> _Network:
    network = _Network()
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            weights, _ = torch.load(path, map_location="cpu", weights_only=True)
        # Head 0, of the library that most of the training data comes from.
        own = {
            name.replace("fc.0.", "fc.", 1): tensor
            for name, tensor in weights.items()
            if not name.startswith("fc.") or name.startswith("fc.0.")
        }
        network.load_state_dict(own)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (RuntimeError, pickle.UnpicklingError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not the weights of aiSFX: {error}") from error
    return network.eval()


def _numpy_globals() -> list[Any]:
    """What the published file has beside tensors: numbers of the heads, as numpy's integers."""
    import numpy as np

    try:
        from numpy._core.multiarray import scalar
    except ImportError:  # numpy 1
        from numpy.core.multiarray import scalar
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, type(np.dtype(np.int64))]
