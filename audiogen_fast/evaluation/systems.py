"""Sounds that are made for an evaluation: by a model, and by a codec."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audiogen_fast.api import AudioGen
from audiogen_fast.data.audio_utils import convert_audio
from audiogen_fast.errors import check
from audiogen_fast.evaluation.clips import Clip, ClipSet, Fault, inspected
from audiogen_fast.models.encodec import CompressionModel


@dataclass
class Made:
    """The clips of a model, and how long they took."""

    clips: ClipSet
    sound: float
    """Seconds generated, before they were cut to length."""
    computing: float
    """Seconds it took, the first batch's start-up included."""
    drawn: dict[str, Any]
    """The model's `generation_params` meanwhile."""


@dataclass(frozen=True)
class Sampling:
    """How a model generates; see `AudioGen.set_generation_params`."""

    seed: int = 0
    """Sound i is drawn with `seed + i`."""
    duration: float | None = None
    """Seconds of each sound; None: as long as its reference."""
    batch_size: int = 8
    use_sampling: bool = True
    top_k: int | None = None
    """None, as for `temperature`: the model's own."""
    top_p: float = 0.0
    temperature: float | None = None
    cfg_coef: float = 3.0


_SETTINGS = ("duration", "extend_stride", "batch_invariant", "generation_params")
"""Of a model; it gets its own back."""


def generate(
    model: AudioGen,
    reference: ClipSet,
    name: str,
    sampling: Sampling,
    progress: Callable[[int], None] | None = None,
) -> Made:
    """A sound for the caption of every reference that has one.

    Sounds of similar length are made together, each cut to its own: what a language model writes
    first does not depend on how long it goes on, but for the last three frames, after which the
    delay pattern has nothing more in a shorter sequence.

    Args:
        progress: called with the number of sounds of each batch.
    """
    captioned = [clip for clip in reference.clips if clip.caption is not None]
    check(bool(captioned), "reference must have captions to generate for, got none")
    seeds = {clip.name: sampling.seed + index for index, clip in enumerate(reference.clips)}

    def length(clip: Clip) -> float:
        return sampling.duration or clip.seconds

    before = {name: getattr(model, name) for name in _SETTINGS}
    made: dict[str, Clip] = {}
    sound = computing = 0.0
    queue = sorted(captioned, key=lambda clip: (-length(clip), clip.name))
    for start in range(0, len(queue), sampling.batch_size):
        batch = queue[start : start + sampling.batch_size]
        _set_sampling(model, sampling, length(batch[0]))
        began = time.perf_counter()
        texts = [clip.caption for clip in batch]
        wavs = model.generate(texts, seed=[seeds[clip.name] for clip in batch]).cpu()
        computing += time.perf_counter() - began
        sound += len(batch) * wavs.shape[-1] / model.sample_rate
        for clip, wav in zip(batch, wavs, strict=True):
            samples = round(length(clip) * model.sample_rate)
            mono = wav.float().mean(0)[:samples].clone()
            made[clip.name] = Clip(
                clip.name, clip.caption, mono, model.sample_rate, reference=clip.name
            )
        if progress is not None:
            progress(len(batch))
    drawn = model.generation_params
    for setting, value in before.items():
        setattr(model, setting, value)
    found = inspected(name, [made[clip.name] for clip in captioned])
    without = [clip for clip in reference.clips if clip.caption is None]
    found.faults += [
        Fault(name, clip.name, "missing", "its reference has no caption", False) for clip in without
    ]
    return Made(found, sound, computing, drawn)


def _set_sampling(model: AudioGen, sampling: Sampling, seconds: float) -> None:
    frames = max(1, math.ceil(seconds * model.frame_rate - 1e-6))
    duration = (frames + 0.01) / model.frame_rate  # rounding must not lose the last frame
    if seconds <= model.max_duration:
        duration = min(duration, model.max_duration)  # nor begin another window
    model.set_generation_params(
        use_sampling=sampling.use_sampling,
        top_k=None if sampling.top_k is None else min(sampling.top_k, model.lm.card),
        top_p=sampling.top_p,
        temperature=sampling.temperature,
        duration=duration,
        cfg_coef=sampling.cfg_coef,
        extend_stride=min(2, model.max_duration / 2),
        batch_invariant=True,
    )


@dataclass
class Reconstructions:
    """What a codec makes of clips."""

    clips: ClipSet
    codes: list[Tensor] = field(default_factory=list)
    """int64 `[K, T]` of each."""
    sound: float = 0.0
    computing: float = 0.0


@torch.no_grad()
def reconstruct(
    codec: CompressionModel,
    reference: ClipSet,
    name: str,
    progress: Callable[[int], None] | None = None,
) -> Reconstructions:
    """Every reference encoded and decoded, one at a time: none is padded."""
    device = next(codec.parameters()).device
    found = Reconstructions(ClipSet(name, []))
    made = []
    for clip in reference.clips:
        wav = clip.read(codec.sample_rate)
        given = convert_audio(wav[None], codec.sample_rate, codec.sample_rate, codec.channels)
        began = time.perf_counter()
        codes, scale = codec.encode(given[None].to(device))
        output = codec.decode(codes, scale)[0].float().cpu().mean(0)[: len(wav)]
        found.computing += time.perf_counter() - began
        found.sound += len(wav) / codec.sample_rate
        found.codes.append(codes[0].cpu())
        made.append(Clip(clip.name, clip.caption, output, codec.sample_rate, reference=clip.name))
        if progress is not None:
            progress(1)
    found.clips = inspected(name, made)
    return found
