"""Configuration of the language model's training; the sections are those of `xp.cfg`."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from audiogen_fast.config import Config
from audiogen_fast.errors import check
from audiogen_fast.training.config import TrainConfig
from audiogen_fast.training.fields import to_dict


@dataclass
class TransformerLMConfig:
    dim: int = 1024
    """Width."""
    num_heads: int = 16
    """Heads of attention."""
    num_layers: int = 24
    """Layers."""
    hidden_scale: float = 4.0
    """Width of the feed-forward part over `dim`."""
    n_q: int = 4
    """Codebooks."""
    card: int = 2048
    """Entries of each codebook."""
    dropout: float = 0.0
    """Of residual branches and feed-forward activations."""
    attention_dropout: float | None = None
    """Of attention weights; none: as `dropout`."""
    emb_lr: float | None = None
    """Learning rate of the embeddings; none: that of `optim`."""
    activation: str = "gelu"
    """Of the feed-forward part; gelu is the exact one."""
    norm_first: bool = True
    """Normalise before each part, and once at the end."""
    bias_ff: bool = False
    """Biases in the feed-forward part."""
    bias_attn: bool = False
    """Biases in attention."""
    bias_proj: bool = False
    """Biases in the output heads."""
    past_context: int | None = None
    """Steps that attention looks back; none: all."""
    causal: bool = True
    """Each step sees the past only."""
    custom: bool = False
    """The original's own attention code (the result is the same)."""
    memory_efficient: bool = True
    """The original's memory-efficient attention (the result is the same)."""
    attention_as_float32: bool = False
    """Attention in float32 whatever the dtype."""
    layer_scale: float | None = None
    """Start of a learned scale of each branch; none: no such scale."""
    positional_embedding: Literal["sin", "rope", "sin_rope"] = "sin"
    """How positions enter."""
    xpos: bool = False
    """Decay with distance in rotary positions."""
    checkpointing: Literal["none", "torch"] = "none"
    """torch: compute each layer again in the backward pass instead of keeping its activations."""
    weight_init: Literal["gaussian", "uniform"] | None = "gaussian"
    """Initial distribution of the weights."""
    depthwise_init: Literal["current", "global"] | None = "current"
    """Smaller initial weights with the depth of the layer, or of the model."""
    zero_bias_init: bool = True
    """Biases start at 0."""
    norm: Literal["layer_norm"] = "layer_norm"
    """The normalisation."""
    qk_layer_norm: bool = False
    """Normalise queries and keys of self-attention."""
    qk_layer_norm_cross: bool = False
    """Normalise queries and keys of cross-attention."""
    kv_repeat: int = 1
    """Query heads that share a key and value head."""
    two_step_cfg: bool = False
    """Default for generation."""
    lr: float | None = None
    """Learning rate of the transformer; none: that of `optim`."""
    weight_decay: float | None = None
    """Weight decay of the transformer; none: that of `optim`."""


@dataclass
class PatternConfig:
    modeling: str = "delay"
    """delay, parallel, unroll, coarse_first or musiclm."""
    delay: dict[str, Any] = field(
        default_factory=lambda: {"delays": [0, 1, 2, 3], "flatten_first": 0, "empty_initial": 0}
    )
    """Options of the delay pattern."""
    parallel: dict[str, Any] = field(default_factory=dict)
    """Options of the parallel pattern."""
    unroll: dict[str, Any] = field(default_factory=dict)
    """Options of the unrolled pattern."""
    coarse_first: dict[str, Any] = field(default_factory=dict)
    """Options of the coarse first pattern."""
    musiclm: dict[str, Any] = field(default_factory=dict)
    """Options of MusicLM's pattern."""


@dataclass
class GuidanceConfig:
    training_dropout: float = 0.1
    """Probability of training without the text."""
    inference_coef: float = 3.0
    """Strength of guidance in generation."""
    per_sample: bool = True
    """Draw for each sample; false: one draw for the whole batch, as the original does."""


@dataclass
class SamplingConfig:
    top_k: int | None = None
    """Codes among which `AudioGen` draws where no number is asked for; none: 250, or those of
    continue_from."""
    temperature: float | None = None
    """Temperature where none is asked for; none: 1, or that of continue_from."""


@dataclass
class FuserConfig:
    cross_attention_pos_emb: bool = False
    """Add positions to what cross-attention looks at."""
    cross_attention_pos_emb_scale: float = 1.0
    """Scale of those."""
    sum: list[str] = field(default_factory=list)
    """Attributes added to every step."""
    prepend: list[str] = field(default_factory=list)
    """Attributes put before the first step."""
    cross: list[str] = field(default_factory=lambda: ["description"])
    """Attributes for cross-attention."""
    input_interpolate: list[str] = field(default_factory=list)
    """Attributes stretched over time and added."""


