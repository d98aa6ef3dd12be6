"""The engine with the fused step: the original's codes, and those of the torch step."""

import json
import os

import torch
from safetensors.torch import load_file

from audiogen_fast import AudioGen
from audiogen_fast.generation.cuda_graph.engine import CudaGraphEngine

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def load(folder) -> AudioGen:
    return AudioGen.get_pretrained(
        folder / "checkpoint", device=DEVICE, dtype="float32", engine="eager"
    )


def codes(model, step, texts, **params):
    model.engine = CudaGraphEngine(model.lm, step=step)
    model.set_generation_params(duration=0.1, **params)
    return model.generate(texts, seed=4, return_tokens=True)[1]


def test_recorded_codes_without_sampling(project_root):
    folder = project_root / "tests" / "data" / "golden" / "plain"
    texts = json.loads((folder / "golden.json").read_text())["descriptions"][:1]
    expected = load_file(folder / "golden.safetensors")["greedy_one.tokens"]
    model = load(folder)
    actual = codes(model, "fused", texts, use_sampling=False)
    assert torch.equal(actual, codes(model, "torch", texts, use_sampling=False))
    # A shorter clip ends in special tokens, which its last three frames feel.
    assert torch.equal(actual[..., :-3].cpu(), expected[..., : actual.shape[-1] - 3])


def test_sampled_codes_with_biases_and_a_row_without_text(project_root):
    model = load(project_root / "tests" / "data" / "golden" / "biased")
    texts, params = ["rain on a roof", ""], {"top_k": 20, "temperature": 1.2}
    actual = codes(model, "fused", texts, **params)
    assert torch.equal(actual, codes(model, "torch", texts, **params))
