"""The folder of a training run, for reading: its configuration, and which weights to take."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from audiogen_fast.errors import check
from audiogen_fast.training.checkpoint import Checkpoints, read_state
from audiogen_fast.training.config import TrainConfig
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.recipe import load_recipe

WEIGHTS = ("ema", "last")
_CONFIG = "config.toml"


@dataclass
class Exported:
    """What was written."""

    folder: Path
    step: int
    weights: str


@dataclass(frozen=True)
class Chosen:
    """Weights of a run."""

    path: Path
    """Of the checkpoint."""
    step: int
    weights: str
    """`ema` or `last`."""

    @property
    def prefix(self) -> str:
        """What the names of the model's tensors begin with in the checkpoint."""
        return {"ema": "ema_model.", "last": "model."}[self.weights]


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a training run."""
    folder = Path(folder)
    return (folder / _CONFIG).is_file() and (folder / "checkpoints").is_dir()


def run_config(folder: str | Path) -> TrainConfig:
    """The configuration of a run.

    Raises:
        InvalidInputError: the folder is not that of a run.
    """
    path = Path(folder) / _CONFIG
    check(path.is_file(), f"run must be the folder of a training run, {path} is not there")
    return load_recipe(path)


def choose(
    folder: str | Path, config: TrainConfig, step: int | str | None = None, weights: str = "ema"
) -> Chosen:
    """The weights to take of a run, whatever its solver.

    Args:
        config: the run's.
        step: see `Checkpoints.choose`; a warning names newer ones that are damaged.
        weights: `ema` for the moving average, where the run has one; `last` for the last weights.
    Raises:
        CheckpointError: no such checkpoint, or it is damaged.
    """
    check(weights in WEIGHTS, f"weights must be one of {WEIGHTS}, got {weights!r}")
    checkpoints = Checkpoints(Path(folder) / "checkpoints", Ranks(), tell=_warn)
    step = checkpoints.choose(step, config.best_metric)
    path = checkpoints.path(step)
    averaged = read_state(path)["common"].get("ema_model") or {"count": 0}
    kind = "ema" if weights == "ema" and averaged["count"] > 0 else "last"
    return Chosen(path, step, kind)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
