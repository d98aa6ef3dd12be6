"""PaSST: 527 labels of AudioSet (Koutini et al. 2022, arXiv 2110.05069), for the published KLD.

The network and the address of its weights come from the package `hear21passt`. Its spectrograms
are computed here, because they are all that it needs torchaudio for.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.errors import CheckpointError, MissingDependencyError
from audiogen_fast.evaluation.encoders.base import AudioEncoder, check_waves
from audiogen_fast.models.weights import fingerprint

_ARCHITECTURE = "passt_s_swa_p16_128_ap476"
_SAMPLE_RATE = 32000
_N_FFT, _WIN_LENGTH, _HOP_LENGTH, _N_MELS = 1024, 800, 320, 128
_F_MAX = 15000.0
_SEGMENT = 10 * _SAMPLE_RATE
_SHORTEST = int(0.15 * _SAMPLE_RATE)
_CONVENTIONS = "1"


class PaSST(AudioEncoder):
    """Posteriors of 527 labels, and embeddings of 768 values.

    As in the original's `kld`, a sound is cut into segments of 10 s, the last one being what is
    left, and left out if that is at most 0.15 s. The posteriors of a sound are the means of its
    segments' softmax. (The original averages the divergences of segments instead, which is the
    same for sounds of up to 10 s.) A sound of at most 0.15 s is completed with silence.

    Args:
        weights: a file with the state of the network; None to let the package download its own.
        device: to compute on.
    Raises:
        MissingDependencyError: the package is not installed.
        CheckpointError: the weights cannot be had, or are of another network.
    """

    name = "passt"
    sample_rate = _SAMPLE_RATE

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu"):
        self.network = _network(weights).eval().to(device)
        self.version = f"{_CONVENTIONS}-{fingerprint(self.network)[:16]}"
        self.spectrogram = Spectrogram().to(device)
        self.device = torch.device(device)

    @torch.no_grad()
    def encode(self, waves: Sequence[Tensor]) -> dict[str, Tensor]:
        """See `AudioEncoder.encode`."""
        check_waves(waves)
        found = [self._encode(wave.to(self.device).float()) for wave in waves]
        return {
            "embedding": torch.stack([embedding for embedding, _ in found]),
            "posteriors": torch.stack([posteriors for _, posteriors in found]),
        }

    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        segments = [s for s in wave.split(_SEGMENT) if len(s) > _SHORTEST]
        segments = segments or [F.pad(wave, (0, _SHORTEST + 1 - len(wave)))]
        logits, features = [], []
        for segment in segments:
            with _quiet():
                found = self.network(self.spectrogram(segment[None]).unsqueeze(1))
            logits.append(found[0])
            features.append(found[1])
        posteriors = torch.cat(logits).float().softmax(dim=1).mean(dim=0)
        return torch.cat(features).float().mean(dim=0).cpu(), posteriors.cpu()


class Spectrogram(nn.Module):
    """The network's input: `(log(1e-5 + mel power) + 4.5) / 5`, `[B, 128, frames]` of `[B, T]`.

    Pre-emphasis of 0.97; windows of 25 ms (Hann, symmetric) in transforms of 1024 samples, every
    10 ms; filters that are triangles on the mel scale, as those of Kaldi, from 0 to 15 kHz.
    """

    def __init__(self):
        super().__init__()
        window = torch.hann_window(_WIN_LENGTH, periodic=False)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", _filters(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, 1:] - 0.97 * x[:, :-1]
        spectrum = torch.stft(
            x, _N_FFT, _HOP_LENGTH, _WIN_LENGTH, self.window, center=True, return_complex=True
        )
        mel = self.filters @ spectrum.abs().square()
        return ((mel + 1e-5).log() + 4.5) / 5


def _filters() -> Tensor:
    """Triangles `[128, 513]` over `1127 log(1 + f / 700)`; nothing at the Nyquist frequency."""
    frequencies = torch.arange(_N_FFT // 2) * (_SAMPLE_RATE / _N_FFT)
    mels = 1127 * (1 + frequencies / 700).log()
    step = 1127 * math.log(1 + _F_MAX / 700) / (_N_MELS + 1)
    centres = step * torch.arange(1, _N_MELS + 1).unsqueeze(1)
    triangles = (1 - (mels - centres).abs() / step).clamp(min=0)
    return F.pad(triangles, (0, 1))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The network prints itself and its shapes, and warns of sounds shorter than 10 s."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _network(weights: str | Path | None) -> nn.Module:
    try:
        from hear21passt.models.passt import get_model
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # the last: a torchvision of another torch
        raise MissingDependencyError(
            f"the encoder passt needs hear21passt: pip install hear21passt: {error}"
        ) from error
    try:
        with _quiet():
            network = get_model(arch=_ARCHITECTURE, pretrained=weights is None)
        if weights is not None:
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # of the network, of the file, of its contents
        where = "the package's address" if weights is None else weights
        raise CheckpointError(
            f"cannot load the weights of PaSST from {where}: {error}. To use it offline, give a "
            "file: passt:FILE"
        ) from error
    return network
