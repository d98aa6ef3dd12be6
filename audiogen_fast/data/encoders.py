"""What `soundfile` is told to write each format, and the bit rate arithmetic of mp3 and Vorbis."""

import inspect
import io
import math

import numpy as np
import soundfile
import torch

from audiogen_fast.errors import check

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "flac": ("FLAC", "PCM_24"),
}
"""Format name: libsndfile's container and encoding. The integer ones are what ffmpeg, which the
original implementation runs, makes of float samples."""

_HAS_RATES = "compression_level" in inspect.signature(soundfile.SoundFile).parameters
"""soundfile 0.13 brought the argument."""
_BLOCK = 2**14
"""Frames handed over at a time: libsndfile puts all of them on the stack when writing Vorbis,
which ends the process when that is a minute of stereo."""
_EXCERPT_SECONDS = 10


def encode(
    wav: torch.Tensor,
    sample_rate: int,
    format: str,
    mp3_rate: float = 320,
    ogg_rate: float | None = None,
) -> bytes:
    """The contents of a file with `wav`, `[C, T]` float32 on the CPU, in one of `FORMATS`.

    The rates, in kbit/s, count for their format only. Raises `soundfile.SoundFileError`.
    """
    options: dict[str, str | float] = {}
    if format == "mp3":
        _check_rate("mp3_rate", mp3_rate)
        options = {
            "bitrate_mode": "CONSTANT",
            "compression_level": _mp3_level(sample_rate, mp3_rate),
        }
    elif format == "ogg" and ogg_rate is not None:
        _check_rate("ogg_rate", ogg_rate)
        options = {"compression_level": _vorbis_level(wav, sample_rate, ogg_rate)}
    return _encode(wav, sample_rate, format, options)


def _check_rate(name: str, rate: float) -> None:
    check(math.isfinite(rate) and rate > 0, f"{name} must be a positive kbit/s, got {rate}")


def _encode(
    wav: torch.Tensor, sample_rate: int, format: str, options: dict[str, str | float]
) -> bytes:
    container, subtype = FORMATS[format]
    channels, samples = wav.shape[0], _samples(wav, subtype)
    if not _HAS_RATES:
        options = {}
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", sample_rate, channels, subtype, format=container, **options
    ) as file:
        for start in range(0, len(samples), _BLOCK):
            file.write(samples[start : start + _BLOCK])
    return buffer.getvalue()


def _samples(wav: torch.Tensor, subtype: str) -> np.ndarray:
    """`[C, T]` floats to `[T, C]` in the type whose top bits libsndfile stores, rounded to them."""
    wav = wav.t().contiguous()
    if subtype == "PCM_16":
        return (wav * 2**15).round().clamp(-(2**15), 2**15 - 1).short().numpy()
    if subtype == "PCM_24":
        return ((wav * 2**23).round().clamp(-(2**23), 2**23 - 1).int() * 2**8).numpy()
    return wav.numpy()


def _mp3_level(sample_rate: int, kbps: float) -> float:
    """libsndfile's 0 to 1 scale spans the bit rates that mp3 has at a sample rate, from the top."""
    low, high = (32, 320) if sample_rate >= 32000 else (8, 160 if sample_rate >= 16000 else 64)
    # 1 itself is refused
    return min(max((high - kbps) / (high - low), 0.0), 0.9999)


def _vorbis_level(wav: torch.Tensor, sample_rate: int, kbps: float) -> float:
    """The quality, 0 (best) to 1, whose average rate comes nearest, by trial on an excerpt.

    Vorbis has a quality, not a rate; which rate a quality gives depends on the recording.
    """
    excerpt = wav[:, : _EXCERPT_SECONDS * sample_rate]
    seconds = excerpt.shape[1] / sample_rate

    def size(part: torch.Tensor, level: float) -> int:
        return len(_encode(part, sample_rate, "ogg", {"compression_level": level}))

    headers = size(excerpt[:, :1], 0.5)  # some 4 kB, not part of the rate
    low, high = 0.0, 1.0
    for _ in range(6):
        level = (low + high) / 2
        if (size(excerpt, level) - headers) * 8 > kbps * 1000 * seconds:
            low = level
        else:
            high = level
    return (low + high) / 2
