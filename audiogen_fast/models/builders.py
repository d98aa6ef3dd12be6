"""Models from configurations, as checkpoints store them, and the tiny `debug` models."""

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audiogen_fast.config import Config
from audiogen_fast.errors import CheckpointError, InvalidInputError
from audiogen_fast.models.encodec import CompressionModel, EncodecModel
from audiogen_fast.models.hub import HubOptions
from audiogen_fast.models.lm import LMModel
from audiogen_fast.models.stereo import InterleaveStereoCompressionModel
from audiogen_fast.modules.codebooks_patterns import (
    CoarseFirstPattern,
    CodebooksPatternProvider,
    DelayedPatternProvider,
    MusicLMPattern,
    ParallelPatternProvider,
    UnrolledPatternProvider,
)
from audiogen_fast.modules.conditioners import ConditionFuser, ConditioningProvider
from audiogen_fast.modules.encoder_conditioner import EncoderConditioner
from audiogen_fast.modules.seanet import SEANetDecoder, SEANetEncoder
from audiogen_fast.modules.text_conditioners import (
    LUTConditioner,
    PretrainedTextConditioner,
    T5Conditioner,
    TextConditioner,
    encoder_folders,
)
from audiogen_fast.modules.transformer import StreamingTransformer, StreamingTransformerLayer
from audiogen_fast.quantization import BaseQuantizer, DummyQuantizer, ResidualVectorQuantizer

_PATTERNS: dict[str, type[CodebooksPatternProvider]] = {
    "parallel": ParallelPatternProvider,
    "delay": DelayedPatternProvider,
    "unroll": UnrolledPatternProvider,
    "coarse_first": CoarseFirstPattern,
    "musiclm": MusicLMPattern,
}
_CONDITIONERS: dict[str, type[TextConditioner]] = {
    "t5": T5Conditioner,
    "lut": LUTConditioner,
    "encoder": EncoderConditioner,
}
# Keys of training experiments that early exports left in; they change nothing in inference.
_IGNORED = frozenset(
    (
        "layer_drop",
        "q_modeling",
        "residual_balancer_attn",
        "residual_balancer_ff",
        "spectral_norm_attn_iters",
        "spectral_norm_ff_iters",
    )
)


# Numbers of modules and of steps; the sizes of tensors cost nothing on the meta device.
_MAX_COUNT = 1024
_MAX_SAMPLE_RATE = 1_000_000
_ACTIVATIONS = frozenset(nn.modules.activation.__all__)


def _known_options(*classes: type) -> set[str]:
    bases = {base for cls in classes for base in cls.__mro__}
    return {name for base in bases for name in inspect.signature(base.__init__).parameters}


def _select(options: Mapping[str, Any], where: str, *classes: type) -> dict[str, Any]:
    """The options some class takes; others are dropped with a warning rather than a crash."""
    known = _known_options(*classes)
    unknown = sorted(set(options) - known - _IGNORED)
    if unknown:
        warnings.warn(f"{where}: unknown keys {unknown} are ignored", stacklevel=3)
    return {name: value for name, value in options.items() if name in known}


def _check_counts(where: str, options: Mapping[str, Any], *names: str) -> None:
    for name in names:
        value = options.get(name)
        largest = max(value, default=0) if isinstance(value, list) else value
        if largest is not None and not 0 <= largest <= _MAX_COUNT:
            raise CheckpointError(f"{where}.{name} must lie in 0..{_MAX_COUNT}, got {largest}")


def get_codebooks_pattern_provider(n_q: int, cfg: Mapping[str, Any]) -> CodebooksPatternProvider:
    """The provider `codebooks_pattern` describes."""
    name = cfg.get("modeling")
    if name not in _PATTERNS:
        raise CheckpointError(
            f"codebooks_pattern.modeling must be one of {sorted(_PATTERNS)}, got {name!r}"
        )
    options = cfg.get(name) or {}
    _check_counts(f"codebooks_pattern.{name}", options, "delays", "empty_initial", "flatten_first")
    _check_counts(f"codebooks_pattern.{name}", options, "flattening")
    return _PATTERNS[name](n_q, **_select(options, "codebooks_pattern", _PATTERNS[name]))


