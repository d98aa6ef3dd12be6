"""The engine with the fused step: the original's codes, and the torch step's."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from audiogen_fast import AudioGen
from audiogen_fast.generation.cuda_graph.engine import CudaGraphEngine

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


@pytest.fixture(scope="module", params=["plain", "biased"])
def fused(request, project_root) -> tuple[AudioGen, CudaGraphEngine, dict]:
    """A recorded model, its engine with the fused step, and what was recorded."""
    folder = project_root / "tests" / "data" / "golden" / request.param
    model = AudioGen.get_pretrained(folder / "checkpoint", device=DEVICE, dtype="float32")
    recorded = load_file(folder / "golden.safetensors")
    recorded["texts"] = json.loads((folder / "golden.json").read_text())["descriptions"]
    return model, CudaGraphEngine(model.lm, step="fused"), recorded


def test_recorded_codes_without_sampling(fused):
    model, engine, recorded = fused
    expected = recorded["greedy.tokens"][..., :3]  # past these, the shorter clip has no codes
    model.engine = engine
    model.set_generation_params(duration=0.1, use_sampling=False)
    _, codes = model.generate(recorded["texts"], return_tokens=True)
    assert torch.equal(codes.cpu(), expected)


@pytest.mark.parametrize("params", [{"top_k": 20}, {"top_p": 0.7, "cfg_coef": 1.0}])
def test_sampled_codes_of_the_torch_step(fused, params):
    """Other text lengths in one batch, one of them none."""
    model, engine, _ = fused
    model.set_generation_params(duration=0.08, **params)
    results = []
    for one in (engine, CudaGraphEngine(model.lm, step="torch")):
        model.engine = one
        results.append(model.generate(["rain", "", "a siren"], seed=4, return_tokens=True)[1])
    assert torch.equal(*results)
