"""The models and the ways of generating that the engine is held to the eager one with."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from audiogen_fast import AudioGen

DATA = Path(__file__).parent.parent.parent / "data"
TEXTS = ["dog barking", "siren of an emergency vehicle in the rain", "footsteps in a corridor"]
# Name -> what is generated, and the parameters of the generation.
CALLS = {
    "batch": (TEXTS, {}),
    "one": (TEXTS[:1], {}),
    "greedy": (TEXTS, {"use_sampling": False}),
    "temperature 0": (TEXTS, {"temperature": 0.0}),
    "temperature near 0": (TEXTS, {"temperature": 1e-38}),
    "top_p": (TEXTS, {"top_p": 0.8}),
    "top_k": (TEXTS, {"top_k": 3}),
    "all": (TEXTS, {"top_k": 0}),
    "hot": (TEXTS, {"temperature": 2.5}),
    "no guidance": (TEXTS, {"cfg_coef": 1.0}),
    "weak guidance": (TEXTS, {"cfg_coef": 1.37}),
    "two": (TEXTS, {"two_step_cfg": True}),
    "invariant": (TEXTS, {"batch_invariant": True}),
    "nothing": ([None, None], {}),
    "some": (["", "rain", None], {}),
    "some, invariant": (["", "rain", None], {"batch_invariant": True}),
    "windows": (TEXTS[:2], {"duration": 3.5, "extend_stride": 1.2}),
    "continued": (TEXTS[:2], {"duration": 1.4}),
}


@pytest.fixture(scope="session", params=["plain", "biased"])
def golden(request) -> AudioGen:
    """A recorded model without, and one with biases; set its engine before use."""
    folder = DATA / "golden" / request.param / "checkpoint"
    return AudioGen.get_pretrained(folder, device="cpu", engine="eager")


@pytest.fixture(params=CALLS)
def codes(request) -> Callable[..., torch.Tensor]:
    """`codes(model, engine)`: what the engine makes of one of `CALLS`, int64 `[B, K, T]`."""
    texts, params = CALLS[request.param]

    def generate(model, engine):
        model.engine = engine
        model.set_generation_params(**{"duration": 0.6} | params)
        if request.param != "continued":
            return model.generate(texts, return_tokens=True, seed=3)[1]
        prompt = torch.sin(torch.arange(16000) * 0.2).repeat(2, 1, 1)
        return model.generate_continuation(prompt, 16000, texts, False, True, seed=1)[1]

    return generate
