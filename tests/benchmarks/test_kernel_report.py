"""The report of the kernels, made for one small op."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]


def test_report(tmp_path, request):
    docs, data = tmp_path / "kernels.md", tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.kernel_report", "--quick", "--ops", "rvq_decode"]
    command += ["--capabilities", "90", "--docs", docs, "--json", data, "--no-step"]
    cache = str(request.config.cache.mkdir("triton"))
    environment = {**os.environ, "TRITON_CACHE_DIR": cache}
    subprocess.run(command, cwd=ROOT, check=True, env=environment)
    report = json.loads(data.read_text())
    ((name, kernels),) = report["kernels"].items()
    facts = kernels[0]["compiled"]["90"]
    assert name == "rvq_decode[float32]" and kernels[0]["kernel"] == "rvq_decode_kernel"
    assert facts["complaints"] == [] and facts["spilled_bytes"] == 0 and facts["registers"] > 16
    assert "16" in facts["loads"]["codebook_ptrs"]
    moved = report["traffic"][name]
    # 504 frames of 4 codes and of 4 vectors of 128 floats; the result once
    assert moved["needed"] == 504 * (4 * (8 + 512) + 512)
    # Vectors that come twice are touched once.
    assert 0.8 * moved["needed"] < moved["touched"] <= moved["needed"] < moved["requested"] * 1.01
    text = docs.read_text()
    assert f"| rvq_decode | float32 | `rvq_decode_kernel` | {facts['registers']} | 0 |" in text
    assert f"| rvq_decode | float32 | {moved['needed']:,} |" in text
