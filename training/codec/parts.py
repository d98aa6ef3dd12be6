"""Losses and discriminators of a codec's configuration."""

from torch import nn

from audiogen_fast.evaluation.sisnr import SISNR
from audiogen_fast.training.codec.config import CodecConfig
from audiogen_fast.training.codec.discriminators import MultiScaleSTFTDiscriminator
from audiogen_fast.training.codec.energies import EnergyReader
from audiogen_fast.training.codec.loss_config import REPETITION_LAGS
from audiogen_fast.training.codec.repetition_loss import FrameRepetitionLoss
from audiogen_fast.training.codec.spectral_losses import (
    MelSpectrogramL1Loss,
    MultiScaleMelSpectrogramLoss,
)
from audiogen_fast.training.codec.stft_losses import MultiResolutionSTFTLoss
from audiogen_fast.training.codec.waveform_discriminators import (
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
)
from audiogen_fast.training.fields import to_dict

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
            "repetition": FrameRepetitionLoss(config.seanet.frame_length, lags=REPETITION_LAGS),
        }
    )


def loss_weights(config: CodecConfig) -> dict[str, float]:
    """Weight of each loss that is learnt from; `adv` and `feat` once for each discriminator."""
    weights = {n: w for n, w in to_dict(config.losses).items() if n not in ("adv", "feat")}
    for name in config.adversarial.adversaries:
        weights[f"adv_{name}"] = config.losses.adv
        weights[f"feat_{name}"] = config.losses.feat
    return {name: weight for name, weight in weights.items() if weight > 0}


def discriminator_names(config: CodecConfig) -> list[str]:
    """Those that the configuration has a loss for."""
    losses = config.losses
    unused = losses.adv == losses.feat == 0 or config.learn == "encoder"
    return [] if unused else list(config.adversarial.adversaries)


def make_discriminators(config: CodecConfig) -> dict[str, nn.Module]:
    """The discriminators of the configuration by name."""
    channels = {"in_channels": config.channels}
    return {
        name: _DISCRIMINATORS[name](**channels, **to_dict(getattr(config, name)))
        for name in discriminator_names(config)
    }


def make_reader(config: CodecConfig) -> EnergyReader | None:
    """What reads energies from latents, if the configuration has a weight for it."""
    sizes = to_dict(config.energies)
    if sizes.pop("weight") == 0:
        return None
    seanet = config.seanet
    return EnergyReader(
        seanet.dimension, seanet.frame_length, config.sample_rate, config.channels, **sizes
    )
