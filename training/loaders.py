"""Loaders of a run's data, as its configuration describes them."""

from pathlib import Path

from audiogen_fast.data import audio
from audiogen_fast.errors import check
from audiogen_fast.training.config import TrainConfig
from audiogen_fast.training.data import (
    DatasetConfig,
    JoinedCaches,
    Loader,
    MixingConfig,
    SoundDataset,
    TokenCache,
    TokenDataset,
    TokenDatasetConfig,
    is_cache,
    read_manifest,
)
from audiogen_fast.training.parallel import Ranks

RECORDINGS = Path(audio.__file__).with_name("recordings")


def make_loader(
    config: TrainConfig,
    part: str,
    ranks: Ranks,
    attributes: tuple[str, ...] = (),
    require_description: bool = True,
    segment_duration: float | None = None,
) -> Loader | None:
    """The loader of one part of the data, or None where it has no source.

    Training draws segments in an order that changes with the epoch and drops the rest of a batch;
    the other parts take the same segments each time, and repeat some to fill the last batch.

    Args:
        part: train, valid, evaluate or generate.
        attributes: further text attributes that the model is conditioned on.
        segment_duration: seconds of an item; None: as `dataset` says.
    Raises:
        InvalidInputError: the batch does not divide by the processes and accumulated parts, or
            the source is not what it should be.
    """
    dataset, section = config.dataset, getattr(config.dataset, part)
    if section.source is None:
        return None
    training = part == "train"
    batch_of_process(config, part, ranks.world_size)
    given = section.source if isinstance(section.source, list) else [section.source]
    sources = [_place(source) for source in given]
    check(
        len(sources) == 1 or (len(sources) > 1 and all(map(is_cache, sources))),
        f"dataset.{part}.source must be one place, or several token caches, got {sources}",
    )
    (source, *_) = sources
    if is_cache(source):
        check(
            config.solver == "lm",
            f"dataset.{part}.source must be recordings for a codec, {source} has codes",
        )
        check(
            section.aug_p == 0 and not section.where,
            f"dataset.{part}: codes cannot be mixed or selected (aug_p, where) any more",
        )
        return _loader(config, part, ranks, _tokens(config, part, sources))
    manifest = read_manifest(source, where=section.where)
    options = DatasetConfig(
        segment_duration=segment_duration or dataset.segment_duration,
        num_samples=section.num_samples or len(manifest),
        sample_rate=config.sample_rate,
        channels=config.channels,
        shuffle=training and dataset.shuffle,
        shuffle_seed=dataset.shuffle_seed,
        permutation_on_files=dataset.permutation_on_files or not (training and dataset.shuffle),
        sample_on_duration=dataset.sample_on_duration,
        sample_on_weight=dataset.sample_on_weight,
        min_segment_ratio=dataset.min_segment_ratio,
        silence_db=dataset.silence_db,
        require_description=require_description,
        external_metadata_source=dataset.external_metadata_source,
        attributes=attributes,
        mixing=MixingConfig(
            aug_p=section.aug_p,
            mix_p=section.mix_p,
            mix_snr_low=section.mix_snr_low,
            mix_snr_high=section.mix_snr_high,
            mix_min_overlap=section.mix_min_overlap,
        ),
    )
    return _loader(config, part, ranks, SoundDataset(manifest, options))


def batch_of_process(config: TrainConfig, part: str, world_size: int) -> int:
    """Items of a batch that each process gets to see, after mixing.

    Raises:
        InvalidInputError: they do not divide by the processes and accumulated parts.
    """
    section = getattr(config.dataset, part)
    batch = config.dataset.batch_of(part)
    accumulate = config.optim.accumulate if part == "train" else 1
    parts = world_size * accumulate
    check(
        batch % parts == 0,
        f"dataset.batch_size must be a multiple of {parts} (processes times optim.accumulate), "
        f"got {batch} for {part}",
    )
    loaded = batch // world_size
    if section.aug_p == 0 or section.mix_p == 0:
        return loaded
    kept = int(section.mix_p * loaded)
    check(
        part != "train" or (kept >= 1 and kept % accumulate == 0),
        "dataset.train.batch_size times dataset.train.mix_p, in each process, must be a multiple "
        f"of optim.accumulate ({accumulate}) and not 0, got int({section.mix_p} * {loaded}) = "
        f"{kept} of {batch} sounds in {world_size} processes",
    )
    return kept


def _tokens(config: TrainConfig, part: str, sources: list[str]) -> TokenDataset:
    dataset, section = config.dataset, getattr(config.dataset, part)
    cache = JoinedCaches([TokenCache(source) for source in sources])
    stored = float(cache.settings["config"]["segment_duration"])
    wanted = dataset.segment_duration
    check(
        wanted <= stored,
        f"dataset.segment_duration must be at most the {stored} s of the cache, got {wanted}",
    )
    shuffle = part == "train" and dataset.shuffle
    drawn = dataset.sample_on_duration or dataset.sample_on_weight
    options = TokenDatasetConfig(
        num_samples=section.num_samples,
        segment_duration=None if wanted == stored else wanted,
        shuffle=shuffle,
        shuffle_seed=dataset.shuffle_seed,
        permutation_on_files=not (shuffle and drawn),
        sample_on_duration=shuffle and dataset.sample_on_duration,
        sample_on_weight=shuffle and dataset.sample_on_weight,
    )
    return TokenDataset(cache, options)


def _loader(
    config: TrainConfig, part: str, ranks: Ranks, samples: SoundDataset | TokenDataset
) -> Loader:
    training = part == "train"
    return Loader(
        samples,
        config.dataset.batch_of(part),
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=config.dataset.num_workers,
        drop_last=training,
        pin_memory=ranks.device.type == "cuda",
        keep_workers=training,
    )


def _place(source: str) -> str:
    return source.replace("{recordings}", str(RECORDINGS))
