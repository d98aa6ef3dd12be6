"""Sections of a report: measured item by item in processes of their own, saved as they go."""

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from audiogen_fast.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
UNFINISHED = "the process ended or ran out of time in the middle of this item"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, the same for all sections."""

    size: str = "medium"
    """Of the model: 'medium' or 'tiny'."""
    device: str = "cuda"
    steps: int = 503
    """Decode steps of a clip."""
    kernel_tests: str = "tests/kernels/launch"
    """Folder of the kernel tests."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One kind of measurement.

    Its module has `items(options) -> list[str]` and `measure(item, options) -> dict`; everything
    that items share is cached in the module.
    """

    name: str
    title: str
    module: str
    seconds: float
    """It may take so long."""
    needs_gpu: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of its process."""


def run_section(section: Section, options: Options, seconds: float, out: Path) -> dict[str, Any]:
    """Measure all items; a process that dies is started again for the items that are left.

    Args:
        seconds: from now on.
        out: file that holds the results so far.
    Returns:
        item -> what `measure` returned, or `{"error": ...}`.
    """
    deadline = time.monotonic() + seconds
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.section", section.module, str(out)]
    command.append(json.dumps(asdict(options)))
    environment = {**os.environ, **section.environment, "PYTHONUNBUFFERED": "1"}
    log = ""
    for _ in range(4):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        before = len(_read(out))
        try:
            run = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                timeout=left,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            break
        log = run.stdout
        if run.returncode == 0:
            break
        if len(_read(out)) == before:  # it does not even come to an item
            return _read(out) or {"section": {"error": log[-2000:] or f"status {run.returncode}"}}
    results = _read(out)
    return results or {"section": {"error": log[-2000:] or "no time was left"}}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


def measure_items(module: Any, options: Options, out: Path) -> int:
    """In the process of a section: measure what `out` does not have yet, saving after each item.

    Returns:
        0, or 1 when the device is unusable and a new process must go on.
    """
    results = _read(out)
    for item in module.items(options):
        if item in results:
            continue
        results[item] = {"error": UNFINISHED}
        _save(out, results)
        start = time.perf_counter()
        try:
            results[item] = module.measure(item, options)
        except Exception as error:  # one item must not lose the others
            lines = traceback.format_exception(error)
            results[item] = {
                "error": f"{type(error).__name__}: {error}"[:2000],
                "where": "".join(lines)[-1500:],
            }
        results[item]["took_s"] = round(time.perf_counter() - start, 2)
        _save(out, results)
        if "error" in results[item] and not _device_works(options.device):
            return 1
    return 0


def _save(out: Path, results: dict[str, Any]) -> None:
    write_atomically(out, json.dumps(results, indent=1).encode())


def _device_works(device: str) -> bool:
    """False after an illegal memory access, which spoils a process for good."""
    import torch

    try:
        torch.ones(1, device=device).sum().item()
        if device == "cuda":
            torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def main(arguments: Sequence[str]) -> int:
    module, out, options = arguments
    return measure_items(importlib.import_module(module), Options(**json.loads(options)), Path(out))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
