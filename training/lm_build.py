"""The models of a language model's training: fresh, or from a checkpoint."""

from pathlib import Path

import torch
from torch import nn

from audiogen_fast.config import Config
from audiogen_fast.errors import check
from audiogen_fast.models import builders, loaders
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.models.hub import HubOptions, Place
from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules.attention import StreamingMultiheadAttention
from audiogen_fast.modules.encoder_conditioner import EncoderConditioner
from audiogen_fast.modules.text_conditioners import PretrainedTextConditioner
from audiogen_fast.training.config_lm import ConditionerConfig, EncoderConfig, LMConfig, T5Config


def build_lm(config: LMConfig) -> LMModel:
    """The language model, float32 on the CPU, in training mode, with its `cfg`.

    From a checkpoint it has that one's architecture; what `config` says of training it (dropout,
    recomputation, guidance, sampling, learning rates of parts, the window) is taken from there in
    either case. Of conditioners see `check_conditioners`.
    """
    if config.continue_from is None:
        cfg = config.xp_cfg()
        encoders = None if config.text_encoders is None else Path(config.text_encoders)
        lm = builders.get_lm_model(cfg, encoders)
        lm.cfg = cfg
        for name, conditioner in lm.condition_provider.conditioners.items():
            if isinstance(conditioner, PretrainedTextConditioner):
                conditioner.load()
            if isinstance(conditioner, EncoderConditioner):
                # Copies are then built without looking for the encoder's files again.
                cfg["conditioners"][name]["encoder"]["dim"] = conditioner.dim
    else:
        lm = loaders.load_lm_model(config.continue_from, dtype=torch.float32)
        for tensor in (*lm.parameters(), *lm.buffers()):
            tensor.data = tensor.data.clone()  # it may be a view of the file
        cfg = config.xp_cfg()
        lm.cfg["classifier_free_guidance"] = cfg["classifier_free_guidance"]
        for section in ("dataset", "sampling"):
            if section in cfg:
                lm.cfg[section] = Config(lm.cfg.get(section) or {}, **cfg[section])
    _set_training_options(lm, config)
    return lm.train()


def _set_training_options(lm: LMModel, config: LMConfig) -> None:
    options = config.transformer_lm
    attention = options.dropout if options.attention_dropout is None else options.attention_dropout
    # Of the transformer alone: a text encoder that is fine-tuned keeps its own dropout.
    for module in lm.transformer.modules():
        if isinstance(module, nn.Dropout):
            module.p = options.dropout
        elif isinstance(module, StreamingMultiheadAttention):
            module.dropout = attention
    lm.transformer.checkpointing = options.checkpointing
    lm.emb_lr = options.emb_lr
    lm.transformer.lr, lm.transformer.weight_decay = options.lr, options.weight_decay
    for name, conditioner in lm.condition_provider.conditioners.items():
        if isinstance(conditioner, PretrainedTextConditioner) and _word_dropout(config, name):
            conditioner.word_dropout = _word_dropout(config, name)
    lm.cfg_coef = config.classifier_free_guidance.inference_coef
    # Conditions are dropped before they reach the model, see `cfg_dropout.py`.
    lm.cfg_dropout.p, lm.att_dropout.p = 0.0, {}


def _encoder_sections(config: LMConfig, name: str) -> list[T5Config | EncoderConfig]:
    conditioner = config.conditioners.get(name, ConditionerConfig())
    return [section for section in (conditioner.t5, conditioner.encoder) if section is not None]


def _word_dropout(config: LMConfig, name: str) -> float:
    return max((section.word_dropout for section in _encoder_sections(config, name)), default=0.0)


def check_conditioners(lm: LMModel, config: LMConfig) -> None:
    """Raise `InvalidInputError` where the recipe asks what a checkpoint's conditioners cannot do.

    Whether an encoder is trained is part of the architecture, and so the checkpoint's matter.
    Words are dropped as the recipe says where it says so.
    """
    conditioners = dict(lm.condition_provider.conditioners.items())
    for name in config.conditioners:
        conditioner = conditioners.get(name)
        check(
            getattr(conditioner, "finetune", False)
            or not any(section.finetune for section in _encoder_sections(config, name)),
            f"conditioners.{name}: finetune must be false, as continue_from "
            f"{config.continue_from} has no text encoder of that name which is trained, got true",
        )
        check(
            isinstance(conditioner, PretrainedTextConditioner) or not _word_dropout(config, name),
            f"conditioners.{name}: word_dropout must be 0, as continue_from "
            f"{config.continue_from} has no text encoder of that name, "
            f"got {_word_dropout(config, name)}",
        )


def unread_encoders(lm: LMModel, config: LMConfig) -> list[str]:
    """A line for each text encoder that the recipe names and a checkpoint has another of its own
    for: the checkpoint's stays, as the language model learnt to read that one."""
    lines = []
    for name, conditioner in config.conditioners.items():
        own = (lm.cfg.get("conditioners") or {}).get(name)
        for kind in ("t5", "encoder"):
            section = getattr(conditioner, kind)
            kept = own and own.get(kind) and own[kind].get("name")
            if section is not None and kept and kept != section.name:
                lines.append(
                    f"conditioners.{name}: the text encoder of continue_from stays ({kept}), "
                    f"{section.name} is not read"
                )
    return lines


def build_codec(config: LMConfig, device: torch.device) -> CompressionModel | None:
    """The codec, in evaluation mode, or None where nothing names one."""
    name = config.compression_model_checkpoint
    if name == "random":
        # The demo's: random weights that let sounds through, the same for the same seed.
        from audiogen_fast.demo_model import random_model

        codec = random_model(config.seed, "cpu").compression_model
    elif name is not None:
        codec = loaders.get_pretrained_compression_model(name)
    elif config.continue_from is not None and _has_codec(config.continue_from):
        codec = loaders.load_compression_model(config.continue_from)
    else:
        return None
    wrapped = {"compression_model_n_q": config.compression_model_n_q}
    codec = builders.get_wrapped_compression_model(codec, wrapped)
    return codec.to(device).eval().requires_grad_(False)


def _has_codec(name: str) -> bool:
    return not Place(name, HubOptions()).given


def check_codec(codec: CompressionModel, lm: LMModel, config: LMConfig) -> None:
    """Raise `InvalidInputError` unless codec, language model and data fit together."""
    facts = (
        ("transformer_lm.n_q", lm.n_q, codec.num_codebooks),
        ("transformer_lm.card", lm.card, codec.cardinality),
        ("sample_rate", config.sample_rate, codec.sample_rate),
        ("channels", config.channels, codec.channels),
    )
    for name, ours, theirs in facts:
        check(ours == theirs, f"{name} must be the codec's {theirs}, got {ours}")
