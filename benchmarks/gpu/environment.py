"""What the machine and the installation are, and what is predicted for it."""

import os
import subprocess
from typing import Any

import torch

from audiogen_fast.env import get_env
from benchmarks import floors
from benchmarks.gpu.section import Options

_QUERY = (
    "name,driver_version,memory.total,power.limit,clocks.sm,clocks.max.sm,clocks.mem,"
    "clocks.max.mem,temperature.gpu,utilization.gpu,compute_mode,pstate"
)


def items(options: Options) -> list[str]:
    return ["installation", "device", "predictions"]


def measure(item: str, options: Options) -> dict[str, Any]:
    if item == "installation":
        env = get_env()
        return {**env, "cpus": len(os.sched_getaffinity(0)), "cuda": torch.version.cuda}
    if item == "predictions":
        rows = floors.predictions(floors.SIZES[options.size])
        return {"rows": rows}
    if not torch.cuda.is_available():
        return {"name": None, "note": "torch sees no CUDA device"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "nvidia_smi": _nvidia_smi(),
    }


def _nvidia_smi() -> dict[str, str] | str:
    try:
        run = subprocess.run(
            ["nvidia-smi", "--id=0", f"--query-gpu={_QUERY}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not available: {error}"
    if run.returncode != 0:
        return f"failed: {run.stdout or run.stderr}"
    return dict(zip(_QUERY.split(","), run.stdout.strip().split(", "), strict=False))
