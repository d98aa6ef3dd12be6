"""The same steps by others: our own eager engine, transformers, and audiocraft if it is there."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from audiogen_fast.config import RELEASED_STRUCTURE
from audiogen_fast.generation.eager import EagerEngine
from benchmarks import floors
from benchmarks.gpu.section import Options
from benchmarks.gpu.steps import GUIDANCE, measure_engine, model_for
from benchmarks.gpu.timing import random_lm, randomize, seconds_of

TOP_K = 250


def items(options: Options) -> list[str]:
    return ["eager", "transformers", "audiocraft"]


@torch.no_grad()
def measure(item: str, options: Options) -> dict[str, Any]:
    if item == "eager":
        lm = model_for("bfloat16", options)
        engine = EagerEngine(lm)
        few = dataclasses.replace(options, steps=min(12, options.steps))
        measure_engine(engine, lm, 1, "bfloat16", few, warmups=0)
        return measure_engine(engine, lm, 1, "bfloat16", options, warmups=0)
    try:
        step = {"transformers": _transformers, "audiocraft": _audiocraft}[item](options)
    except ImportError as error:
        return {"skipped": f"not importable: {error}"}
    for _ in range(3):
        step()
    steps = options.steps - 3
    seconds = seconds_of(lambda: [step() for _ in range(steps)], options.device)
    return {"descriptions": 1, "ms_per_step": 1e3 * seconds / steps}


def _transformers(options: Options) -> Callable[[], None]:
    """`MusicgenForCausalLM` over the same weights in bfloat16, sdpa, with its own caches."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    from benchmarks.peers.musicgen import musicgen_twin

    lm = random_lm(options.size, options.device, torch.bfloat16)
    twin = musicgen_twin(lm)
    table = twin.model.decoder.embed_positions
    table.weights = table.weights.to(options.device, torch.bfloat16)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    text = torch.randn(1, floors.TEXT_LENGTH, lm.dim, device=options.device, dtype=torch.bfloat16)
    vectors = torch.cat([text, torch.zeros_like(text)])
    last = torch.randint(0, lm.card, (1, lm.n_q, 1), device=options.device)

    def step() -> None:
        nonlocal last
        logits = twin(
            last.repeat(2, 1, 1).view(2 * lm.n_q, -1),
            encoder_hidden_states=vectors,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        cond, null = logits.view(2, lm.n_q, -1)
        top = torch.topk(null + (cond - null) * GUIDANCE, min(TOP_K, lm.card))
        choice = torch.multinomial(torch.softmax(top.values.float(), dim=-1), 1)
        last = top.indices.gather(-1, choice)[None]

    return step


def _audiocraft(options: Options) -> Callable[[], None]:
    """The original's own step: float16 weights under autocast, as its `get_pretrained` sets up."""
    from audiocraft.models.lm import LMModel
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
    from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider
    from audiocraft.modules.transformer import set_efficient_attention_backend

    set_efficient_attention_backend("torch")
    shape = floors.SIZES[options.size]
    fuser = {"cross": ["text"], "sum": [], "prepend": [], "input_interpolate": []}
    dtype = torch.float16 if options.device == "cuda" else torch.float32
    with torch.device("meta"):
        lm = LMModel(
            DelayedPatternProvider(shape["n_q"]),
            ConditioningProvider({}),
            ConditionFuser(fuser),
            **shape,
            **RELEASED_STRUCTURE,
        ).to(dtype)
    randomize(lm, options.device).eval().requires_grad_(False)
    text = torch.randn(1, floors.TEXT_LENGTH, shape["dim"], device=options.device, dtype=dtype)
    vectors = torch.cat([text, torch.zeros_like(text)])
    mask = torch.ones(2, floors.TEXT_LENGTH, device=options.device)
    lm._set_streaming(True)
    last = torch.randint(0, shape["card"], (1, shape["n_q"], 1), device=options.device)

    def step() -> None:
        nonlocal last
        with torch.autocast(options.device, torch.float16, enabled=options.device == "cuda"):
            last = lm._sample_next_token(
                last,
                {"text": (vectors, mask)},
                {},
                True,
                1.0,
                min(TOP_K, shape["card"]),
                0.0,
                cfg_coef=GUIDANCE,
            )

    return step
