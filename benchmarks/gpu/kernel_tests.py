"""Every kernel test on the device, each file in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.section import ROOT, Options

# Files that are compiled and run at the same time; compiling takes most of it.
_AT_ONCE = 6


def items(options: Options) -> list[str]:
    """Groups of files, by commas."""
    folder = ROOT / options.kernel_tests
    files = sorted(str(path) for path in folder.glob("test_*.py"))
    if options.device == "cuda":
        files += [str(path) for path in _files_with_gpu_tests()]
    return [",".join(files[i : i + _AT_ONCE]) for i in range(0, len(files), _AT_ONCE)]


def _files_with_gpu_tests() -> list[Path]:
    """Files outside the kernel tests that mark tests as in need of a GPU."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "kernels" not in path.parts and "mark.gpu" in path.read_text(encoding="utf-8"):
            found.append(path)
    return found


def measure(item: str, options: Options) -> dict[str, Any]:
    processes = {name: _start(name) for name in item.split(",")}
    files = {Path(name).name: _outcome(process) for name, process in processes.items()}
    counts = {
        key: sum(one[key] for one in files.values())
        for key in ("passed", "failed", "errors", "skipped")
    }
    result: dict[str, Any] = {**counts, "files": files}
    if any(one["status"] != 0 for one in files.values()):
        result["error"] = f"{counts['failed']} failed, {counts['errors']} errors"
    return result


def _start(name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    marks = ["-m", "gpu"] if Path(name) in _files_with_gpu_tests() else []
    return subprocess.Popen(
        [*command, *marks, "--tb=line", name],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _outcome(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    last = output.strip().splitlines()[-1] if output.strip() else ""
    counts = {
        key: int(found[1]) if (found := re.search(rf"(\d+) {word}", last)) else 0
        for key, word in (
            ("passed", "passed"),
            ("failed", "failed"),
            ("errors", "error"),
            ("skipped", "skipped"),
        )
    }
    status = 0 if process.returncode == 5 else process.returncode  # 5: no test was there to run
    result = {**counts, "status": status}
    if status:
        result["output"] = output[-3000:]
    return result
