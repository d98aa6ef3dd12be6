"""Configuration of the codec's training; the sections are those of the original's `xp.cfg`."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from audiogen_fast.config import Config
from audiogen_fast.errors import check
from audiogen_fast.training.codec.loss_config import (
    REPETITION_LAGS,
    AdversarialConfig,
    BalancerConfig,
    EnergiesConfig,
    LossWeights,
    MelConfig,
    MultiScaleMelConfig,
    PeriodDiscriminatorConfig,
    ScaleDiscriminatorConfig,
    SISNRConfig,
    STFTConfig,
    STFTDiscriminatorConfig,
)
from audiogen_fast.training.config import DatasetConfig, DatasetPart, TrainConfig
from audiogen_fast.training.fields import to_dict

Free = dict[str, Any]


@dataclass
class SEANetDecoderConfig:
    trim_right_ratio: float = 1.0
    """Share of a causal up-sampling's surplus that is cut off on the right."""
    final_activation: str | None = None
    """Name in torch.nn of an activation of the audio; none: no activation."""
    final_activation_params: Free | None = None
    """Options of that activation."""


@dataclass
class SEANetConfig:
    dimension: int = 128
    """Channels of the latents."""
    n_filters: int = 64
    """Channels next to the audio; they double with every ratio."""
    n_residual_layers: int = 1
    """Residual blocks per ratio."""
    ratios: list[int] = field(default_factory=lambda: [8, 5, 4, 2])
    """Up-sampling of the decoder's blocks; their product is the samples of a frame."""
    activation: str = "ELU"
    """Name in torch.nn."""
    activation_params: Free = field(default_factory=lambda: {"alpha": 1.0})
    """Options of the activation."""
    norm: Literal["none", "weight_norm", "spectral_norm", "time_group_norm"] = "weight_norm"
    """Normalisation of the convolutions."""
    norm_params: Free = field(default_factory=dict)
    """Options of the normalisation."""
    kernel_size: int = 7
    """Of the first convolution."""
    last_kernel_size: int = 7
    """Of the last convolution."""
    residual_kernel_size: int = 3
    """Of the residual blocks."""
    dilation_base: int = 2
    """Residual block j is dilated by its j-th power."""
    causal: bool = False
    """No convolution sees the future."""
    pad_mode: str = "constant"
    """How convolutions continue the audio at its ends."""
    true_skip: bool = True
    """The shortcut of a residual block is the identity."""
    compress: int = 2
    """Residual blocks are narrower by this factor inside."""
    lstm: int = 2
    """Layers of LSTM next to the latents."""
    disable_norm_outer_blocks: int = 0
    """Blocks next to the audio without normalisation."""
    encoder: Free = field(default_factory=dict)
    """Options of the encoder alone."""
    decoder: SEANetDecoderConfig = field(default_factory=SEANetDecoderConfig)
    """Options of the decoder alone."""

    @property
    def frame_length(self) -> int:
        """Samples of a frame."""
        return math.prod(self.ratios)


@dataclass
class EncodecConfig:
    renormalize: bool = False
    """Scale every clip to unit volume before encoding."""


@dataclass
class RVQConfig:
    n_q: int = 4
    """Codebooks."""
    bins: int = 2048
    """Entries of each codebook."""
    q_dropout: bool = False
    """Use a random number of codebooks in each update, for all items alike."""
    decay: float = 0.99
    """Of the moving averages that the codebooks are made of."""
    kmeans_init: bool = True
    """The first batch makes the codebooks."""
    kmeans_iters: int = 50
    """Iterations of that."""
    threshold_ema_dead_code: float = 0.2
    """Entries used less often than this, per batch, are replaced; 0: never."""
    orthogonal_reg_weight: float = 0.0
    """Weight of the orthogonal regularisation."""
    orthogonal_reg_active_codes_only: bool = False
    """It regards the entries of the batch only."""
    orthogonal_reg_max_codes: int | None = None
    """It regards so many random entries."""


@dataclass
class EvaluateConfig:
    every: int = 25
    """Epochs between two evaluations, and generations; the last epoch has one too."""
    visqol: bool = False
    """Also ViSQOL, which needs a package and takes half a second for each clip."""


@dataclass
class GenerateConfig:
    samples: int = 8
    """Reconstructions that are written as audio, with a page to listen."""


@dataclass
class CodecDatasetPart(DatasetPart):
    segment_duration: float | None = None
    """Seconds of audio of an item."""


