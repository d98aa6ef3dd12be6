"""What the original gave for codec training, and real sounds."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors import safe_open
from torch import Tensor

DATA = Path(__file__).parents[2] / "data"


class Recorded(dict[str, Tensor]):
    """Tensors by name, and `cases`, how they were made."""

    def __init__(self, path: Path):
        with safe_open(path, "pt") as file:
            super().__init__({name: file.get_tensor(name) for name in file.keys()})
            self.cases = json.loads(file.metadata()["cases"])

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below a name, without it."""
        return {n.removeprefix(prefix): t for n, t in self.items() if n.startswith(prefix)}

    def state(self, prefix: str) -> dict[str, Tensor]:
        """A model's state below a name, with `weight_g` and `weight_v` as torch calls them now."""
        renamed = {}
        for name, tensor in self.below(prefix).items():
            name = name.replace("weight_g", "parametrizations.weight.original0")
            renamed[name.replace("weight_v", "parametrizations.weight.original1")] = tensor
        return renamed


@pytest.fixture(scope="session")
def recorded() -> Recorded:
    return Recorded(DATA / "codec_training.safetensors")


@pytest.fixture(scope="session")
def codec_checkpoint() -> Path:
    """The codec that the training steps were recorded with."""
    return DATA / "golden" / "plain" / "checkpoint"


@pytest.fixture(scope="session")
def sounds() -> list[Tensor]:
    """Real recordings `[1, T]`, mono at 16 kHz."""
    return [
        torch.from_numpy(soundfile.read(path, dtype="float32")[0]).unsqueeze(0)
        for path in sorted((DATA / "recordings").glob("*.flac"))
    ]
