"""What every benchmark shares: the machine, its memory, timing, one result file.

Imported in the environments of the peers as well, so it needs nothing but torch and the lightest
modules of this package.
"""

import json
import os
import platform
import resource
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen_fast.memory import free_memory

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The hardware and software a figure belongs to; `load` is the load average at the start."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load": os.getloadavg()[0],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def require_memory(needed: int, what: str) -> None:
    """Stop with a message rather than be killed half-way."""
    if free_memory() < needed:
        raise SystemExit(
            f"{what} needs {needed / 1e9:.1f} GB of memory, "
            f"{free_memory() / 1e9:.1f} GB are available"
        )


def process_memory() -> dict[str, int]:
    """Bytes of this process: its own memory now, and all it had at its highest.

    `peak_bytes` counts mapped files as well, of which all processes share one copy;
    `private_bytes` does not.
    """
    status = Path("/proc/self/status").read_text()
    fields = {"private_bytes": "RssAnon", "peak_bytes": "VmHWM"}
    return {
        name: int(status.split(f"{field}:")[1].split()[0]) * 1024 for name, field in fields.items()
    }


def page_faults() -> int:
    """How often this process has waited for a page from disk so far.

    While it measures that should be hardly ever: mapped weights that memory has no room for make
    an implementation look slow.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def read_bandwidth(threads: int, rounds: int = 5, size: int = 1 << 30) -> float:
    """Fastest of `rounds` readings of a block of memory with all threads, in GB/s (1e9)."""
    from audiogen_fast.ops import native

    return max(native.read_bandwidth(size, threads, rounds)) / 1e9


def timed(call: Callable[[], Any], n: int, warmup: int = 0) -> list[float]:
    """Seconds of `n` calls, one by one, after `warmup` calls that do not count."""
    for _ in range(warmup):
        call()
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median and the 10th and 90th percentiles in milliseconds."""
    values = torch.tensor(seconds, dtype=torch.float64) * 1e3
    low, middle, high = torch.quantile(values, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    return {
        "median_ms": round(middle.item(), 3),
        "p10_ms": round(low.item(), 3),
        "p90_ms": round(high.item(), 3),
        "n": len(values),
    }


def alternate(
    runners: dict[str, Callable[[int], list[float]]], rounds: int, n: int
) -> dict[str, list[float]]:
    """Let the runners take turns, so that a busy moment of the machine hits all of them alike.

    Args:
        runners: name -> function that makes that many measurements and returns their seconds.
        rounds: turns of each runner.
        n: measurements per turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            seconds[name] += run(n)
    return seconds


def fill_random(tensors: Sequence[Tensor], seed: int = 0, std: float = 0.02) -> None:
    """Fill tensors with normal noise, quickly: all zeros would be unusually fast to compute with.

    One block of noise is copied over and over, at a new offset each time.
    """
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(seed)) * std
    position = 0
    for tensor in tensors:
        flat = tensor.detach().view(-1)
        done = 0
        while done < flat.numel():
            position = (position + 7919) % (noise.numel() // 2)
            n = min(flat.numel() - done, noise.numel() - position)
            flat[done : done + n] = noise[position : position + n]
            done += n


def write_result(name: str, path: Path | None, **content: Any) -> Path:
    """Write one run as JSON (see `benchmarks/README.md`), by default to `results/NAME.json`."""
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **content,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)
    return path
