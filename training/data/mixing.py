"""Mixing as an augmentation: two sounds at once, and both descriptions (arXiv 2209.15352, 3.3)."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from audiogen_fast.errors import check
from audiogen_fast.training.data.batch import Batch, SoundInfo

_EPS = torch.finfo(torch.float32).eps
_SOURCE_DB = -25.0
_LEVEL_DB = (-35, -15)
"""Level of a mixture, dBFS RMS: an integer, the upper end excluded."""
_PEAK = 0.99


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """When and how samples of a batch are mixed."""

    aug_p: float = 0.0
    """Probability that a batch is mixed; 0 turns all of this off."""
    mix_p: float = 0.5
    """Part of a batch that is left of it, mixed or not: `int(mix_p * B)` samples."""
    mix_snr_low: int = -5
    """Lowest ratio of the two levels in dB; the integer is drawn once for a batch."""
    mix_snr_high: int = 5
    """The ratio stays below this."""
    mix_min_overlap: float = 0.5
    """The second sound starts within the first `1 - mix_min_overlap` of the sample."""

    def __post_init__(self) -> None:
        for name in ("aug_p", "mix_p", "mix_min_overlap"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"{name} must lie in 0..1, got {value}")
        check(
            self.mix_snr_low < self.mix_snr_high,
            "mix_snr_low must be below mix_snr_high, got "
            f"{self.mix_snr_low} and {self.mix_snr_high}",
        )


def mix_batch(batch: Batch, config: MixingConfig, rng: np.random.Generator) -> Batch:
    """Mix samples of a batch with each other, or only take part of it.

    With probability `aug_p`, `int(mix_p * B)` pairs are drawn, a sound possibly with itself, and
    mixed at one ratio and one offset for the whole batch. Otherwise as many samples are drawn, so
    that the size does not change from batch to batch.

    Args:
        batch: with mono `wav` `[B, 1, T]`.
        config: see there.
        rng: all draws come from it.
    """
    if config.aug_p == 0 or config.mix_p == 0:
        return batch
    size, channels, _ = batch.wav.shape
    kept = int(config.mix_p * size)
    check(kept >= 1, f"mix_p * batch size must be at least 1, got {config.mix_p} * {size}")
    mixed = rng.random() < config.aug_p
    first = rng.permutation(size)[:kept]
    if not mixed:
        return replace(batch, wav=batch.wav[first], infos=[batch.infos[i] for i in first])
    check(channels == 1, f"mixing needs mono audio, got {channels} channels")
    second = rng.permutation(size)[:kept]
    snr = int(rng.integers(config.mix_snr_low, config.mix_snr_high))
    samples = batch.wav.shape[-1]
    start = int(rng.integers(int(samples * (1 - config.mix_min_overlap)) + 1))
    levels = torch.from_numpy(rng.integers(*_LEVEL_DB, kept)).float()
    wav = mix(batch.wav[first, 0], batch.wav[second, 0], snr, start, levels)
    infos = [
        _mixed_info(batch.infos[i], batch.infos[j], start, samples)
        for i, j in zip(first, second, strict=True)
    ]
    return replace(batch, wav=wav.unsqueeze(1), infos=infos)


def mix(first: Tensor, second: Tensor, snr_db: float, start: int, levels_db: Tensor) -> Tensor:
    """Add the second sound, from `start` on and cut at the end, to the first.

    Both have a level of -25 dBFS before the second is scaled by the ratio; the sum gets the level
    asked for, unless a sample then passes 0.99: the peak comes down to that. Silence stays.

    Args:
        first, second: `[B, T]`, full scale 1.
        snr_db: level of the first above that of the second, over all T samples.
        start: in samples.
        levels_db: `[B]`, RMS of the result.
    Returns:
        `[B, T]`.
    """
    mixed = _at_level(first, _SOURCE_DB)
    second = _at_level(second, _SOURCE_DB - snr_db)
    mixed[:, start:] += second[:, : second.shape[1] - start]
    mixed = _at_level(mixed, levels_db.to(mixed).unsqueeze(1))
    peak = mixed.abs().amax(dim=1, keepdim=True)
    return torch.where(peak > _PEAK, mixed * (_PEAK / peak.clamp(min=_EPS)), mixed)


def _at_level(wav: Tensor, level_db: float | Tensor) -> Tensor:
    rms = wav.square().mean(dim=1, keepdim=True).sqrt()
    return wav * (10 ** (level_db / 20) / (rms + _EPS))


def mix_descriptions(first: str | None, second: str | None) -> str | None:
    """Both, one after the other, or the one there is, or once what is equal."""
    if first == second or second is None:
        return first
    return second if first is None else f"{first} {second}"


def _mixed_info(first: SoundInfo, second: SoundInfo, start: int, samples: int) -> SoundInfo:
    return replace(
        first,
        description=mix_descriptions(first.description, second.description),
        n_frames=max(first.n_frames, min(start + second.n_frames, samples)),
        mixed_with=second.id,
    )
