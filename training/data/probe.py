"""Making a manifest: which recordings a folder has, and how long they are."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from audiogen_fast.data.audio import audio_info, open_audio
from audiogen_fast.errors import AudioGenFastError, DataError, InvalidInputError, check
from audiogen_fast.training.data.batch import Skipped
from audiogen_fast.training.data.containers import ARCHIVES, Archives

SUFFIXES = (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".oga", ".opus", ".aif", ".aiff")
"""The original's five and more; what cannot be read is reported."""
_BLOCK = 2**18
_SILENCE = 1e-4
"""Peak below which a decoded recording counts as silent: -80 dBFS."""


@dataclass(frozen=True)
class Probed:
    """What was found."""

    rows: list[dict[str, Any]]
    """Rows of a manifest, in the order of their paths."""
    skipped: list[Skipped]


def probe_folder(
    folder: str | Path,
    *,
    workers: int = 8,
    decode: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Probed:
    """Measure all recordings below a folder, those in tar and zip archives included.

    Links are followed, once each. Threads do the reading, which is outside of Python.

    Args:
        folder: to search.
        workers: threads.
        decode: decode each recording as a whole instead of believing its header: the duration is
            exact, `amplitude` is the peak, and what is damaged or silent is left out.
        progress: called with how many files are done, and of how many.

    Returns:
        Rows with the keys of the original's manifests and paths below `folder` as it was given.

    Raises:
        InvalidInputError: no such folder, or no recording in it.
    """
    check(Path(folder).is_dir(), f"folder: no such folder: {folder}")
    check(workers >= 1, f"workers must be at least 1, got {workers}")
    paths = sorted(_find(str(folder)))
    rows: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda path: _probe(path, decode), paths)
        for done, result in enumerate(results, 1):
            rows += result.rows
            skipped += result.skipped
            if progress is not None:
                progress(done, len(paths))
    if not rows:
        reason = f"; {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        raise InvalidInputError(
            f"folder must have recordings that can be read ({', '.join(SUFFIXES)}), {folder} has "
            f"none of {len(paths)}{reason}"
        )
    return Probed(rows, skipped)


def _find(folder: str) -> Iterator[str]:
    """Recordings and archives at any depth; a folder that links lead to twice counts once."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        wanted = (name for name in names if name.lower().endswith(SUFFIXES + ARCHIVES))
        yield from (os.path.join(parent, name) for name in wanted if not name.startswith("."))


def _probe(path: str, decode: bool) -> Probed:
    if not path.lower().endswith(ARCHIVES):
        return _probe_all([(path, path)], decode)
    archives = Archives()  # not shared between threads
    try:
        names = [name for name in archives.names(path) if name.lower().endswith(SUFFIXES)]
        members = (
            (f"{path}:{name}", lambda name=name: BytesIO(archives.read(path, name)))
            for name in sorted(names)
        )
        return _probe_all(members, decode)
    except (DataError, OSError) as error:
        return Probed([], [Skipped(path, str(error))])
    finally:
        archives.close()


def _probe_all(sources, decode: bool) -> Probed:
    rows, skipped = [], []
    for path, source in sources:
        try:
            source = source() if callable(source) else source
            rows.append(_row(path, source, decode))
        except (AudioGenFastError, OSError) as error:
            skipped.append(Skipped(path, str(error)))
    return Probed(rows, skipped)


def _row(path: str, source: str | BytesIO, decode: bool) -> dict[str, Any]:
    amplitude = None
    if decode:
        duration, sample_rate, amplitude = _decode(source)
        if amplitude < _SILENCE:
            raise DataError(f"silent: its peak is {amplitude:.1e}")
    else:
        info = audio_info(source)
        duration, sample_rate = info.duration, info.sample_rate
    if duration <= 0:
        raise DataError("has no audio")
    return {
        "path": path,
        "duration": duration,
        "sample_rate": sample_rate,
        "amplitude": amplitude,
        "weight": None,
        "info_path": None,
    }


def _decode(source: str | BytesIO) -> tuple[float, int, float]:
    """Seconds, sample rate and peak of all of it."""
    frames, peak = 0, 0.0
    with open_audio(source) as file:
        while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)) > 0:
            frames += len(block)
            if not np.isfinite(block).all():
                raise DataError("has NaN or infinite samples")
            peak = max(peak, float(np.abs(block).max()))
        if frames < file.frames:
            raise DataError(f"ends after {frames} of the {file.frames} frames of its header")
        return frames / file.samplerate, file.samplerate, peak


def with_paths(rows: list[dict[str, Any]], manifest: Path, relative: bool) -> list[dict[str, Any]]:
    """The rows with absolute paths, or with paths relative to the folder of the manifest."""
    folder = manifest.parent.resolve()

    def change(path: str) -> str:
        return os.path.relpath(path, folder) if relative else os.path.abspath(path)

    return [row | {"path": change(row["path"])} for row in rows]
