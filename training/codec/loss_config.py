"""Configuration of what a codec learns from: losses and discriminators."""

from dataclasses import dataclass, field
from typing import Literal

REPETITION_LAGS = 8
"""Frames before each one that the loss `repetition` compares it with."""


@dataclass
class LossWeights:
    """0: the loss is computed and logged, not learnt from (`adv` and `feat`: not computed)."""

    adv: float = 4.0
    """Adversarial loss, of each discriminator."""
    feat: float = 4.0
    """Feature matching, of each discriminator."""
    l1: float = 0.1
    """Mean absolute difference of samples."""
    l2: float = 0.0
    """Mean squared difference of samples."""
    mrstft: float = 0.0
    """Multi-resolution STFT loss."""
    mel: float = 0.0
    """L1 of mel spectrograms."""
    msspec: float = 2.0
    """Multi-scale mel spectrogram loss."""
    sisnr: float = 0.0
    """Minus the scale-invariant signal-to-noise ratio."""
    repetition: float = 0.0
    """Difference of the correlations of frames with those before."""


@dataclass
class BalancerConfig:
    balance_grads: bool = True
    """Weights are shares of the gradient; False: a plain weighted sum."""
    ema_decay: float = 0.999
    """Of the averages of the gradients' norms."""
    per_batch_item: bool = True
    """Norms of each item's gradient, averaged; False: of the batch's gradient."""
    total_norm: float = 1.0
    """Norm that balanced gradients add up to at most."""
    penalty_weight: float = 1.0
    """Weight of the quantiser's own loss, which is not balanced."""


@dataclass
class EnergiesConfig:
    """See `energies.EnergyReader`."""

    weight: float = 0.0
    """Of its error in bel, which is not balanced; 0: there is no reader."""
    n_ffts: list[int] = field(default_factory=lambda: [256, 1024, 2048])
    """Lengths of the transforms in samples, one spectrogram each."""
    hop_lengths: list[int] = field(default_factory=lambda: [80, 320, 320])
    """Samples between frames; they divide the samples of a frame of the codec."""
    n_mels: list[int] = field(default_factory=lambda: [8, 32, 128])
    """Bands."""
    floor_level: float = 1e-7
    """Added to energies before the logarithm."""
    hidden: int = 512
    """Channels of the reader."""


@dataclass
class AdversarialConfig:
    every: float = 1.0
    """The discriminators learn in one of so many updates, at random."""
    adversaries: list[Literal["msstftd", "mpd", "msd"]] = field(default_factory=lambda: ["msstftd"])
    """Which discriminators; an empty list: none."""
    adv_loss: Literal["hinge", "hinge2", "mse"] = "hinge"
    """Kind of the adversarial loss."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the discriminators' layers; all else of a codec's training is float32."""
    lr: float | None = None
    """Learning rate of the discriminators, before the schedule; none: that of the codec."""
    warmup: int = 0
    """Updates at the start in which the discriminators learn alone, and the codec stays."""


@dataclass
class STFTDiscriminatorConfig:
    """See `discriminators.MultiScaleSTFTDiscriminator`."""

    filters: int = 32
    """Channels of the first layer."""
    n_ffts: list[int] = field(default_factory=lambda: [1024, 2048, 512, 256, 128])
    """Lengths of the transforms in samples, one discriminator each."""
    hop_lengths: list[int] = field(default_factory=lambda: [256, 512, 128, 64, 32])
    """Samples between frames."""
    win_lengths: list[int] = field(default_factory=lambda: [1024, 2048, 512, 256, 128])
    """Lengths of the windows."""
    filters_scale: int = 1
    """Growth of the channels from layer to layer."""
    norm: Literal["none", "weight_norm", "spectral_norm"] = "weight_norm"
    """Normalisation of all layers but the first."""
    negative_slope: float = 0.3
    """Of the leaky ReLU."""
    power: float = 1.0
    """Of the magnitudes, above 0 and at most 1: below 1 quiet parts are seen too."""


@dataclass
class PeriodDiscriminatorConfig:
    """See `waveform_discriminators.MultiPeriodDiscriminator`."""

    periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])
    """In samples, one discriminator each."""
    filters: int = 8
    """Channels of the first layer over `filters_scale`."""
    filters_scale: int = 4
    """Growth of the channels from layer to layer."""
    max_filters: int = 1024
    """Most channels."""


@dataclass
class ScaleDiscriminatorConfig:
    """See `waveform_discriminators.MultiScaleDiscriminator`."""

    num_scales: int = 3
    """Discriminators, each at half the rate of the one before."""
    filters: int = 16
    """Channels of the first layer."""
    max_filters: int = 1024
    """Most channels."""
    downsample_scales: list[int] = field(default_factory=lambda: [4, 4, 4, 4])
    """Strides of the inner layers."""


@dataclass
class MelConfig:
    """See `spectral_losses.MelSpectrogramL1Loss`."""

    n_fft: int = 1024
    """Samples of the transform."""
    hop_length: int = 256
    """Samples between frames."""
    n_mels: int = 64
    """Bands."""
    f_min: float = 64.0
    """Lower end in Hz."""
    f_max: float | None = None
    """Upper end in Hz; none: half the sample rate."""
    normalized: bool = False
    """Divide by the energy of the window."""
    floor_level: float = 1e-5
    """Added before the logarithm."""


@dataclass
class MultiScaleMelConfig:
    """See `spectral_losses.MultiScaleMelSpectrogramLoss`."""

    range_start: int = 6
    """Binary logarithm of the shortest transform."""
    range_end: int = 11
    """Binary logarithm of the longest transform, and 1 more."""
    n_mels: int = 64
    """Bands."""
    f_min: float = 64.0
    """Lower end in Hz."""
    f_max: float | None = None
    """Upper end in Hz; none: half the sample rate."""
    normalized: bool = True
    """Divide power by the energy of the windows, and the loss by the sum of its factors."""
    alphas: bool = False
    """Weigh the logarithms by the root of the transform's length."""
    floor_level: float = 1e-5
    """Added before the logarithm."""


@dataclass
class STFTConfig:
    """See `stft_losses.MultiResolutionSTFTLoss`."""

    n_ffts: list[int] = field(default_factory=lambda: [1024, 2048, 512])
    """Lengths of the transforms in samples."""
    hop_lengths: list[int] = field(default_factory=lambda: [120, 240, 50])
    """Samples between frames."""
    win_lengths: list[int] = field(default_factory=lambda: [600, 1200, 240])
    """Lengths of the windows."""
    factor_sc: float = 0.5
    """Weight of spectral convergence."""
    factor_mag: float = 0.5
    """Weight of the logarithms."""
    normalized: bool = False
    """Divide the transform by the root of its length."""


@dataclass
class SISNRConfig:
    segment: float | None = 5.0
    """Seconds of a segment; none: the whole clip."""
