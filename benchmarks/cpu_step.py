"""One decode step of the language model on a CPU: ours, transformers and audiocraft.

    python benchmarks/cpu_step.py [--engines eager,native-int8] [--audiocraft] [--size medium|tiny]

A step feeds one column of codes for one description with guidance (two rows) in float32, with
about half of a 10 s clip in the cache, and samples the next codes. See `benchmarks/README.md`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from common import (
    PEER_PYTHON,
    Peer,
    alternate,
    machine,
    randomize,
    read_bandwidth,
    require_memory,
    summary,
    timed,
    write_result,
)
from peers.musicgen import musicgen_twin

from audiogen_fast.generation import native
from audiogen_fast.generation.eager import EagerEngine
from audiogen_fast.generation.job import Engine, RowGroup, SamplingParams, make_keys
from audiogen_fast.generation.lm_generate import make_job
from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules.codebooks_patterns import DelayedPatternProvider
from audiogen_fast.modules.conditioners import ConditionFuser, ConditioningProvider

SHAPES = {
    "medium": {"dim": 1536, "num_heads": 24, "num_layers": 48, "n_q": 4, "card": 2048},
    "tiny": {"dim": 64, "num_heads": 4, "num_layers": 2, "n_q": 4, "card": 512},
}
TEXT_LENGTH = 12
FRAMES = 500  # 10 s at 50 frames a second
GUIDANCE = 3.0
# Memory of an engine's packed weights, over the model's own.
_COPY = {"native-float32": 1.0, "native-bfloat16": 0.5, "native-int8": 0.25, "native-int4": 0.14}


def build_lm(shape: dict[str, int]) -> LMModel:
    """Our model of that shape, structured as the released one, with random weights."""
    with torch.device("meta"):
        lm = LMModel(
            DelayedPatternProvider(shape["n_q"]),
            ConditioningProvider({}),
            ConditionFuser({"cross": ["text"]}),
            **shape,
            norm_first=True,
            causal=True,
            cross_attention=True,
            memory_efficient=True,
            activation="gelu",
            dropout=0.0,
            bias_attn=False,
            bias_ff=False,
            bias_proj=False,
        )
    return randomize(lm)


def parameters_read(lm: LMModel) -> int:
    """Parameters that a step has to read: everything but the embeddings and text projections."""
    layers = list(lm.transformer.layers)
    skipped = sum(2 * layer.cross_attention.in_proj_weight.numel() // 3 for layer in layers)
    embeddings = sum(table.weight.numel() for table in lm.emb)
    return sum(p.numel() for p in lm.parameters()) - skipped - embeddings


def our_engine(lm: LMModel, name: str) -> Engine:
    """`eager`, or `native-FORMAT` with the weights packed in that format."""
    if name == "eager":
        return EagerEngine(lm)
    weights = name.removeprefix("native-")
    return native.NativeEngine(lm, weights, "float32" if weights == "float32" else "bfloat16")


def our_steps(lm: LMModel, engine: Engine, text: torch.Tensor, prompt: torch.Tensor):
    """A measuring function that makes steps of our engine, which has consumed the prompt."""
    vectors = torch.cat([text, torch.zeros_like(text)])
    mask = torch.ones(vectors.shape[:2], dtype=torch.int64)
    mask[1] = 0
    job = make_job(
        lm,
        prompt,
        [RowGroup({"text": (vectors, mask)}, rows=2)],
        FRAMES,
        SamplingParams(),
        make_keys(0, None, 1, torch.device("cpu")),
        GUIDANCE,
    )
    run = engine.run(job)
    next(run)
    return lambda n: timed(lambda: next(run), n)


def transformers_steps(twin, text: torch.Tensor, prompt: torch.Tensor):
    """The same for transformers: its caches, the same guidance and sampling."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    vectors = torch.cat([text, torch.zeros_like(text)])
    n_q = prompt.shape[1]

    def advance(tokens: torch.Tensor) -> torch.Tensor:
        logits = twin(
            tokens.repeat(2, 1, 1).view(2 * n_q, -1),
            encoder_hidden_states=vectors,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        cond, null = logits.view(2, n_q, -1)
        top = torch.topk(null + (cond - null) * GUIDANCE, 250)
        choice = torch.multinomial(torch.softmax(top.values, dim=-1), 1)
        return top.indices.gather(-1, choice)[None]

    last = advance(prompt)

    def one_step() -> None:
        nonlocal last
        last = advance(last)

    return lambda n: timed(one_step, n)


def largest_difference(lm: LMModel, twin, text: torch.Tensor) -> float:
    """Largest difference of logits between ours and transformers, over the largest logit."""
    tokens = torch.randint(0, lm.card, (1, lm.n_q, 6))
    ours = lm(tokens, [], {"text": (text, torch.ones(text.shape[:2]))})
    theirs = twin(tokens[0], encoder_hidden_states=text, use_cache=False).logits
    return ((ours[0] - theirs).abs().max() / theirs.abs().max()).item()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    formats = ", ".join(f"native-{name}" for name in native.FORMATS)
    parser.add_argument("--engines", default="eager", help=f"of ours: eager, {formats}; by commas")
    parser.add_argument("--size", choices=SHAPES, default="medium")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--audiocraft", action="store_true", help="also measure the original")
    parser.add_argument("--peer-python", type=Path, default=PEER_PYTHON)
    parser.add_argument("--prompt", type=int, default=240, help="frames fed before measuring")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps per round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = SHAPES[args.size]
    model_bytes = 4 * 16 * shape["dim"] ** 2 * shape["num_layers"]
    copies = 1.1 + args.audiocraft + sum(_COPY.get(name, 0.0) for name in args.engines.split(","))
    require_memory(int(model_bytes * copies), "this benchmark")

    facts = machine()
    facts["read_gb_s"] = round(read_bandwidth(), 2)
    lm = build_lm(shape)
    text = torch.randn(1, TEXT_LENGTH, shape["dim"])
    prompt = torch.randint(0, shape["card"], (1, shape["n_q"], args.prompt))
    native.STEPS_PER_CALL = 1  # so that every call of an engine is one step
    runners: dict[str, Callable[[int], list[float]]] = {}
    weights: dict[str, int] = {}  # bytes of weights a step reads
    for name in args.engines.split(","):
        engine = our_engine(lm, name)
        runners[f"audiogen_fast {name}"] = our_steps(lm, engine, text, prompt)
        if name != "eager":
            weights[f"audiogen_fast {name}"] = engine.decoder().weight_bytes
    checks = {}
    if not args.no_transformers:
        twin = musicgen_twin(lm)
        checks["logits_relative_difference"] = largest_difference(lm, twin, text)
        runners["transformers"] = transformers_steps(twin, text, prompt)
    if args.audiocraft:
        settings = {"shape": shape, "text_length": TEXT_LENGTH, "prompt_length": args.prompt}
        peer = Peer(args.peer_python, "step", **settings)
        facts["peer"] = peer.versions
        runners["audiocraft"] = peer.measure
    for run in runners.values():
        run(2)
    seconds = alternate(runners, args.rounds, args.steps)
    facts["read_gb_s_after"] = round(read_bandwidth(), 2)
    if args.audiocraft:
        peer.close()

    position = args.prompt + 2 + args.rounds * args.steps // 2
    cached = 4 * 2 * 2 * position * shape["dim"] * shape["num_layers"]
    bandwidth = max(facts["read_gb_s"], facts["read_gb_s_after"]) * 1e9
    results = {name: summary(values) for name, values in seconds.items()}
    first = next(iter(results.values()))["median_ms"]
    for name, result in results.items():
        result["weight_bytes"] = weights.get(name, 4 * parameters_read(lm))
        half_cache = 2 if name.startswith("audiogen_fast native") and "float32" not in name else 1
        floor = (result["weight_bytes"] + cached // half_cache) / bandwidth * 1e3
        result["share_of_floor"] = round(floor / result["median_ms"], 3)
        result["ratio_to_first"] = round(result["median_ms"] / first, 3)
        print(f"{name:32} {result}")
    path = write_result(
        "cpu_step",
        args.out,
        machine=facts,
        settings={"shape": shape, "rows": 2, "text_length": TEXT_LENGTH, "position": position},
        cached_keys_values_bytes=cached,
        checks=checks,
        results=results,
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
