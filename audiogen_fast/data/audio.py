"""Reading and writing wav, flac, ogg (Vorbis) and mp3 files, all through `soundfile`."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.nn import functional as F

from audiogen_fast.data import encoders
from audiogen_fast.data.audio_utils import f32_pcm as f32_pcm
from audiogen_fast.data.audio_utils import normalize_audio
from audiogen_fast.errors import AudioFileError, InvalidInputError, check
from audiogen_fast.files import write_atomically

_OGG_PAGE_MAX = 65307
"""Bytes of the largest Ogg page: 27 of header, 255 of segment table, 255 * 255 of data."""
_UNKNOWN_LENGTH = 2**62
"""libsndfile gives a number beyond this for a stream whose header does not say its length."""


class _UnknownFormatError(InvalidInputError, RuntimeError):
    """A format that cannot be written; the original implementation raises RuntimeError."""


@dataclass(frozen=True)
class AudioFileInfo:
    sample_rate: int
    """In Hz."""
    duration: float
    """In seconds; an estimate for mp3 files without a length header."""
    channels: int


def audio_info(filepath: str | Path | BytesIO) -> AudioFileInfo:
    """Sample rate, duration and channels of a file, from its header.

    `filepath` may be the contents of a file as well.

    Raises:
        FileNotFoundError: no such file.
        AudioFileError: not an audio file, or of an unsupported format.
    """
    with open_audio(filepath) as file:
        return AudioFileInfo(file.samplerate, file.frames / file.samplerate, file.channels)


def audio_read(
    filepath: str | Path | BytesIO,
    seek_time: float = 0.0,
    duration: float = -1.0,
    pad: bool = False,
) -> tuple[torch.Tensor, int]:
    """Read a file or a part of it; the part is exactly what slicing the whole would give.

    Args:
        filepath: wav, flac, ogg or mp3; a path, or the contents of a file.
        seek_time: seconds to skip: `int(seek_time * sample_rate)` frames.
        duration: seconds to read: `int(duration * sample_rate)` frames, or up to the end if
            that comes first. 0 or negative: up to the end.
        pad: add zeros at the end where the file is shorter than `duration` asks.

    Returns:
        `[C, T]` float32 on the CPU, full scale 1, and the sample rate. T is 0 when `seek_time`
        lies beyond the end and nothing is padded.

    Raises:
        FileNotFoundError: no such file.
        AudioFileError: not an audio file, damaged, or of an unsupported format.
        InvalidInputError: a negative, NaN or infinite `seek_time`, a NaN or infinite `duration`.
    """
    wav, sample_rate = _soundfile_read(filepath, seek_time, duration)
    if pad and duration > 0:
        wav = F.pad(wav, (0, int(duration * sample_rate) - wav.shape[-1]))
    return wav, sample_rate


def _soundfile_read(
    filepath: str | Path | BytesIO, seek_time: float = 0.0, duration: float = -1.0
) -> tuple[torch.Tensor, int]:
    """`audio_read` without padding."""
    check(
        math.isfinite(seek_time) and seek_time >= 0,
        f"seek_time must be finite and at least 0 seconds, got {seek_time}",
    )
    check(math.isfinite(duration), f"duration must be finite, got {duration}")
    with open_audio(filepath) as file:
        start = min(int(seek_time * file.samplerate), file.frames)
        stop = file.frames
        if duration > 0:
            stop = min(stop, start + int(duration * file.samplerate))
        first = _decoding_start(filepath, file, start)
        if first > 0:
            file.seek(first)
        # one read: soundfile seeks after each, and what follows would not be exact
        data = file.read(stop - first, dtype="float32", always_2d=True)[start - first :]
        return torch.from_numpy(np.ascontiguousarray(data.T)), file.samplerate


# Names that callers of the original implementation import; it chose a library by the file suffix.
_av_info = _soundfile_info = audio_info
_av_read = _soundfile_read


@contextmanager
def open_audio(filepath: str | Path | BytesIO) -> Iterator[soundfile.SoundFile]:
    """The file, open for reading; whatever libsndfile objects to becomes an `AudioFileError`."""
    contents = isinstance(filepath, BytesIO)
    if contents:
        filepath.seek(0)
    else:
        with open(filepath, "rb"):
            pass  # raises FileNotFoundError, PermissionError or IsADirectoryError, with the name
    try:
        if not contents and Path(filepath).suffix.lower() == ".raw":
            raise soundfile.SoundFileError("a raw file has no header.")
        with soundfile.SoundFile(filepath) as file:
            if file.frames > _UNKNOWN_LENGTH:
                raise soundfile.SoundFileError("its header does not say how long it is.")
            yield file
    except soundfile.SoundFileError as error:
        name, reason = filepath, error
        if contents:  # libsndfile's message would have its address
            name, reason = "these contents", getattr(error, "error_string", error)
        raise AudioFileError(
            f"cannot read {name}: {reason} Supported formats: wav, flac, ogg and mp3."
        ) from error


def _decoding_start(filepath: str | Path | BytesIO, file: soundfile.SoundFile, start: int) -> int:
    """The frame to seek to, so that `start` and what follows are decoded as in the whole file."""
    if file.format == "MP3":
        # mp3 frames use data of the half second before them, which a seek does not decode
        return max(0, start - file.samplerate)
    if file.format == "OGG":
        if file.subtype != "VORBIS":
            return 0
        # within the last page libsndfile seeks too far: it counts from the end of the last block,
        # which the end of the recording cuts short
        return min(start, max(0, _last_ogg_page_start(_tail(filepath, 3 * _OGG_PAGE_MAX)) - 1))
    return start


def _tail(filepath: str | Path | BytesIO, size: int) -> bytes:
    """The last bytes of a file, up to `size` of them."""
    if isinstance(filepath, BytesIO):  # libsndfile is reading it: its position must stay
        return bytes(filepath.getbuffer()[-size:])
    with open(filepath, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read()


def _last_ogg_page_start(tail: bytes) -> int:
    """Frames before the last page of an Ogg file, from its last three pages or more: the position
    that its predecessor ends at.

    RFC 3533: a page begins with "OggS", a version byte 0 and a byte of flags, then comes the
    position in frames as a little-endian int64, -1 where no packet ends on the page.
    """
    last = tail.rfind(b"OggS\0")
    position = -1
    while position < 0 and (last := tail.rfind(b"OggS\0", 0, last)) >= 0:
        position = int.from_bytes(tail[last + 6 : last + 14], "little", signed=True)
    return max(position, 0)


def audio_write(
    stem_name: str | Path,
    wav: torch.Tensor,
    sample_rate: int,
    format: str = "wav",
    mp3_rate: int = 320,
    ogg_rate: int | None = None,
    normalize: bool = True,
    strategy: str = "peak",
    peak_clip_headroom_db: float = 1,
    rms_headroom_db: float = 18,
    loudness_headroom_db: float = 14,
    loudness_compressor: bool = False,
    log_clipping: bool = True,
    make_parent_dir: bool = True,
    add_suffix: bool = True,
) -> Path:
    """Set the level of a waveform and write it to a file, whole or not at all.

    The file appears under its name only once it is complete; if writing fails, a file that was
    there before stays as it was.

    Args:
        stem_name: path without the suffix, which is appended: "v1.2" becomes "v1.2.wav".
        wav: `[C, T]` or `[T]`, floating point, at least one sample; not changed.
        sample_rate: in Hz. mp3 knows 8, 11.025, 12, 16, 22.05, 24, 32, 44.1 and 48 kHz.
        format: "wav" (16 bits), "flac" (24 bits), "ogg" (Vorbis) or "mp3".
        mp3_rate: kbit/s, constant; the nearest that mp3 has at this sample rate (160 at most
            from 16 to 24 kHz, 64 below). Needs soundfile 0.13, ignored before.
        ogg_rate: kbit/s on average, as near as Vorbis comes; None for its usual quality. Needs
            soundfile 0.13, ignored before.
        normalize, strategy, peak_clip_headroom_db, rms_headroom_db, loudness_headroom_db,
            loudness_compressor, log_clipping: see `audio_utils.normalize_audio`.
        make_parent_dir: create missing folders.
        add_suffix: False writes to `stem_name` as it is.

    Returns:
        The path written.

    Raises:
        InvalidInputError: integer, infinite or NaN samples, no samples, more than 2 dimensions,
            an unknown format (this one is a RuntimeError too), a bad rate or strategy, a path
            that is not a plain file.
        AudioFileError: the format does not take this sample rate or number of channels.
        OSError: the file cannot be written.
    """
    check(wav.is_floating_point(), f"wav must be floating point, got {wav.dtype}")
    check(wav.dim() <= 2, f"Input wav should be at most 2 dimension. Got {wav.dim()}.")
    wav = torch.atleast_2d(wav.detach().to("cpu", torch.float32))
    check(wav.numel() > 0, f"wav must have at least one sample, got shape {tuple(wav.shape)}")
    check(bool(wav.isfinite().all()), "wav must be finite, got NaN or infinite samples")
    if format not in encoders.FORMATS:
        known = ", ".join(encoders.FORMATS)
        raise _UnknownFormatError(f"Invalid format {format}, must be one of {known}")
    rate = int(sample_rate)
    check(rate == sample_rate > 0, f"sample_rate must be a positive integer, got {sample_rate}")

    wav = normalize_audio(
        wav,
        normalize,
        strategy,
        peak_clip_headroom_db,
        rms_headroom_db,
        loudness_headroom_db,
        loudness_compressor,
        log_clipping=log_clipping,
        sample_rate=rate,
        stem_name=str(stem_name),
    )
    path = Path(f"{stem_name}.{format}" if add_suffix else stem_name)
    if make_parent_dir:
        path.parent.mkdir(exist_ok=True, parents=True)
    try:
        # in memory first: libsndfile does not report a disk that is full when it closes the file
        encoded = encoders.encode(wav, rate, format, mp3_rate=mp3_rate, ogg_rate=ogg_rate)
    except soundfile.SoundFileError as error:
        raise AudioFileError(
            f"cannot write {path}: {wav.shape[0]} channels at {rate} Hz as {format}: {error}"
        ) from error
    _replace_file(path, encoded)
    return path


def _replace_file(path: Path, content: bytes) -> None:
    target = Path(os.path.realpath(path))  # a link stays a link, to the new contents
    plain = target.is_file() or not target.exists()
    check(plain, f"stem_name must lead to a plain file, got {path}")
    write_atomically(target, content)
