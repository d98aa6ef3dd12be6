"""Results of encoders, kept by the contents of the sounds."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from audiogen_fast.evaluation.encoders.base import AudioEncoder, TextEncoder, check_waves
from audiogen_fast.files import write_atomically
from audiogen_fast.models.hub import HubOptions


def cache_folder() -> Path:
    """Where results are kept by default: beside what is downloaded, see `HubOptions.cache_dir`."""
    return Path(HubOptions().cache or Path(torch.hub.get_dir()) / "audiogen_fast") / "evaluation"


def wave_digest(wave: Tensor) -> str:
    """SHA-256 of the samples as float32, hexadecimal."""
    return hashlib.sha256(wave.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()


def cached(encoder: AudioEncoder, folder: str | Path | None = None) -> AudioEncoder:
    """The encoder, computing only what is not in the folder yet.

    There is one file for each sound, named by its contents, in a folder named by the encoder and
    its version. What cannot be read is computed again. Texts, if the encoder takes them, are
    always computed.

    Args:
        folder: None for `cache_folder()`.
    """
    kind = _CachedJointEncoder if isinstance(encoder, TextEncoder) else _CachedEncoder
    return kind(encoder, Path(folder) if folder else cache_folder())


class _CachedEncoder(AudioEncoder):
    def __init__(self, encoder: AudioEncoder, folder: Path):
        self.encoder = encoder
        self.name, self.version = encoder.name, encoder.version
        self.sample_rate = encoder.sample_rate
        self.folder = folder / f"{encoder.name}-{encoder.version}"

    def encode(self, waves: Sequence[Tensor]) -> dict[str, Tensor]:
        check_waves(waves)
        rows = [self._row(wave) for wave in waves]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, wave: Tensor) -> dict[str, Tensor]:
        digest = wave_digest(wave)
        path = self.folder / digest[:2] / f"{digest}.safetensors"
        try:
            return load(path.read_bytes())
        except (OSError, SafetensorError):
            pass
        row = {name: rows[0].contiguous() for name, rows in self.encoder.encode([wave]).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(row))
        return row


class _CachedJointEncoder(_CachedEncoder, TextEncoder):
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return self.encoder.embed_texts(texts)
