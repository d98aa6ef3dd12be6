"""Recordings to evaluate: read when they are needed, looked at once before they count."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from audiogen_fast.data.audio import open_audio
from audiogen_fast.data.resample import resample_frac
from audiogen_fast.errors import AudioGenFastError
from audiogen_fast.training.data.containers import Archives, contents_or_path

SHORTEST = 0.1
"""Seconds; what is shorter tells an encoder nothing."""
SILENCE = 1e-4
"""Peak below which a recording is silent: -80 dBFS."""

Change = Callable[[Tensor, int], Tensor]
"""From a waveform `[T]` and its rate to another of that rate."""


@dataclass(frozen=True)
class Clip:
    """One recording of a set."""

    name: str
    """Unique in its set."""
    caption: str | None
    source: str | Tensor
    """Path, `archive.zip:member`, or the waveform `[T]` itself with `sample_rate`."""
    sample_rate: int = 0
    """In Hz, of the recording; 0 until it was looked at."""
    seconds: float = 0.0
    reference: str | None = None
    """Name of the reference clip it answers to."""
    changes: tuple[Change, ...] = ()
    """Applied in turn to what was read."""
    archives: Archives = field(default_factory=Archives, repr=False, compare=False)

    def read(self, sample_rate: int) -> Tensor:
        """The mono waveform, float32 `[T]` at `sample_rate` on the CPU.

        Raises:
            AudioFileError, DataError, OSError: the file cannot be read.
        """
        wav, rate = self.samples()
        return resample_frac(wav, rate, sample_rate)

    def samples(self) -> tuple[Tensor, int]:
        """The mono waveform `[T]` at its own rate, and that rate; raises as `read`."""
        if isinstance(self.source, Tensor):
            wav, rate = self.source.float(), self.sample_rate
        else:
            wav, rate, _ = decode(self.source, self.archives)
        for change in self.changes:
            wav = change(wav, rate)
        return wav, rate

    def changed(self, change: Change) -> "Clip":
        """The clip with one more change; it answers to what it was made from."""
        answered = self.reference or self.name
        return replace(self, changes=(*self.changes, change), reference=answered)


@dataclass(frozen=True)
class Fault:
    """Something wrong with a clip or a set."""

    system: str
    """Name of the set."""
    clip: str
    """Name or path of the clip; empty for the set as a whole."""
    kind: str
    """`unreadable`, `truncated`, `not finite`, `silent`, `too short`, `duplicate`, `same audio`,
    `other rate`, `no caption`, `other caption`, `ambiguous`, `unmatched`, `missing`,
    `empty`."""
    detail: str
    left_out: bool = True
    """The clip takes no part; else it does, and this is only said."""


@dataclass
class ClipSet:
    """The clips of one system that can be used, and what was wrong with the others."""

    name: str
    clips: list[Clip]
    faults: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.clips)

    def take(self, clips: Sequence[Clip]) -> "ClipSet":
        return ClipSet(self.name, list(clips), self.faults)


def decode(source: str, archives: Archives) -> tuple[Tensor, int, int]:
    """Mono waveform `[T]`, rate and how many frames the header promises."""
    with open_audio(contents_or_path(archives, source)) as file:
        frames = file.read(file.frames, dtype="float32", always_2d=True)
        mono = np.ascontiguousarray(frames.mean(axis=1))
        return torch.from_numpy(mono), file.samplerate, file.frames


def inspected(
    name: str,
    candidates: Iterable[Clip],
    promised: Sequence[float | None] | None = None,
    progress: Callable[[], None] | None = None,
) -> ClipSet:
    """Decode every candidate once; keep those that can be used.

    Args:
        name: of the set.
        candidates: clips whose rate and length are not known yet.
        promised: seconds that each should have, where somebody said so.
        progress: called after each.
    """
    candidates = list(candidates)
    promised = promised or [None] * len(candidates)
    found = ClipSet(name, [])
    names: set[str] = set()
    contents: dict[bytes, str] = {}
    for clip, seconds in zip(candidates, promised, strict=True):
        kept = _inspect(found, clip, seconds, names, contents)
        if kept is not None:
            names.add(clip.name)
            found.clips.append(kept)
        if progress is not None:
            progress()
    _other_rates(found)
    return found


def _inspect(
    found: ClipSet,
    clip: Clip,
    promised: float | None,
    names: set[str],
    contents: dict[bytes, str],
) -> Clip | None:
    def fault(kind: str, detail: str, left_out: bool = True) -> None:
        found.faults.append(Fault(found.name, clip.name, kind, detail, left_out))

    if clip.name in names:
        return fault("duplicate", "the name comes twice; the first one counts")
    try:
        wav, rate, frames = _decoded(clip)
    except (AudioGenFastError, OSError) as error:
        return fault("unreadable", " ".join(str(error).split()))
    seconds = len(wav) / rate
    if not bool(wav.isfinite().all()):
        return fault("not finite", "has NaN or infinite samples")
    if len(wav) < frames:
        return fault("truncated", f"ends after {len(wav)} of the {frames} frames of its header")
    if promised is not None and seconds < 0.98 * promised - 0.05:
        return fault("truncated", f"has {seconds:.2f} s, its manifest says {promised:.2f} s")
    if seconds < SHORTEST:
        return fault("too short", f"{len(wav)} samples, {seconds:.4f} s; at least {SHORTEST} s")
    peak = float(wav.abs().max())
    if peak < SILENCE:
        return fault("silent", f"its peak is {peak:.1e}")
    digest = hashlib.sha256(wav.numpy().tobytes()).digest()
    if digest in contents:
        fault("same audio", f"the same samples as {contents[digest]}", left_out=False)
    contents.setdefault(digest, clip.name)
    return replace(clip, sample_rate=rate, seconds=seconds)


def _decoded(clip: Clip) -> tuple[Tensor, int, int]:
    if isinstance(clip.source, Tensor):
        return clip.source.float().cpu(), clip.sample_rate, len(clip.source)
    return decode(clip.source, clip.archives)


def _other_rates(found: ClipSet) -> None:
    """Name clips of another rate than most: they are resampled, and may lack high frequencies."""
    rates = [clip.sample_rate for clip in found.clips]
    if len(set(rates)) > 1:
        common = max(sorted(set(rates)), key=rates.count)
        for clip in found.clips:
            if clip.sample_rate != common:
                detail = f"{clip.sample_rate} Hz, most have {common} Hz; resampled"
                found.faults.append(Fault(found.name, clip.name, "other rate", detail, False))
