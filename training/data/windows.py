"""Recordings cut into samples of one length, for a cache."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from audiogen_fast.errors import check
from audiogen_fast.training.data.batch import Skipped, SoundInfo
from audiogen_fast.training.data.dataset import DatasetConfig, SoundDataset, UnusableError
from audiogen_fast.training.data.manifest import Manifest
from audiogen_fast.training.data.sampling import ITEM, generator


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How a cache is made."""

    segment_duration: float = 10.0
    """Seconds of a sample."""
    stride: float | None = None
    """Seconds from one sample of a recording to the next; None: `segment_duration`."""
    min_segment_ratio: float = 0.5
    """Leave out a sample that has less than this of its length, unless it is the first."""
    require_description: bool = True
    """Recordings without a description cannot be used."""
    silence_db: float | None = -80.0
    """Leave out samples below this level, dBFS RMS; None keeps all."""
    external_metadata_source: str | None = None
    """Folder of JSON files, for recordings that have none beside them."""
    attributes: tuple[str, ...] = ()
    """Further text attributes to keep."""
    lowercase: bool = True
    """Descriptions and attributes in lower case, as the original does."""
    text_dtype: str = "float32"
    """Of the encoded texts, or `float16`."""
    shard_items: int = 4096
    """Samples in a file."""

    def __post_init__(self) -> None:
        for name in ("segment_duration", "stride"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name} must be positive, got {value}")
        ratio = self.min_segment_ratio
        check(0 <= ratio <= 1, f"min_segment_ratio must lie in 0..1, got {ratio}")
        check(self.shard_items >= 1, f"shard_items must be at least 1, got {self.shard_items}")
        known = ("float32", "float16")
        check(
            self.text_dtype in known, f"text_dtype must be one of {known}, got {self.text_dtype!r}"
        )


@dataclass
class Window:
    """One sample with all that is said of it."""

    wav: Tensor
    """float32 `[C, T]`."""
    info: SoundInfo
    texts: list[str]
    """All its descriptions."""
    weight: float


class Windows:
    """The samples of a manifest, in its order: at 0, `stride`, 2 * `stride` ... seconds.

    Args:
        manifest: the recordings.
        config: see `EncodeConfig`.
        sample_rate, channels: of the codec.
    """

    def __init__(self, manifest: Manifest, config: EncodeConfig, sample_rate: int, channels: int):
        self.dataset = SoundDataset(
            manifest,
            DatasetConfig(
                segment_duration=config.segment_duration,
                sample_rate=sample_rate,
                channels=channels,
                require_description=config.require_description,
                silence_db=config.silence_db,
                external_metadata_source=config.external_metadata_source,
                attributes=config.attributes,
                lowercase=config.lowercase,
            ),
        )
        length = config.segment_duration
        stride = config.stride or length
        last = (manifest.durations - length * config.min_segment_ratio) / stride
        # rounded: 0.3 s are to hold three strides of 0.1 s
        counts = 1 + np.maximum(0, np.floor(np.round(last, 6))).astype(np.int64)
        self.files = np.repeat(np.arange(len(manifest)), counts)
        firsts = np.repeat(np.cumsum(counts) - counts, counts)
        self.seek_times = (np.arange(len(self.files)) - firsts) * stride

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Window | Skipped:
        meta = self.dataset.manifest[int(self.files[number])]
        rng = generator(ITEM, 0, 0, number)
        try:
            item = self.dataset.segment(meta, float(self.seek_times[number]), rng)
        except UnusableError as error:
            return error.skipped
        texts, _ = self.dataset.captions.all(meta, self.dataset.archives)
        return Window(item.wav, item.info, texts, 1.0 if meta.weight is None else meta.weight)
