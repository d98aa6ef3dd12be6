"""Segments of recordings with what is said of them: the original's `SoundDataset`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from audiogen_fast.data.audio import audio_read
from audiogen_fast.data.audio_utils import convert_audio, convert_audio_channels
from audiogen_fast.errors import AudioGenFastError, DataError, InvalidInputError, check
from audiogen_fast.training.data.batch import Batch, Item, Skipped, SoundInfo, collate
from audiogen_fast.training.data.captions import Captions
from audiogen_fast.training.data.containers import Archives, contents_or_path
from audiogen_fast.training.data.manifest import AudioMeta, Manifest
from audiogen_fast.training.data.mixing import MixingConfig, mix_batch
from audiogen_fast.training.data.sampling import ITEM, MIXING, ORDER, FileSampler, generator

_SUBSET_SEED = 42


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which segments are drawn and what they are converted to; the original's names."""

    segment_duration: float | None = None
    """Seconds of a sample; None for whole recordings, each once an epoch."""
    num_samples: int = 10_000
    """Samples in an epoch; of whole recordings, the most that are taken (always the same ones)."""
    sample_rate: int = 16_000
    """In Hz; everything is converted."""
    channels: int = 1
    shuffle: bool = True
    """Other samples in each epoch (of whole recordings: another order)."""
    shuffle_seed: int = 0
    """At least 0."""
    permutation_on_files: bool = False
    """Each recording once before any comes again, without `shuffle` in the order of the manifest;
    else they are drawn."""
    sample_on_duration: bool = True
    """Draw recordings in proportion to their duration."""
    sample_on_weight: bool = True
    """Draw recordings in proportion to the manifest's weights."""
    min_segment_ratio: float = 0.5
    """Part of a segment that at least comes from the recording, if that is long enough: segments
    begin at most `duration - min_segment_ratio * segment_duration` seconds into it."""
    pad: bool = True
    """Fill short segments up with zeros to `int(segment_duration * sample_rate)` frames. Without
    it a batch is as long as its longest sample."""
    min_audio_duration: float | None = None
    """Leave out shorter recordings."""
    max_audio_duration: float | None = None
    """Leave out longer recordings."""
    max_read_retry: int = 10
    """Draws for one sample, before it is an error that none can be used."""
    silence_db: float | None = -80.0
    """Draw again where the level is below this (dBFS RMS, padding not counted); None: never."""
    require_description: bool = True
    """Recordings without a description cannot be used; False for a codec."""
    external_metadata_source: str | None = None
    """Folder of JSON files, for recordings that have none beside them."""
    attributes: tuple[str, ...] = ()
    """Further text attributes to read; a sample lacking one has None."""
    lowercase: bool = True
    """Descriptions and attributes in lower case, as the original does."""
    load_wav: bool = True
    """False gives zeros: for a first look at what would be drawn."""
    mixing: MixingConfig = field(default_factory=MixingConfig)

    def __post_init__(self) -> None:
        duration = self.segment_duration
        check(
            duration is None or duration * self.sample_rate >= 1,
            f"segment_duration must be at least one frame, got {duration}",
        )
        for name in ("num_samples", "sample_rate", "channels", "max_read_retry"):
            value = getattr(self, name)
            check(value >= 1, f"{name} must be at least 1, got {value}")
        check(self.shuffle_seed >= 0, f"shuffle_seed must be at least 0, got {self.shuffle_seed}")
        ratio = self.min_segment_ratio
        check(0 <= ratio <= 1, f"min_segment_ratio must lie in 0..1, got {ratio}")
        check(
            self.mixing.aug_p == 0 or duration is not None,
            "mixing needs segments of one length: segment_duration must be set",
        )


