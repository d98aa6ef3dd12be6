"""Small runs of the language model's solver."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiogen_fast.training.data import Batch, SoundInfo
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.recipe import load_recipe
from audiogen_fast.training.solver_lm import LMSolver

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
SMALL = [
    "dataset.segment_duration=0.4",
    "dataset.shuffle=true",
    "dataset.train.num_samples=12",
    "transformer_lm.dim=32",
    "transformer_lm.num_layers=2",
    "transformer_lm.dropout=0.1",
    "classifier_free_guidance.training_dropout=0.3",
    "optim.epochs=2",
    "optim.updates_per_epoch=5",
    "optim.ema.updates=2",
    "schedule.warmup=3",
    "checkpoint.every=5",
    "logging.log_updates=1",
    "logging.log_tensorboard=false",
    "generate.every=none",
    "generate.num_samples=0",
]


@pytest.fixture(scope="session")
def small_changes() -> list[str]:
    """Changes that make the recipe `debug` a run of a few seconds, with everything random on."""
    return SMALL


@pytest.fixture
def small_config(tmp_path):
    """A function from a name and further changes to the configuration of a small run."""

    def make(name: str = "run", *changes: str):
        return load_recipe("debug", [*SMALL, f"folder={tmp_path / name}", *changes])

    return make


@pytest.fixture
def lines():
    """Where solvers tell what they do."""
    return []


@pytest.fixture
def make_solver(lines):
    """A function from a configuration to a solver in this process."""
    return lambda config: LMSolver(config, Ranks(), lines.append)


class OneBatch:
    """The same batch, as often as it is asked for."""

    def __init__(self, batch: Batch):
        self.batch, self.given = batch, 0

    def forever(self):
        while True:
            self.given += 1
            yield self.batch

    def __iter__(self):
        yield self.batch

    def rewind(self):
        pass

    def report(self):
        return ""

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.given = state["given"]


class GoldenSolver(LMSolver):
    """Learns from the batch of a golden case."""

    def make_loaders(self):
        folder = Path(self.config.continue_from).parent
        self.tensors = load_file(folder / "golden.safetensors")
        texts = json.loads((folder / "golden.json").read_text())["descriptions"]
        infos = [
            SoundInfo(str(i), "", text, 0.0, 1, 1, 16000, 1, 1.0) for i, text in enumerate(texts)
        ]
        self.loader = OneBatch(Batch(infos, codes=self.tensors["lm.codes"].long()))
        self.valid_loader, self.evaluate_loader, self.samples = self.loader, None, None


@pytest.fixture
def golden_solver(tmp_path, lines):
    """A function from the name of a golden case and changes to a solver of its training."""

    def make(name: str, *changes: str):
        fixed = [
            f"folder={tmp_path / name}",
            f"continue_from={GOLDEN / name / 'checkpoint'}",
            "classifier_free_guidance.training_dropout=0",
            "optim.lr=1e-3",
            "optim.adam.weight_decay=0.1",
            "optim.max_norm=0",
            "optim.epochs=1",
            "optim.updates_per_epoch=2",
            "schedule.lr_scheduler=none",
            "logging.log_tensorboard=false",
            "logging.log_updates=1",
            "compression_model_checkpoint=none",
            "generate.every=none",
            "generate.num_samples=0",
            "optim.ema.use=false",
        ]
        return GoldenSolver(load_recipe("debug", [*fixed, *changes]), Ranks(), lines.append)

    return make


@pytest.fixture(autouse=True)
def keep_generators():
    """A run seeds the generators of the process; other tests should not notice."""
    with torch.random.fork_rng(devices=[]):
        yield