@dataclass
class T5Config:
    name: str = "t5-large"
    """Model of the T5 family."""
    finetune: bool = False
    """Train the encoder too."""
    word_dropout: float = 0.0
    """Probability of leaving a word out in training."""
    normalize_text: bool = False
    """Not supported."""


@dataclass
class LUTConfig:
    n_bins: int = 512
    """Entries of the table."""
    dim: int = 128
    """Width of its vectors."""
    tokenizer: Literal["whitespace", "noop"] = "whitespace"
    """Words, or the whole text as one token."""
    pad_idx: int = 0
    """Token of an absent text."""


@dataclass
class EncoderConfig:
    name: str = ""
    """Folder or hub id of a text encoder of transformers, or the name of one in text_encoders."""
    dim: int | None = None
    """Width of its vectors; none: as its config.json says."""
    finetune: bool = False
    """Train the encoder too."""
    word_dropout: float = 0.0
    """Probability of leaving a word out in training."""
    max_length: int | None = None
    """Tokens of a text, longer ones are cut; none: what the encoder can take."""


@dataclass
class ConditionerConfig:
    model: Literal["t5", "encoder", "lut"] = "t5"
    """T5, any other text encoder, or a table of words."""
    t5: T5Config | None = None
    """Of T5."""
    encoder: EncoderConfig | None = None
    """Of the other text encoder."""
    lut: LUTConfig | None = None
    """Of the table."""


@dataclass
class GenerateLMConfig:
    prompted_samples: bool = True
    """Continue the start of each recording."""
    unprompted_samples: bool = True
    """Generate from the description alone."""
    no_text_conditioning: bool = False
    """Leave the description out."""
    gen_gt_samples: bool = False
    """Write what the codec makes of each recording beside."""
    prompt_duration: float | None = None
    """Seconds of a prompt; none: a quarter of the segment."""
    gen_duration: float | None = None
    """Seconds of a sound; none: the segment."""
    use_sampling: bool = True
    """Draw codes at random; false takes the most likely ones."""
    temp: float = 1.0
    """Temperature."""
    top_k: int = 250
    """Draw among so many codes; 0: all."""
    top_p: float = 0.0
    """Draw among the codes that reach this probability; goes before top_k."""


@dataclass
class GenerateAudioConfig:
    format: Literal["wav", "flac", "ogg", "mp3"] = "wav"
    """Of the files."""
    strategy: Literal["loudness", "peak", "rms", "clip"] = "loudness"
    """How the level is set."""
    sample_rate: int | None = None
    """Accepted for the original's configurations; files have the model's rate."""
    loudness_headroom_db: float = 14.0
    """Loudness in LKFS below 0."""


@dataclass
class GenerateConfig:
    every: int | None = 25
    """Epochs between two times; none: never. The last epoch always generates."""
    path: str = "samples"
    """Folder in that of the run."""
    num_samples: int = 8
    """Recordings whose descriptions are taken."""
    audio: GenerateAudioConfig = field(default_factory=GenerateAudioConfig)
    lm: GenerateLMConfig = field(default_factory=GenerateLMConfig)


@dataclass
class EvaluateMetricsConfig:
    fad: bool = False
    """Frechet audio distance."""
    kad: bool = False
    """Kernel audio distance."""
    kld: bool = False
    """Divergence of the labels from those of the recordings."""
    text_consistency: bool = False
    """Cosine between sound and description."""


@dataclass
class EvaluateConfig:
    every: int | None = 25
    """Epochs between two times; none: never. The last epoch always evaluates."""
    metrics: EvaluateMetricsConfig = field(default_factory=EvaluateMetricsConfig)
    """Of sounds that are generated for the descriptions, as generate.lm says."""
    num_samples: int = 64
    """Recordings whose descriptions these take."""
    encoder: str = "aisfx"
    """Of sounds, for fad, kad and kld: aisfx, clap:FOLDER or passt."""
    text_encoder: str | None = None
    """For text_consistency: clap:FOLDER or contrastive:FILE; none: encoder if it knows texts, else
    a small one that is trained on head_source."""
    head_source: str | None = None
    """Manifest of recordings that the model never sees, for that."""
    head_where: dict[str, str] = field(default_factory=lambda: {"split": "metric"})
    """Rows of it."""


@dataclass
class TokensConfig:
    padding_with_special_token: bool = False
    """Do not learn what follows the end of a short recording."""


@dataclass
class LoRAConfig:
    rank: int = 0
    """Of the adapters; 0: train all weights."""
    alpha: float = 16.0
    """The adapters' product is scaled by alpha / rank."""
    targets: list[str] = field(
        default_factory=lambda: ["in_proj_weight", "out_proj", "linear1", "linear2"]
    )
    """Weights of the transformer's layers that get one."""