class SoundDataset:
    """Samples that depend only on the seed, the epoch and their index.

    Args:
        manifest: the recordings.
        config: see `DatasetConfig`.
    Raises:
        InvalidInputError: the filters of the configuration leave no recording.
    """

    def __init__(self, manifest: Manifest, config: DatasetConfig):
        self.config = config
        self.manifest = _filtered(manifest, config)
        self.captions = Captions(
            config.attributes,
            config.external_metadata_source,
            config.require_description,
            config.lowercase,
        )
        self.archives = Archives()
        if self._whole and config.num_samples < len(self.manifest):
            order = generator(ORDER, _SUBSET_SEED, 0).permutation(len(self.manifest))
            self.manifest = self.manifest.select(np.sort(order[: config.num_samples]))
        self._sampler = FileSampler(
            self.manifest.durations,
            self.manifest.weights,
            config.sample_on_duration and not self._whole,
            config.sample_on_weight and not self._whole,
            config.permutation_on_files or self._whole,
            config.shuffle_seed,
        )

    @property
    def seed(self) -> int:
        return self.config.shuffle_seed

    def __len__(self) -> int:
        """Samples in an epoch."""
        return len(self.manifest) if self._whole else self.config.num_samples

    @property
    def _whole(self) -> bool:
        return self.config.segment_duration is None

    def read(self, epoch: int, index: int) -> Item:
        """A sample; `wav` is `[C, T]`.

        Raises:
            DataError: `max_read_retry` draws gave nothing that can be used.
        """
        epoch = epoch if self.config.shuffle else 0
        rng = generator(ITEM, self.seed, epoch, index)
        skipped: list[Skipped] = []
        for attempt in range(self.config.max_read_retry):
            meta, seek_time = self._draw(rng, epoch, index, attempt)
            try:
                item = self.segment(meta, seek_time, rng)
            except UnusableError as error:
                skipped.append(error.skipped)
            else:
                item.skipped = skipped
                return item
        last = skipped[-1]
        raise DataError(
            f"{self.manifest.source}: none of {len(skipped)} draws (max_read_retry) for sample "
            f"{index} of epoch {epoch} can be used, the last one {last.path}: {last.reason}"
        )

    def collate(self, items: Sequence[Item], epoch: int, step: int, rank: int) -> Batch:
        """A batch of samples, mixed if the configuration says so."""
        key = (MIXING, self.seed, epoch if self.config.shuffle else 0, step, rank)
        return mix_batch(collate(items), self.config.mixing, generator(*key))

    def _draw(
        self, rng: np.random.Generator, epoch: int, index: int, attempt: int
    ) -> tuple[AudioMeta, float]:
        """The recording and the seconds to skip."""
        if self._sampler.permutation and (attempt > 0 or not self.config.shuffle):
            # the next one stands in for one that cannot be used
            file = (index + attempt) % len(self.manifest)
        else:
            file = self._sampler.draw(rng, epoch * len(self) + index)
        meta = self.manifest[file]
        if self._whole:
            return meta, 0.0
        segment = self.config.segment_duration * self.config.min_segment_ratio
        return meta, rng.random() * max(0.0, meta.duration - segment)

    def segment(self, meta: AudioMeta, seek_time: float, rng: np.random.Generator) -> Item:
        """The sample at one place of one recording.

        Raises:
            UnusableError: it is unreadable or silent, or nothing is said of it.
        """
        try:
            return self._segment(meta, seek_time, rng)
        # InvalidInputError too: channels that cannot be converted
        except (AudioGenFastError, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UnusableError(Skipped(meta.path, reason)) from error

    def _segment(self, meta: AudioMeta, seek_time: float, rng: np.random.Generator) -> Item:
        config = self.config
        description, attributes = self.captions.read(meta, self.archives, rng)
        target = None
        if config.segment_duration is not None:
            target = int(config.segment_duration * config.sample_rate)
        wav = self._read_wav(meta, seek_time, target)
        n_frames = wav.shape[-1]
        if target is not None and config.pad and n_frames < target:
            wav = torch.nn.functional.pad(wav, (0, target - n_frames))
        info = SoundInfo(
            id=meta.id,
            path=meta.path,
            description=description,
            seek_time=seek_time,
            n_frames=n_frames,
            total_frames=wav.shape[-1],
            sample_rate=config.sample_rate,
            channels=wav.shape[0],
            duration=meta.duration,
            attributes=attributes,
        )
        return Item(info, wav)

    def _read_wav(self, meta: AudioMeta, seek_time: float, target: int | None) -> Tensor:
        config = self.config
        if not config.load_wav:
            frames = int((meta.duration - seek_time) * config.sample_rate)
            return torch.zeros(config.channels, frames if target is None else min(frames, target))
        source = contents_or_path(self.archives, meta.path)
        wav, rate = audio_read(source, seek_time, config.segment_duration or -1.0)
        if wav.shape[-1] == 0:
            raise DataError(f"ends before the {meta.duration} s of the manifest")
        if not wav.isfinite().all():
            raise DataError("has NaN or infinite samples")
        if config.channels == 1:  # the same before resampling, in half the time
            wav = convert_audio_channels(wav, 1)
        wav = convert_audio(wav, rate, config.sample_rate, config.channels)[..., :target]
        if wav.shape[-1] == 0:
            raise DataError(f"shorter than one frame at {config.sample_rate} Hz")
        if config.silence_db is not None:
            level = 10 * torch.log10(wav.square().mean()).item()
            if level < config.silence_db:
                reason = f"silent, below {config.silence_db} dBFS"
                raise UnusableError(Skipped(meta.path, reason, silent=True))
        return wav


class UnusableError(Exception):
    """A place of a recording that cannot be a sample."""

    def __init__(self, skipped: Skipped):
        super().__init__(f"{skipped.path}: {skipped.reason}")
        self.skipped = skipped


def _filtered(manifest: Manifest, config: DatasetConfig) -> Manifest:
    keep = np.ones(len(manifest), bool)
    if config.min_audio_duration is not None:
        keep &= manifest.durations >= config.min_audio_duration
    if config.max_audio_duration is not None:
        keep &= manifest.durations <= config.max_audio_duration
    if keep.all():
        return manifest
    if not keep.any():
        raise InvalidInputError(
            f"{manifest.source}: min_audio_duration {config.min_audio_duration} and "
            f"max_audio_duration {config.max_audio_duration} leave no recording"
        )
    return manifest.select(np.flatnonzero(keep))