@dataclass
class CodecDatasetConfig(DatasetConfig):
    train: CodecDatasetPart = field(default_factory=CodecDatasetPart)
    valid: CodecDatasetPart = field(default_factory=CodecDatasetPart)
    evaluate: CodecDatasetPart = field(default_factory=CodecDatasetPart)
    generate: CodecDatasetPart = field(default_factory=CodecDatasetPart)


@dataclass
class CodecConfig(TrainConfig):
    """Training of an EnCodec."""

    weight_init: Literal["torch", "keep_variance"] = "torch"
    """Initial weights: those of torch as in the original, or ones that keep the strength of a
    signal from layer to layer, with which the first minutes learn much more."""
    learn: Literal["all", "encoder", "decoder"] = "all"
    """Train a part alone. `decoder`: codes stay what they are, so that a language model of them
    keeps its worth. `encoder`, with the codebooks: to tell the energies of bands, without decoder
    and losses of audio; a decoder of such codes has to learn them afterwards."""
    dataset: CodecDatasetConfig = field(default_factory=CodecDatasetConfig)
    encodec: EncodecConfig = field(default_factory=EncodecConfig)
    seanet: SEANetConfig = field(default_factory=SEANetConfig)
    rvq: RVQConfig = field(default_factory=RVQConfig)
    losses: LossWeights = field(default_factory=LossWeights)
    balancer: BalancerConfig = field(default_factory=BalancerConfig)
    energies: EnergiesConfig = field(default_factory=EnergiesConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    msstftd: STFTDiscriminatorConfig = field(default_factory=STFTDiscriminatorConfig)
    mpd: PeriodDiscriminatorConfig = field(default_factory=PeriodDiscriminatorConfig)
    msd: ScaleDiscriminatorConfig = field(default_factory=ScaleDiscriminatorConfig)
    mel: MelConfig = field(default_factory=MelConfig)
    msspec: MultiScaleMelConfig = field(default_factory=MultiScaleMelConfig)
    mrstft: STFTConfig = field(default_factory=STFTConfig)
    sisnr: SISNRConfig = field(default_factory=SISNRConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)

    @property
    def frozen(self) -> str | None:
        """The part of the model that is not trained, if there is one."""
        return {"all": None, "encoder": "decoder", "decoder": "encoder"}[self.learn]

    @property
    def best_metric(self) -> str:
        """An encoder that is trained alone has no decoder yet that fits it."""
        return "energies" if self.learn == "encoder" else "mel_distance"

    def model_config(self) -> Config:
        """The part that describes the model, in the layout of the original's `xp.cfg`."""
        audio = {"sample_rate": self.sample_rate, "channels": self.channels}
        return Config(
            device="cpu",
            dtype="float32",
            **audio,
            compression_model="encodec",
            encodec={
                "autoencoder": "seanet",
                "quantizer": "rvq",
                **audio,
                "causal": self.seanet.causal,
                **to_dict(self.encodec),
            },
            seanet={"channels": self.channels, **to_dict(self.seanet)},
            rvq=to_dict(self.rvq),
        )

    def validate(self) -> None:
        super().validate()
        weights = to_dict(self.losses)
        for name, weight in weights.items():
            check(weight >= 0, f"losses.{name} must be at least 0, got {weight}")
        check(
            self.learn == "all" or self.continue_from is not None,
            f"learn = {self.learn} needs a codec to begin with: continue_from must be given, got "
            "none",
        )
        learnt = dict(weights)
        if not self.adversarial.adversaries:
            learnt["adv"] = learnt["feat"] = 0.0
        check(any(learnt.values()), "losses must have a weight above 0 that applies, got none")
        self._check_energies()
        check(
            self.adversarial.every >= 1,
            f"adversarial.every must be at least 1, got {self.adversarial.every}",
        )
        warmup = self.adversarial.warmup
        check(warmup >= 0, f"adversarial.warmup must be at least 0, got {warmup}")
        judged = self.adversarial.adversaries and self.losses.adv + self.losses.feat > 0
        judged = judged and self.learn != "encoder"
        check(
            warmup == 0 or (self.continue_from is not None and judged),
            "adversarial.warmup needs a codec and discriminators: continue_from, "
            f"adversarial.adversaries and losses.adv or losses.feat must be given, got {warmup} "
            "without",
        )
        check(
            self.adversarial.lr is None or self.adversarial.lr > 0,
            f"adversarial.lr must be above 0, got {self.adversarial.lr}",
        )
        check(
            self.balancer.penalty_weight >= 0,
            f"balancer.penalty_weight must be at least 0, got {self.balancer.penalty_weight}",
        )
        check(
            self.optim.accumulate == 1,
            "optim.accumulate must be 1: a codec learns its codebooks from whole batches, got "
            f"{self.optim.accumulate}",
        )
        check(
            self.parallel.mode != "fsdp",
            "parallel.mode must be single or ddp: a codec is small enough for each process, got "
            "fsdp",
        )
        check(
            self.parallel.dtype == "float32",
            f"parallel.dtype must be float32 for a codec, got {self.parallel.dtype}",
        )
        check(
            not self.parallel.compile,
            "parallel.compile must be false for a codec, got true: its layers are not compiled",
        )
        check(
            self.evaluate.every > 0, f"evaluate.every must be positive, got {self.evaluate.every}"
        )
        self._check_spectrograms()
        self._check_segments()

    def _check_energies(self) -> None:
        part = self.energies
        check(part.weight >= 0, f"energies.weight must be at least 0, got {part.weight}")
        check(
            part.weight > 0 or self.learn != "encoder",
            f"energies.weight must be above 0 with learn = encoder, got {part.weight}",
        )
        check(
            part.weight == 0 or self.learn != "decoder",
            "energies.weight must be 0 with learn = decoder, which changes no latents, got "
            f"{part.weight}",
        )
        if part.weight == 0:  # the sizes need not fit a codec whose energies are not read
            return
        names = ("n_ffts", "hop_lengths", "n_mels")
        lengths = [len(getattr(part, name)) for name in names]
        check(
            min(lengths) == max(lengths) > 0,
            f"energies.{', '.join(names)} must be of one length, at least 1, got {lengths}",
        )
        frame = self.seanet.frame_length
        for n_fft, hop, bands in zip(part.n_ffts, part.hop_lengths, part.n_mels, strict=True):
            check(
                1 <= hop <= n_fft and frame % hop == 0,
                f"energies.hop_lengths must divide the {frame} samples of a frame, and be at most "
                f"their n_ffts, got {hop} with {n_fft}",
            )
            check(bands >= 1, f"energies.n_mels must be at least 1, got {bands}")
        check(
            0 < part.floor_level < math.inf,
            f"energies.floor_level must be above 0 and finite, got {part.floor_level}",
        )
        check(part.hidden >= 1, f"energies.hidden must be at least 1, got {part.hidden}")

    def _check_spectrograms(self) -> None:
        """What the mel losses and discriminators of spectrograms cannot be made with, or would
        learn nothing from."""
        top = self.sample_rate / 2
        for name in ("mel", "msspec"):
            part = getattr(self, name)
            check(part.n_mels >= 1, f"{name}.n_mels must be at least 1, got {part.n_mels}")
            check(
                0 < part.floor_level < math.inf,
                f"{name}.floor_level must be above 0 and finite, got {part.floor_level}",
            )
            highest = top if part.f_max is None else part.f_max
            check(
                0 <= part.f_min < highest <= top,
                f"{name}.f_min < {name}.f_max must lie in 0..{top:g} Hz, got {part.f_min:g} and "
                f"{highest:g}",
            )
        check(
            1 <= self.mel.hop_length <= self.mel.n_fft,
            f"mel.hop_length must lie in 1..{self.mel.n_fft} (mel.n_fft), got "
            f"{self.mel.hop_length}",
        )
        power = self.msstftd.power
        check(0 < power <= 1, f"msstftd.power must lie above 0 and be at most 1, got {power}")

    def _check_segments(self) -> None:
        """Segments must be long enough for every transform."""
        needed = {
            "losses.mrstft": max(self.mrstft.n_ffts) // 2 + 1,
            "losses.repetition": REPETITION_LAGS * self.seanet.frame_length,
        }
        if "msstftd" in self.adversarial.adversaries:
            needed["msstftd"] = max(self.msstftd.n_ffts)
        for part in ("train", "valid"):
            seconds = getattr(self.dataset, part).segment_duration or self.dataset.segment_duration
            samples = int(seconds * self.sample_rate)
            for name, least in needed.items():
                check(
                    samples >= least,
                    f"dataset.{part}.segment_duration must have at least {least} samples for "
                    f"{name}, got {samples}",
                )
