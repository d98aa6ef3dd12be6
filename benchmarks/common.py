"""What every benchmark shares: the machine, its bandwidth, timing, peers, one result file."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
PEER_PYTHON = Path(__file__).resolve().parents[1] / ".peers" / "bin" / "python"
PEER_SERVER = Path(__file__).parent / "peers" / "server.py"


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


def available_memory() -> int:
    """Bytes that can be allocated now without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0


def require_memory(needed: int, what: str) -> None:
    """Stop with a message rather than be killed half-way."""
    if available_memory() < needed:
        raise SystemExit(
            f"{what} needs {needed / 1e9:.1f} GB of memory, "
            f"{available_memory() / 1e9:.1f} GB are available"
        )


def read_bandwidth(gigabytes: float = 1.0, rounds: int = 9) -> float:
    """Fastest observed reading of a large float32 tensor with all threads, in GB/s (1e9)."""
    block = torch.ones(int(gigabytes * 1e9) // 4)
    seconds = timed(block.sum, rounds, warmup=2)
    return block.numel() * 4 / min(seconds) / 1e9


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


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give a model built on the meta device memory and random weights; norms start as identity."""
    model.to_empty(device="cpu")
    fill_random(list(model.parameters()), seed)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return model.eval().requires_grad_(False)


class Peer:
    """A benchmark process in the peer environment that answers one JSON line per request."""

    def __init__(self, python: Path, task: str, **arguments: Any):
        if not python.exists():
            raise SystemExit(f"{python} does not exist; see benchmarks/README.md, Peers")
        arguments["threads"] = torch.get_num_threads()
        command = [str(python), "-W", "ignore", str(PEER_SERVER), task, json.dumps(arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions = self._answer()

    def measure(self, n: int) -> list[float]:
        """Seconds of `n` measurements made by the peer."""
        self._process.stdin.write(json.dumps({"n": n}) + "\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended with status {self._process.wait()}")
        return json.loads(line)


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
