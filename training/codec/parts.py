"""Losses, discriminators and loaders of a codec's configuration."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from audiogen_fast.errors import check
from audiogen_fast.training.codec.config import CodecConfig
from audiogen_fast.training.codec.discriminators import MultiScaleSTFTDiscriminator
from audiogen_fast.training.codec.sisnr import SISNR
from audiogen_fast.training.codec.spectral_losses import (
    MelSpectrogramL1Loss,
    MultiScaleMelSpectrogramLoss,
)
from audiogen_fast.training.codec.stft_losses import MultiResolutionSTFTLoss
from audiogen_fast.training.codec.waveform_discriminators import (
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
)
from audiogen_fast.training.data import Batch, Loader, SoundDataset, read_manifest
from audiogen_fast.training.data import DatasetConfig as SegmentConfig
from audiogen_fast.training.fields import to_dict
from audiogen_fast.training.parallel import Ranks

_DISCRIMINATORS = {
    "msstftd": MultiScaleSTFTDiscriminator,
    "mpd": MultiPeriodDiscriminator,
    "msd": MultiScaleDiscriminator,
}


def make_losses(config: CodecConfig) -> nn.ModuleDict:
    """Every loss between two recordings, by its name in `losses`."""
    rate = config.sample_rate
    return nn.ModuleDict(
        {
            "l1": nn.L1Loss(),
            "l2": nn.MSELoss(),
            "mrstft": MultiResolutionSTFTLoss(**to_dict(config.mrstft)),
            "mel": MelSpectrogramL1Loss(rate, **to_dict(config.mel)),
            "msspec": MultiScaleMelSpectrogramLoss(rate, **to_dict(config.msspec)),
            "sisnr": SISNR(rate, **to_dict(config.sisnr)),
        }
    )


def loss_weights(config: CodecConfig) -> dict[str, float]:
    """Weight of each loss that is learnt from; `adv` and `feat` once for each discriminator."""
    weights = {n: w for n, w in to_dict(config.losses).items() if n not in ("adv", "feat")}
    for name in config.adversarial.adversaries:
        weights[f"adv_{name}"] = config.losses.adv
        weights[f"feat_{name}"] = config.losses.feat
    return {name: weight for name, weight in weights.items() if weight > 0}


def make_discriminators(config: CodecConfig) -> dict[str, nn.Module]:
    """The discriminators of the configuration by name."""
    losses = config.losses
    if losses.adv == losses.feat == 0:
        return {}
    channels = {"in_channels": config.channels}
    return {
        name: _DISCRIMINATORS[name](**channels, **to_dict(getattr(config, name)))
        for name in config.adversarial.adversaries
    }


class Endless:
    """The training batches of all epochs, with the position as the training loop wants it."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return self.loader.forever()

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)


def make_loader(config: CodecConfig, name: str, ranks: Ranks) -> Loader | None:
    """The loader of a part of the data, or None where the part has no source.

    Training draws segments; the other parts take the same ones every time, each recording once.
    """
    dataset, part = config.dataset, getattr(config.dataset, name)
    if part.source is None:
        return None
    check(part.aug_p == 0, f"dataset.{name}.aug_p must be 0 for a codec, got {part.aug_p}")
    train = name == "train"
    manifest = read_manifest(part.source)
    segments = SegmentConfig(
        segment_duration=part.segment_duration or dataset.segment_duration,
        num_samples=part.num_samples or len(manifest),
        sample_rate=config.sample_rate,
        channels=config.channels,
        shuffle=train and dataset.shuffle,
        shuffle_seed=dataset.shuffle_seed,
        permutation_on_files=dataset.permutation_on_files if train else True,
        sample_on_duration=train and dataset.sample_on_duration,
        sample_on_weight=train and dataset.sample_on_weight,
        min_segment_ratio=dataset.min_segment_ratio,
        require_description=False,
    )
    return Loader(
        SoundDataset(manifest, segments),
        dataset.batch_of(name),
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=dataset.num_workers,
        drop_last=train,
        pin_memory=ranks.device.type == "cuda",
        keep_workers=train,
    )


def kept_samples(batches: Iterable[Batch]) -> Iterator[tuple[Batch, int]]:
    """Batches with the number of their first items that were not there before."""
    for batch in batches:
        kept = len(batch) - batch.repeated
        if kept:
            yield batch, kept