def get_conditioner_provider(
    output_dim: int,
    cfg: Config,
    text_encoders: Path | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
) -> ConditioningProvider:
    """The conditioners `conditioners` describes; only text ones exist here.

    Args:
        text_encoders: folder that may hold a text encoder under its name.
        local_files_only: never download one.
        cache_dir: folder for downloads; None for the environment's, as in `HubOptions`.
    """
    conditioners: dict[str, TextConditioner] = {}
    for name, options in (cfg.get("conditioners") or {}).items():
        if name == "args":
            continue
        kind = options["model"]
        arguments = dict(options.get(kind) or {})
        if kind not in _CONDITIONERS:
            raise CheckpointError(
                f"conditioner {name!r} is of the kind {kind!r}; supported are "
                f"{', '.join(map(repr, _CONDITIONERS))}"
            )
        cls = _CONDITIONERS[kind]
        if issubclass(cls, PretrainedTextConditioner):
            arguments["path"] = _beside(text_encoders, arguments.get("name", ""))
            arguments["local_files_only"] = local_files_only
            arguments["cache_dir"] = HubOptions(cache_dir=cache_dir).text_encoder_cache
        arguments = _select(arguments, f"conditioners.{name}", cls)
        conditioners[name] = cls(output_dim=output_dim, **arguments)
    return ConditioningProvider(conditioners)


def _beside(folder: Path | None, name: str) -> Path | None:
    """The text encoder's folder in `folder`, under its full or its last name."""
    for candidate in encoder_folders(name) if folder is not None else ():
        if (folder / candidate / "config.json").is_file():
            return folder / candidate
    return None


def get_condition_fuser(cfg: Config) -> ConditionFuser:
    """The fuser `fuser` describes."""
    options = dict(cfg.get("fuser") or {})
    methods = {name: options.pop(name) for name in ConditionFuser.METHODS if name in options}
    return ConditionFuser(methods, **_select(options, "fuser", ConditionFuser))


def get_lm_model(
    cfg: Config,
    text_encoders: Path | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    **factory_options: Any,
) -> LMModel:
    """The language model of a configuration, with fresh weights.

    Args:
        text_encoders, local_files_only, cache_dir: see `get_conditioner_provider`.
        factory_options: `device` and `dtype` of the transformer.
    """
    kind = cfg.get("lm_model")
    if kind != "transformer_lm":
        raise CheckpointError(f"lm_model must be 'transformer_lm', got {kind!r}")
    options = dict(cfg["transformer_lm"])
    _check_counts("transformer_lm", options, "n_q", "num_layers")
    q_modeling = options.pop("q_modeling", None)
    fuser = get_condition_fuser(cfg)
    if fuser.fuse2cond["cross"]:
        options["cross_attention"] = True
    pattern = cfg.get("codebooks_pattern") or {}
    if pattern.get("modeling") is None:
        pattern = {"modeling": q_modeling, "delay": {"delays": list(range(options["n_q"]))}}
    guidance = cfg.get("classifier_free_guidance") or {}
    options = _select(
        options, "transformer_lm", LMModel, StreamingTransformer, StreamingTransformerLayer
    )
    return LMModel(
        get_codebooks_pattern_provider(options["n_q"], pattern),
        get_conditioner_provider(options["dim"], cfg, text_encoders, local_files_only, cache_dir),
        fuser,
        cfg_dropout=guidance.get("training_dropout", 0.0),
        cfg_coef=guidance.get("inference_coef", 1.0),
        attribute_dropout=cfg.get("attribute_dropout"),
        **options,
        **factory_options,
    )


def get_quantizer(name: str, cfg: Config, dimension: int) -> BaseQuantizer:
    """The quantiser of that name (`rvq` or `no_quant`)."""
    if name == "no_quant":
        return DummyQuantizer()
    if name != "rvq":
        raise CheckpointError(f"encodec.quantizer must be 'rvq' or 'no_quant', got {name!r}")
    options = {**cfg["rvq"], "dimension": dimension}
    _check_counts("rvq", options, "n_q")
    return ResidualVectorQuantizer(**_select(options, "rvq", ResidualVectorQuantizer))


