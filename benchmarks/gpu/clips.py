"""Whole sounds: text encoder, language model and codec; seconds, first audio, memory."""

import functools
import time
from typing import Any

import torch

from audiogen_fast.api import AudioGen
from audiogen_fast.config import parse_config
from audiogen_fast.models import builders
from benchmarks import floors
from benchmarks.gpu.section import ROOT, Options
from benchmarks.gpu.timing import randomize, seconds_of, synchronize

# The structure of the released model; sizes are filled in.
_CONFIG = """
sample_rate: 16000
channels: 1
lm_model: transformer_lm
compression_model: encodec
dataset: {{segment_duration: 10.0}}
encodec: {{autoencoder: seanet, quantizer: rvq, sample_rate: 16000, channels: 1}}
seanet:
  dimension: {dimension}
  n_filters: {n_filters}
  n_residual_layers: 1
  ratios: [8, 5, 4, 2]
  pad_mode: constant
  lstm: 2
rvq: {{n_q: {n_q}, bins: {card}}}
transformer_lm:
  dim: {dim}
  num_heads: {num_heads}
  num_layers: {num_layers}
  n_q: {n_q}
  card: {card}
  activation: gelu
  norm_first: true
  causal: true
  memory_efficient: true
  bias_ff: false
  bias_attn: false
  bias_proj: false
  dropout: 0.0
codebooks_pattern: {{modeling: delay, delay: {{delays: [0, 1, 2, 3]}}}}
classifier_free_guidance: {{training_dropout: 0.1, inference_coef: 3.0}}
fuser: {{cross: [description]}}
conditioners:
  description: {{model: t5, t5: {{name: {t5}}}}}
"""
_CODEC = {"medium": (128, 64), "tiny": (16, 4)}
_TEXT_ENCODER = {
    "medium": ("t5-large", {"num_layers": 24, "num_heads": 16, "d_ff": 4096}),
    "tiny": ("t5-small", {"num_layers": 1, "num_heads": 2, "d_ff": 64}),
}
_TOKENIZER = ROOT / "tests/data/golden/plain/checkpoint/t5-small"
DESCRIPTION = "rain on a tin roof while a train passes in the distance and a dog barks"


def items(options: Options) -> list[str]:
    return [
        "1 description",
        "8 descriptions",
        "64 descriptions",
        "first audio, 1 description",
        "memory, 1 description",
    ]


@torch.no_grad()
def measure(item: str, options: Options) -> dict[str, Any]:
    model = random_model(options)
    device = options.device
    duration = (options.steps - 3) / model.frame_rate
    model.set_generation_params(duration=duration)
    if item.startswith("first audio"):
        return _first_audio(model, device)
    if item.startswith("memory"):
        return _memory(model, options)
    texts = [DESCRIPTION] * int(item.split()[0])
    model.generate(texts, seed=0)  # captures
    seconds = [seconds_of(lambda: model.generate(texts, seed=1), device) for _ in range(3)]
    best = sorted(seconds)[1]
    return {
        "descriptions": len(texts),
        "seconds": best,
        "audio_seconds": duration,
        "times_real_time": len(texts) * duration / best,
        "engine": model.engine.name,
    }


def _first_audio(model: AudioGen, device: str, rounds: int = 8) -> dict[str, Any]:
    """seconds from the call to the first 0.2 s of audio, the host having it."""

    def once() -> float:
        synchronize(device)
        start = time.perf_counter()
        stream = model.generate_stream([DESCRIPTION], chunk_duration=0.2, seed=3)
        next(stream).cpu()
        seconds = time.perf_counter() - start
        stream.close()
        return seconds

    once()
    seconds = sorted(once() for _ in range(rounds))
    return {"median_s": seconds[len(seconds) // 2], "worst_s": seconds[-1], "chunk_s": 0.2}


def _memory(model: AudioGen, options: Options) -> dict[str, Any]:
    """Peak of the device's memory while one sound is made, against the weights alone."""
    modules = (model.lm, model.compression_model)
    weights = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    encoder = model.lm.condition_provider.conditioners["description"].encoder
    weights += sum(p.numel() * p.element_size() for p in encoder.parameters())
    result: dict[str, Any] = {"weight_bytes": weights}
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model.generate([DESCRIPTION], seed=0)
    if options.device == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated()
        result["reserved_bytes"] = torch.cuda.max_memory_reserved()
    return result


@functools.lru_cache(maxsize=1)
def random_model(options: Options) -> AudioGen:
    """An AudioGen of the released structure, bfloat16, whose weights are all random."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    dimension, n_filters = _CODEC[options.size]
    name, sizes = _TEXT_ENCODER[options.size]
    cfg = parse_config(
        _CONFIG.format(
            dimension=dimension, n_filters=n_filters, t5=name, **floors.SIZES[options.size]
        )
    )
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    with torch.device("meta"):
        lm = builders.get_lm_model(cfg).to(dtype)
        conditioner = lm.condition_provider.conditioners["description"]
        t5 = T5Config(d_model=conditioner.dim, d_kv=64, vocab_size=32128, **sizes)
        encoder = T5EncoderModel(t5)
    randomize(lm, options.device)
    conditioner.__dict__["_encoder"] = randomize(encoder, options.device).eval()
    conditioner.__dict__["_tokenizer"] = AutoTokenizer.from_pretrained(_TOKENIZER)
    codec = builders.get_compression_model(cfg).to(options.device)
    codec.cfg = lm.cfg = cfg
    return AudioGen("random weights", codec, lm.eval().requires_grad_(False))
