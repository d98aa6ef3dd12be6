"""Loading takes the memory of the weights, and hardly more; the benchmark on a small model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from audiogen_fast.config import Config
from audiogen_fast.models import weights
from audiogen_fast.models.checkpoint import Checkpoint

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_peak_memory(project_root, tmp_path):
    """64 MB of float16: mapped as they are, or converted or packed without both being there."""
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.load_memory", "--folder", str(tmp_path)]
    command += ["--size", "small", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=project_root, env=environment, check=True)
    record = json.loads(out.read_text())
    results, largest = record["results"], record["settings"]["largest_matrix_bytes"]
    weights = {dtype: result["weights_bytes"] for dtype, result in results.items()}
    assert weights["float32"] == 2 * weights["float16"] > 120e6
    for dtype, result in results.items():
        # Packing has the matrix at hand in float32, and the heads, the largest, also joined; the
        # threads that pack take some memory at their first use. All of the file would be 64 MB.
        spare = 2 * largest + 10e6 if dtype.startswith("int") else 0
        assert result["peak_bytes"] <= 1.10 * weights[dtype] + spare, dtype
        assert result["peak_bytes"] >= weights[dtype], "it measures nothing"
    assert weights["int4"] < weights["int8"] < 0.7 * weights["float16"]
    # Mapped weights take no memory before they are used.
    assert results["float16"]["peak_before_reading_bytes"] < 0.1 * weights["float16"]
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def mapping(path: Path) -> tuple[int, int]:
    """Addresses where the file is mapped."""
    (line,) = [x for x in Path("/proc/self/maps").read_text().splitlines() if x.endswith(str(path))]
    start, end = line.split()[0].split("-")
    return int(start, 16), int(end, 16)


def test_only_pages_of_the_file_are_released(tmp_path, monkeypatch):
    """Elsewhere that would clear memory: here a tensor repeats the last number of the file, so
    that its size reaches far beyond."""
    path = tmp_path / "x.bin"
    numbers = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    torch.save({"honest": numbers, "repeated": numbers[-1:].clone()}, path)
    state = torch.load(path, mmap=True)
    state["repeated"] = state["honest"].as_strided((1 << 17,), (0,), (1 << 18) - 1)
    model = torch.nn.ParameterDict({name: torch.empty_like(t) for name, t in state.items()})
    released = []
    madvise = weights._madvise()

    def record(start, length, advice):
        released.append((start, start + length))
        return madvise(start, length, advice)

    monkeypatch.setattr(weights, "_madvise", lambda: record)
    start, end = mapping(path)
    checkpoint = Checkpoint(path, Config(), state, mapped=True)
    weights.load_state(model, checkpoint, torch.device("cpu"), torch.float16)
    assert len(released) == 1 and start <= released[0][0] < released[0][1] <= end
    assert torch.equal(model["honest"], numbers.half())
    assert torch.equal(model["repeated"], numbers[-1:].half().expand(1 << 17))
    assert torch.equal(state["honest"], numbers), "released pages come back"


def test_memory_that_is_not_a_file_s_is_left_alone():
    """A state made by hand is the caller's."""
    numbers = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    kept = numbers.clone()
    model = torch.nn.ParameterDict({"w": torch.empty_like(numbers)})
    checkpoint = Checkpoint(Path("memory"), Config(), {"w": numbers})
    weights.load_state(model, checkpoint, torch.device("cpu"), torch.float16)
    assert torch.equal(numbers, kept) and torch.equal(model["w"], kept.half())
