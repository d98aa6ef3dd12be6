"""What the original gave for codec training, and real sounds."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors import safe_open
from torch import Tensor

from audiogen_fast.training.codec.config import CodecConfig
from audiogen_fast.training.codec.solver_codec import CodecSolver
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.recipe import load_recipe

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


SMALL = {
    "dataset.batch_size": 4,
    "dataset.valid.num_samples": 6,
    "dataset.valid.batch_size": 4,
    "dataset.evaluate.source": "none",
    "dataset.generate.source": "none",
    "dataset.segment_duration": 0.25,
    "seanet.n_filters": 2,
    "seanet.dimension": 8,
    "rvq.n_q": 3,
    "rvq.bins": 16,
    "rvq.kmeans_iters": 3,
    "msstftd.filters": 2,
    "msstftd.n_ffts": [256, 128],
    "msstftd.hop_lengths": [64, 32],
    "msstftd.win_lengths": [256, 128],
    "optim.epochs": 2,
    "optim.updates_per_epoch": 5,
    "logging.log_tensorboard": "false",
}


@pytest.fixture(scope="session")
def small_values() -> dict[str, object]:
    """What `small_recipe` changes."""
    return SMALL


@pytest.fixture
def small_recipe(tmp_path):
    """The recipe `encodec_small`, smaller still, with changes as keyword `section__key=value`."""

    def load(name: str = "run", **changes) -> CodecConfig:
        values = SMALL | {"folder": tmp_path / name}
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        return load_recipe("encodec_small", [f"{key}={value}" for key, value in values.items()])

    return load


@pytest.fixture
def make_solver():
    """Solvers of one process that keep what they tell in `lines`."""

    def make(config: CodecConfig) -> CodecSolver:
        lines: list[str] = []
        solver = CodecSolver(config, Ranks(), lines.append)
        solver.lines = lines
        return solver

    return make
