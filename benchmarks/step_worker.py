"""The process of one of our engines, or of transformers, in `benchmarks.cpu`.

    python -m benchmarks.step_worker '{"implementation": "int8", "folder": "...", "threads": 2}'

Serves `start` (a new clip), `turn` (measure steps of it), `check` (outputs to compare) and
`memory`. `peers/server.py` serves the same for audiocraft.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen_fast.generation.eager import EagerEngine
from audiogen_fast.generation.job import RowGroup, SamplingParams, make_keys
from audiogen_fast.generation.lm_generate import make_job
from audiogen_fast.generation.native import NativeEngine
from audiogen_fast.models import builders
from audiogen_fast.models.checkpoint import read_own_format
from audiogen_fast.models.lm import LMModel
from audiogen_fast.models.weights import load_state
from benchmarks.common import page_faults, process_memory, timed
from benchmarks.workers import reserve_output, serve

GUIDANCE, TOP_K = 3.0, 250


def load_lm(folder: str) -> LMModel:
    """The language model of a folder, its weights mapped, without its text encoder."""
    checkpoint = read_own_format(folder, "lm")
    with torch.device("meta"):
        lm = builders.get_lm_model(checkpoint.cfg, Path(folder))
    load_state(lm, checkpoint, torch.device("cpu"), torch.float32)
    return lm.eval().requires_grad_(False)


def random_text(lm: LMModel, batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, lm.dim, generator=torch.Generator().manual_seed(0))


def parameters_read(lm: LMModel) -> dict[str, int]:
    """Parameters that a step has to read, and those of the keys and values of the text.

    The latter are made once; only audiocraft makes them in every step. Of embeddings and text
    projections hardly anything is read.
    """
    layers = list(lm.transformer.layers)
    text = sum(2 * layer.cross_attention.in_proj_weight.numel() // 3 for layer in layers)
    rest = sum(p.numel() for part in (lm.transformer, lm.out_norm) for p in part.parameters())
    heads = sum(p.numel() for p in lm.linears.parameters())
    return {"step": rest + heads - text, "text": text}


def checked_logits(lm: LMModel, model, text_length: int) -> list[float]:
    """Some logits of a fixed sequence, to compare what the implementations compute."""
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, lm.card, (1, lm.n_q, 6), generator=g)
    return model(tokens, random_text(lm, 1, text_length))[..., :32].flatten().tolist()


class Ours:
    """One of our engines. A clip is generated from its start, a part of it in each turn."""

    def __init__(self, lm: LMModel, name: str, threads: int):
        self.lm = lm
        if name == "eager":
            self.engine = EagerEngine(lm)
        else:
            self.engine = NativeEngine(lm, name, threads=threads)

    def start(self, batch: int, frames: int, text_length: int) -> dict[str, Any]:
        """Begin a clip, after the first few steps of another, which prepare what is reused."""
        self._begin(batch, frames, text_length)
        next(self.run)
        self._begin(batch, frames, text_length)
        begin = time.perf_counter()
        self.done = next(self.run)
        seconds = time.perf_counter() - begin
        weights = None
        if isinstance(self.engine, NativeEngine):
            weights = self.engine.decoder().weight_bytes
        return {"first_call_ms": round(seconds * 1e3, 3), "weight_bytes": weights}

    def _begin(self, batch: int, frames: int, text_length: int) -> None:
        lm, text = self.lm, random_text(self.lm, batch, text_length)
        mask = torch.ones(2 * batch, text_length, dtype=torch.int64)
        mask[batch:] = 0
        (name,) = lm.fuser.fuse2cond["cross"]
        vectors = torch.cat([text, torch.zeros_like(text)])
        job = make_job(
            lm,
            torch.zeros(batch, lm.n_q, 0, dtype=torch.int64),
            [RowGroup({name: (vectors, mask)}, rows=2 * batch)],
            frames,
            SamplingParams(top_k=TOP_K),
            make_keys(0, None, batch, torch.device("cpu")),
            GUIDANCE,
        )
        self.run, self.done = self.engine.run(job), 0

    def turn(self, begin: int, end: int, steps: int) -> dict[str, Any]:
        """Go on to step `end`; seconds per step of each call but the first, after a pause."""
        seconds, faults = [], page_faults()
        while self.done < end:
            start = time.perf_counter()
            done = next(self.run)
            seconds.append((time.perf_counter() - start) / (done - self.done))
            self.done = done
        return {"seconds": seconds[1:] or seconds, "page_faults": page_faults() - faults}

    def stop(self) -> dict[str, Any]:
        self.run.close()
        return process_memory()

    def check(self, text_length: int) -> dict[str, Any]:
        (name,) = self.lm.fuser.fuse2cond["cross"]

        def model(tokens: Tensor, text: Tensor) -> Tensor:
            return self.lm(tokens, [], {name: (text, torch.ones(text.shape[:2]))})[0]

        return {"logits": checked_logits(self.lm, model, text_length)}


class Transformers:
    """`MusicgenForCausalLM` over the same weights; turns begin with caches filled with noise."""

    def __init__(self, lm: LMModel):
        from benchmarks.peers.musicgen import musicgen_twin

        self.lm, self.twin = lm, musicgen_twin(lm)

    def start(self, batch: int, frames: int, text_length: int) -> dict[str, Any]:
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        text = random_text(self.lm, batch, text_length)
        self.vectors = torch.cat([text, torch.zeros_like(text)])
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.last = torch.zeros(batch, self.lm.n_q, 1, dtype=torch.int64)
        (seconds,) = timed(self._step, 1)  # makes keys and values of the text
        self.text_cache, self.cache = self.cache.cross_attention_cache, None
        return {"first_call_ms": round(seconds * 1e3, 3), "weight_bytes": None}

    def _step(self) -> None:
        batch, n_q = self.last.shape[:2]
        logits = self.twin(
            self.last.repeat(2, 1, 1).view(2 * batch * n_q, 1),
            encoder_hidden_states=self.vectors,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        cond, null = logits.view(2, batch * n_q, -1)
        top = torch.topk(null + (cond - null) * GUIDANCE, TOP_K)
        choice = torch.multinomial(torch.softmax(top.values, dim=-1), 1)
        self.last = top.indices.gather(-1, choice).view(batch, n_q, 1)

    def turn(self, begin: int, end: int, steps: int) -> dict[str, Any]:
        """Seconds of `steps` steps in the middle of begin..end, after one that does not count."""
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        own = DynamicCache()
        heads = self.lm.transformer.layers[0].self_attn.num_heads
        shape = (len(self.vectors), heads, max(1, (begin + end - steps) // 2), self.lm.dim // heads)
        for layer in range(len(self.lm.transformer.layers)):
            own.update(torch.randn(shape), torch.randn(shape), layer)
        self.cache = EncoderDecoderCache(own, self.text_cache)
        faults = page_faults()
        seconds = timed(self._step, steps, warmup=1)
        faults, memory = page_faults() - faults, process_memory()
        self.cache = None  # room for the others
        return {"seconds": seconds, "page_faults": faults, **memory}

    def stop(self) -> dict[str, Any]:
        return {}

    def check(self, text_length: int) -> dict[str, Any]:
        def model(tokens: Tensor, text: Tensor) -> Tensor:
            return self.twin(tokens[0], encoder_hidden_states=text, use_cache=False).logits

        return {"logits": checked_logits(self.lm, model, text_length)}


@torch.inference_mode()
def main() -> None:
    channel = reserve_output()
    arguments = json.loads(sys.argv[1])
    torch.set_num_threads(arguments["threads"])
    lm = load_lm(arguments["folder"])
    name = arguments["implementation"]
    hello = {"parameters": parameters_read(lm), "torch": torch.__version__}
    if name == "transformers":
        import transformers

        target: Any = Transformers(lm)
        hello["transformers"] = transformers.__version__
    else:
        target = Ours(lm, name, arguments["threads"])
    serve(target, hello, channel)


if __name__ == "__main__":
    main()