@dataclass
class LMConfig(TrainConfig):
    """Training of the language model."""

    best_metric: ClassVar[str] = "ce"

    solver: str = "lm"
    """lm."""
    compression_model_checkpoint: str | None = None
    """Codec: hub id, folder, file, or random for one of the demo's kind; none: it lies in
    continue_from, or nothing needs it because the data are codes."""
    compression_model_n_q: int | None = None
    """Use so many codebooks of the codec; none: all."""
    text_encoders: str | None = None
    """Folder that holds text encoders under their names; none: the hub."""
    transformer_lm: TransformerLMConfig = field(default_factory=TransformerLMConfig)
    codebooks_pattern: PatternConfig = field(default_factory=PatternConfig)
    classifier_free_guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    attribute_dropout: dict[str, dict[str, float]] = field(default_factory=dict)
    """Probabilities of leaving out single attributes in training, such as
    {text = {description = 0.1}}."""
    fuser: FuserConfig = field(default_factory=FuserConfig)
    conditioners: dict[str, ConditionerConfig] = field(
        default_factory=lambda: {"description": ConditionerConfig(t5=T5Config())}
    )
    tokens: TokensConfig = field(default_factory=TokensConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)

    def validate(self) -> None:
        super().validate()
        shares = {"classifier_free_guidance.training_dropout": self.classifier_free_guidance}
        for name, section in shares.items():
            value = getattr(section, name.split(".")[1])
            check(0 <= value <= 1, f"{name} must lie in [0, 1], got {value}")
        unknown = sorted(set(self.attribute_dropout) - {"text"})
        check(not unknown, f"attribute_dropout knows the type text only, got {unknown}")
        samples = self.evaluate.num_samples
        check(samples > 0, f"evaluate.num_samples must be positive, got {samples}")
        measured = [name for name, wanted in vars(self.evaluate.metrics).items() if wanted]
        check(
            not measured or bool(self.evaluate.every),
            f"evaluate.metrics.{'/'.join(measured)} need a stage that measures them: "
            f"evaluate.every must be a number of epochs, got {self.evaluate.every}",
        )
        for name, p in self.attribute_dropout.get("text", {}).items():
            check(0 <= p <= 1, f"attribute_dropout.text.{name} must lie in [0, 1], got {p}")
        for name, value in vars(self.sampling).items():
            check(
                value is None or 0 <= value < math.inf,
                f"sampling.{name} must be finite and not negative, got {value}",
            )
        check(self.lora.rank >= 0, f"lora.rank must not be negative, got {self.lora.rank}")
        check(
            self.lora.rank == 0 or self.continue_from is not None,
            "lora.rank is for a model that is trained already: set continue_from",
        )
        named = {name for kind in ("sum", "prepend", "cross", "input_interpolate")
                 for name in getattr(self.fuser, kind)}  # fmt: skip
        check(
            named == set(self.conditioners),
            f"fuser names the attributes {sorted(named)}, conditioners {sorted(self.conditioners)}",
        )

        for name, conditioner in self.conditioners.items():
            named = conditioner.encoder is not None and conditioner.encoder.name
            check(
                conditioner.model != "encoder" or bool(named),
                f"conditioners.{name}.encoder.name is missing: a folder or a hub id",
            )

    def xp_cfg(self) -> Config:
        """The model's configuration as checkpoints of the original have it."""
        cfg = to_dict(self)
        conditioners = {}
        for name, conditioner in cfg["conditioners"].items():
            kind = conditioner["model"]
            conditioners[name] = {"model": kind, kind: conditioner[kind] or _default(kind)}
        guidance = dict(cfg["classifier_free_guidance"])
        guidance.pop("per_sample")
        made = Config(
            solver="audiogen",
            device="cpu",
            dtype="float32",
            sample_rate=self.sample_rate,
            channels=self.channels,
            lm_model="transformer_lm",
            compression_model="encodec",
            compression_model_n_q=self.compression_model_n_q,
            dataset={"segment_duration": self.dataset.segment_duration},
            interleave_stereo_codebooks={"use": False},
            classifier_free_guidance=guidance,
            attribute_dropout=cfg["attribute_dropout"],
            fuser=cfg["fuser"],
            conditioners=conditioners,
            codebooks_pattern=cfg["codebooks_pattern"],
            transformer_lm=cfg["transformer_lm"],
        )
        sampling = {name: value for name, value in cfg["sampling"].items() if value is not None}
        if sampling:  # which the original does not know
            made["sampling"] = sampling
        return made


def _default(kind: str) -> dict[str, Any]:
    return to_dict({"t5": T5Config, "encoder": EncoderConfig, "lut": LUTConfig}[kind]())
