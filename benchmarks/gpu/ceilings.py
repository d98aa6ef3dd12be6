"""What this device can do at most: copying, reading, and multiplying large matrices."""

from typing import Any

import torch

from benchmarks.gpu.section import Options
from benchmarks.gpu.timing import cold_seconds, median


def items(options: Options) -> list[str]:
    return ["copy", "gemm bfloat16", "gemm float16", "gemm float32"]


def measure(item: str, options: Options) -> dict[str, Any]:
    if item == "copy":
        return _copy(options)
    dtype = getattr(torch, item.split()[1])
    n = 8192 if options.size == "medium" else 256
    a, b = (torch.randn(n, n, device=options.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = median(cold_seconds(lambda: torch.mm(a, b, out=out), options.device))
    return {"n": n, "ms": 1e3 * seconds, "tflops": 2 * n**3 / seconds / 1e12}


def _copy(options: Options) -> dict[str, Any]:
    """GB/s of copying 1 GiB, read and written bytes together: the ceiling of `share_of_copy`."""
    size = (1 << 30) if options.size == "medium" else (1 << 22)
    source = torch.randint(0, 127, (size,), dtype=torch.int8, device=options.device)
    target = torch.empty_like(source)
    seconds = cold_seconds(lambda: target.copy_(source), options.device)
    return {
        "bytes": 2 * size,
        "gb_s": 2 * size / median(seconds) / 1e9,
        "best_gb_s": 2 * size / seconds[0] / 1e9,
    }
