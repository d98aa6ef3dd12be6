"""Finds the package `benchmarks`, and leaves out what the machine cannot run."""

import sys
from pathlib import Path

import pytest

# At the end: in front, the folder `kernels` would hide a package of that name.
sys.path.append(str(Path(__file__).resolve().parents[2]))


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    torch = pytest.importorskip("torch")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)
