"""ms/step of a whole clip, averaged over its positions, by number of descriptions.

The environment says what of: `GPU_REPORT_FORMAT` the format of the weights, and
`AUDIOGEN_FAST_BACKEND=reference` the step in plain torch, captured, without fused kernels.
"""

import os
import time
from typing import Any

import torch

from audiogen_fast.generation.cuda_graph.engine import CudaGraphEngine
from audiogen_fast.generation.cuda_graph.fused_step import why_not_fused
from audiogen_fast.generation.job import DecodeJob, RowGroup, SamplingParams, make_keys
from audiogen_fast.generation.lm_generate import make_job
from audiogen_fast.models.lm import LMModel
from benchmarks import floors
from benchmarks.gpu.section import Options
from benchmarks.gpu.timing import random_lm, synchronize

GUIDANCE = 3.0
DESCRIPTIONS = (1, 8, 64)


def items(options: Options) -> list[str]:
    return [f"{n} descriptions" for n in DESCRIPTIONS]


@torch.no_grad()
def measure(item: str, options: Options) -> dict[str, Any]:
    weights = os.environ.get("GPU_REPORT_FORMAT", "bfloat16")
    lm = model_for(weights, options)
    descriptions = int(item.split()[0])
    engine = CudaGraphEngine(lm, weights if weights in ("int8", "int4") else None)
    result = measure_engine(engine, lm, descriptions, weights, options)
    why_torch = why_not_fused(2 * descriptions, lm.device)
    step = "fused" if why_torch is None else f"torch: {why_torch}"
    return {**result, "weights": weights, "step": step}


def model_for(weights: str, options: Options) -> LMModel:
    """The model whose weights are stored, or quantised later, in a format."""
    dtype = torch.bfloat16 if weights in ("int8", "int4") else getattr(torch, weights)
    return random_lm(options.size, options.device, dtype)


def random_job(lm: LMModel, descriptions: int, steps: int) -> DecodeJob:
    """A clip from nothing with guidance and the default sampling, and random text."""
    generator = torch.Generator(lm.device).manual_seed(1)
    shape = (descriptions, floors.TEXT_LENGTH, lm.dim)
    text = torch.randn(shape, generator=generator, device=lm.device)
    vectors = torch.cat([text, torch.zeros_like(text)]).to(lm.linears[0].weight.dtype)
    mask = torch.ones(vectors.shape[:2], dtype=torch.int64, device=lm.device)
    mask[descriptions:] = 0
    prompt = torch.zeros(descriptions, lm.n_q, 0, dtype=torch.long, device=lm.device)
    return make_job(
        lm,
        prompt,
        [RowGroup({"text": (vectors, mask)}, rows=2 * descriptions)],
        steps - lm.n_q + 1,
        SamplingParams(),
        make_keys(0, None, descriptions, lm.device),
        GUIDANCE,
    )


def measure_engine(
    engine: Any, lm: LMModel, descriptions: int, weights: str, options: Options, warmups: int = 1
) -> dict[str, Any]:
    """Decode whole clips: the first warms up and captures, the second is measured.

    `ms_per_step` leaves out what comes before the first steps and those (text, set-up);
    `clip_ms` is everything.
    """
    warm = None
    for _ in range(warmups):
        warm = _decode(engine, random_job(lm, descriptions, options.steps), options.device)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clip_ms, rest_ms, rest_steps = _decode(
        engine, random_job(lm, descriptions, options.steps), options.device
    )
    ms = rest_ms / rest_steps
    result = {
        "descriptions": descriptions,
        "ms_per_step": ms,
        "clip_ms": clip_ms,
        "first_clip_ms": warm and warm[0],
        "times_real_time": descriptions * (options.steps - 3) / 50 / (clip_ms / 1e3),
    }
    if options.device == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated()
        name = floors.find_gpu(torch.cuda.get_device_name())
        if name is not None:
            floor = floors.step_floor(floors.SIZES[options.size], weights, descriptions)
            result["floor_ms"] = 1e3 * floor.seconds(floors.GPUS[name])
            result["share_of_floor"] = result["floor_ms"] / ms
    return result


def _decode(engine: Any, job: DecodeJob, device: str) -> tuple[float, float, int]:
    """(ms of everything, ms after the first chunk of steps, number of steps after it)."""
    clock = _Clock(device)
    run = engine.run(job)
    clock.mark()
    first = next(run)
    clock.mark()
    done = max(run, default=first)  # it yields how many steps are done
    clock.mark()
    whole, rest = clock.elapsed()
    if done == first:
        return whole, whole, done
    return whole, rest, done - first


class _Clock:
    """Three marks in the device's own order of work; ms from the first and second to the last."""

    def __init__(self, device: str):
        self.device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self.device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def elapsed(self) -> tuple[float, float]:
        synchronize(self.device)
        first, second, last = self._marks
        if self.device == "cuda":
            return first.elapsed_time(last), second.elapsed_time(last)
        return 1e3 * (last - first), 1e3 * (last - second)
