"""Samples from a cache: no codec and no text encoder at training time."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from audiogen_fast.errors import check
from audiogen_fast.training.data.batch import Batch, Item, SoundInfo, collate
from audiogen_fast.training.data.cache import TokenCache
from audiogen_fast.training.data.joined import JoinedCaches
from audiogen_fast.training.data.sampling import ITEM, FileSampler, generator

_INFO = {field.name for field in fields(SoundInfo)}


@dataclass(frozen=True, kw_only=True)
class TokenDatasetConfig:
    """Which samples of a cache are drawn."""

    num_samples: int | None = None
    """Samples in an epoch; None: as many as the cache has."""
    segment_duration: float | None = None
    """Seconds to cut at a random place out of each sample; None: all of it."""
    shuffle: bool = True
    """Other samples, or another order, in each epoch."""
    shuffle_seed: int = 0
    """At least 0."""
    permutation_on_files: bool = True
    """Each sample once before any comes again; else they are drawn."""
    sample_on_duration: bool = False
    """Draw samples in proportion to the seconds they have of their recording."""
    sample_on_weight: bool = False
    """Draw samples in proportion to the manifest's weights."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "segment_duration"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name} must be positive, got {value}")
        check(self.shuffle_seed >= 0, f"shuffle_seed must be at least 0, got {self.shuffle_seed}")
        drawn = self.sample_on_duration or self.sample_on_weight
        check(
            not (self.permutation_on_files and drawn),
            "permutation_on_files excludes sample_on_duration and sample_on_weight",
        )


class TokenDataset:
    """Samples that depend only on the seed, the epoch and their index; for a `Loader`.

    Args:
        cache: or its folder.
        config: see `TokenDatasetConfig`.
    """

    def __init__(
        self,
        cache: TokenCache | JoinedCaches | str | Path,
        config: TokenDatasetConfig | None = None,
    ):
        self.cache = TokenCache(cache) if isinstance(cache, str | Path) else cache
        self.config = config = config or TokenDatasetConfig()
        check(len(self.cache) > 0, f"cache {self.cache.folder} must have samples, got none")
        self._sampler = FileSampler(
            self.cache.column("seconds"),
            self.cache.column("weights"),
            config.sample_on_duration,
            config.sample_on_weight,
            config.permutation_on_files,
            config.shuffle_seed,
        )

    @property
    def seed(self) -> int:
        return self.config.shuffle_seed

    def __len__(self) -> int:
        """Samples in an epoch."""
        return self.config.num_samples or len(self.cache)

    def read(self, epoch: int, index: int) -> Item:
        """A sample; `codes` is `[K, T]`."""
        config, codec = self.config, self.cache.settings["codec"]
        number = index % len(self.cache)
        rng = generator(ITEM, self.seed, epoch if config.shuffle else 0, index)
        if config.shuffle:
            number = self._sampler.draw(rng, epoch * len(self) + index)
        stored = self.cache.sample(number)
        texts = stored.row["description"]
        text = texts[int(rng.integers(len(texts)))] if texts else None
        info = SoundInfo(**{k: v for k, v in stored.row.items() if k in _INFO})
        info.description = None if text is None else self.cache.text(text)
        codes = stored.codes
        if config.segment_duration is not None:
            frames = max(1, round(config.segment_duration * codec["frame_rate"]))
            start = int(rng.integers(max(1, self.cache.real_frames(stored.row) - frames + 1)))
            start -= start % codec["virtual_steps"]
            codes = codes[:, start : start + frames]
            _cut(info, start / codec["frame_rate"], frames / codec["frame_rate"])
        return Item(info, codes=codes, text_embedding=self._embedding(text))

    def collate(self, items: Sequence[Item], epoch: int, step: int, rank: int) -> Batch:
        """A batch of samples."""
        return collate(items)

    def _embedding(self, text: int | None) -> Tensor | None:
        if self.cache.text_dim is None:
            return None
        if text is None:
            return torch.zeros(0, self.cache.text_dim, dtype=self.cache.text_dtype)
        return self.cache.embedding(text)


def _cut(info: SoundInfo, start: float, length: float) -> None:
    """Make `info` that of a part of its sample, both in seconds."""
    skipped = round(start * info.sample_rate)
    info.seek_time += start
    info.total_frames = min(info.total_frames - skipped, round(length * info.sample_rate))
    info.n_frames = min(info.n_frames - skipped, info.total_frames)
