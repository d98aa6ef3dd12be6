"""Rows that every table needs to be read: what good, unrelated and useless sounds score.

A figure of a system says little alone. Between real clips above and noise below it does.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from audiogen_fast.evaluation.clips import ClipSet
from audiogen_fast.evaluation.sources import same

REAL, SHUFFLED, NOISE = "real clips", "shuffled captions", "noise"
NOISY, LOW_PASSED = "10 dB noise", "1 kHz low-pass"


def noise(reference: ClipSet, seed: int, name: str = NOISE) -> ClipSet:
    """White noise for each clip, of the length and the level of one of another caption.

    Of another, because the length alone tells something: noise as short as an impact is nearer to
    impacts than to rain.
    """
    groups = tuple(
        clip.name if clip.caption is None else same(clip.caption) for clip in reference.clips
    )
    order = shuffles(groups, 1, seed)[0]
    made = _each(reference, name, _noise, seed).clips
    clips = [
        replace(made[other], name=clip.name, caption=clip.caption, reference=clip.name)
        for clip, other in zip(reference.clips, order, strict=True)
    ]
    return ClipSet(name, clips)


def noisy(reference: ClipSet, seed: int, snr_db: float = 10.0, name: str = NOISY) -> ClipSet:
    """Each clip with white noise added, `snr_db` below its level."""
    return _each(reference, name, partial(_add_noise, snr_db=snr_db), seed)


def low_passed(reference: ClipSet, cutoff: float = 1000.0, name: str = LOW_PASSED) -> ClipSet:
    """Each clip without what lies above `cutoff` Hz."""
    clips = [clip.changed(partial(low_pass, cutoff=cutoff)) for clip in reference.clips]
    return ClipSet(name, clips)


def _each(reference: ClipSet, name: str, change, seed: int) -> ClipSet:
    clips = [
        clip.changed(partial(change, seed=_seed_of(seed, clip.name))) for clip in reference.clips
    ]
    return ClipSet(name, clips)


def _seed_of(seed: int, name: str) -> int:
    """Each clip has its own noise, whichever others there are."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=False) >> 1


def _white(wav: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(wav.shape, generator=generator)


def _noise(wav: Tensor, rate: int, seed: int) -> Tensor:
    return _white(wav, seed) * wav.square().mean().sqrt()


def _add_noise(wav: Tensor, rate: int, seed: int, snr_db: float) -> Tensor:
    return wav + _noise(wav, rate, seed) * 10 ** (-snr_db / 20)


def low_pass(wav: Tensor, rate: int, cutoff: float) -> Tensor:
    """`wav` `[T]` without the frequencies above `cutoff` Hz, by its Fourier transform."""
    spectrum = torch.fft.rfft(wav)
    frequencies = torch.fft.rfftfreq(len(wav), 1 / rate)
    return torch.fft.irfft(spectrum * (frequencies <= cutoff), len(wav))


def partners(captions: Sequence[str | None]) -> list[int | None]:
    """For each clip another one of the same caption, None where there is none.

    The clips of a caption are taken round: each answers for exactly one.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, caption in enumerate(captions):
        if caption is not None:
            groups[same(caption)].append(index)
    found: list[int | None] = [None] * len(captions)
    for members in groups.values():
        if len(members) > 1:
            for index, other in zip(members, members[1:] + members[:1], strict=True):
                found[index] = other
    return found


@lru_cache(maxsize=16)
def shuffles(groups: tuple[str, ...], count: int, seed: int) -> np.ndarray:
    """Permutations of items, int64 `[count, n]`, that put none in the place of its own group.

    As far as that can be had: where one group has more than half of all items, some stay.
    """
    rng = np.random.default_rng([seed, 0x5F])
    _, labels = np.unique(np.array(groups), return_inverse=True)
    return np.stack([_shuffle(labels, rng) for _ in range(count)])


def _shuffle(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(len(labels))
    for _ in range(20):
        kept = np.flatnonzero(labels[order] == labels)
        if len(kept) == 0:
            break
        for place in kept:
            # swap with a place where neither would be at home
            free = (labels[order] != labels[place]) & (labels != labels[order[place]])
            choices = np.flatnonzero(free)
            if len(choices):
                other = rng.choice(choices)
                order[[place, other]] = order[[other, place]]
    return order
