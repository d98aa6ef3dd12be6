"""Clocks and random models for a device."""

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from audiogen_fast.models.lm import LMModel
from audiogen_fast.models.released import released_lm
from benchmarks import floors

COLD_BYTES = 256 << 20
"""Written between measurements, so that no cache holds what is read next (H100: 50 MB)."""


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], Any], device: str) -> float:
    """Wall time of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def cold_seconds(call: Callable[[], Any], device: str, rounds: int = 20) -> list[float]:
    """Seconds of single calls on a cold cache, by the device's own clock, sorted."""
    for _ in range(3):  # compiles, allocates
        call()
    if device != "cuda":
        return sorted(seconds_of(call, device) for _ in range(rounds))
    flush = torch.empty(COLD_BYTES, dtype=torch.int8, device=device)
    pairs = []
    for _ in range(rounds):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) / 1e3 for start, end in pairs)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def randomize(module: nn.Module, device: str, std: float = 0.02) -> nn.Module:
    """Memory and random weights for a module on the meta device; norms start as identity.

    Never zeros, with which a GPU draws less power and runs faster.
    """
    module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std, generator=generator)
        for norm in module.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.weight.fill_(1.0)
                norm.bias.zero_()
    return module


@functools.lru_cache(maxsize=1)
def random_lm(size: str, device: str, dtype: torch.dtype) -> LMModel:
    """A language model of the released structure, for evaluation."""
    with torch.device("meta"):
        lm = released_lm(floors.SIZES[size]).to(dtype)
    return randomize(lm, device).eval().requires_grad_(False)