def get_compression_model(cfg: Config) -> EncodecModel:
    """The codec of a configuration, with fresh weights."""
    kind = cfg.get("compression_model")
    if kind != "encodec":
        raise CheckpointError(f"compression_model must be 'encodec', got {kind!r}")
    options = dict(cfg["encodec"])
    autoencoder, quantizer_name = options.pop("autoencoder"), options.pop("quantizer")
    if autoencoder != "seanet":
        raise CheckpointError(f"encodec.autoencoder must be 'seanet', got {autoencoder!r}")
    encoder = _get_seanet(SEANetEncoder, cfg["seanet"], "encoder")
    decoder = _get_seanet(SEANetDecoder, cfg["seanet"], "decoder")
    sample_rate = options["sample_rate"]
    if not encoder.hop_length <= sample_rate <= _MAX_SAMPLE_RATE:
        raise CheckpointError(
            f"encodec.sample_rate must lie in {encoder.hop_length} (the product of seanet.ratios)"
            f"..{_MAX_SAMPLE_RATE}, got {sample_rate}"
        )
    return EncodecModel(
        encoder,
        decoder,
        get_quantizer(quantizer_name, cfg, encoder.dimension),
        frame_rate=sample_rate // encoder.hop_length,
        **_select(options, "encodec", EncodecModel),
    )


def _get_seanet(cls: type, cfg: Mapping[str, Any], part: str) -> Any:
    """Encoder or decoder: the common options, and those of the part over them."""
    options = {**cfg, **(cfg.get(part) or {})}
    options.pop("encoder", None)
    options.pop("decoder", None)
    _check_counts("seanet", options, "lstm", "n_residual_layers")
    for name in ("activation", "final_activation"):
        if options.get(name) is not None and options[name] not in _ACTIVATIONS:
            raise CheckpointError(f"seanet.{name} is no activation of torch.nn: {options[name]!r}")
    return cls(**_select(options, "seanet", cls))


def get_wrapped_compression_model(
    compression_model: CompressionModel, cfg: Mapping[str, Any]
) -> CompressionModel:
    """The codec as the language model's configuration wants it: stereo, or fewer codebooks."""
    stereo = dict(cfg.get("interleave_stereo_codebooks") or {})
    if stereo.pop("use", False):
        compression_model = InterleaveStereoCompressionModel(compression_model, **stereo)
    n_q = cfg.get("compression_model_n_q")
    if n_q is not None:
        compression_model.set_num_codebooks(n_q)
    return compression_model


def get_debug_compression_model(
    device: torch.device | str = "cpu", sample_rate: int = 32000
) -> EncodecModel:
    """A tiny random codec at 25 frames per second, for tests."""
    ratios = {16000: [10, 8, 8], 32000: [10, 8, 16]}
    if sample_rate not in ratios:
        raise InvalidInputError(f"sample_rate must be one of {sorted(ratios)}, got {sample_rate}")
    options = {
        "n_filters": 4,
        "n_residual_layers": 1,
        "dimension": 32,
        "ratios": ratios[sample_rate],
    }
    quantizer = ResidualVectorQuantizer(dimension=32, bins=400, n_q=4)
    quantizer(torch.randn(8, 32, 128), 25)  # learns the first codebooks
    model = EncodecModel(
        SEANetEncoder(**options),
        SEANetDecoder(**options),
        quantizer,
        frame_rate=25,
        sample_rate=sample_rate,
        channels=1,
    )
    return model.to(device).eval()


def get_debug_lm_model(device: torch.device | str = "cpu") -> LMModel:
    """A tiny random language model for tests."""
    dim = 16
    conditioner: nn.Module = LUTConditioner(128, dim, dim, tokenizer="whitespace")
    model = LMModel(
        DelayedPatternProvider(n_q=4),
        ConditioningProvider({"description": conditioner}),
        ConditionFuser({"cross": ["description"]}),
        n_q=4,
        card=400,
        dim=dim,
        num_heads=4,
        num_layers=2,
        custom=True,
        cross_attention=True,
        causal=True,
    )
    return model.to(device).eval()
