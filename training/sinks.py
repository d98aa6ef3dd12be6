"""Where numbers of a run go: a JSONL file always, TensorBoard, Weights & Biases, trackio."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from audiogen_fast.errors import MissingDependencyError
from audiogen_fast.training.config import LoggingConfig


class Sink(Protocol):
    """Takes the numbers of one moment of the run."""

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JSONLines:
    """One JSON object a line, complete on the disk's side of Python after each."""

    def __init__(self, path: Path):
        self.file = open(path, "a", buffering=1)  # noqa: SIM115

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        # JSON has no NaN, and a reader should not stumble over the most interesting line.
        plain = {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()}
        self.file.write(json.dumps({"stage": stage, "step": step, **plain}) + "\n")

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "logging.log_tensorboard needs tensorboard: pip install tensorboard, or "
                "'audiogen-fast[train]', or set logging.log_tensorboard=false"
            ) from error
        self.writer = SummaryWriter(str(folder))

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        self.writer.close()


class Tracker:
    """Weights & Biases or trackio, which have the same interface."""

    def __init__(self, module: str, project: str, folder: Path, config: Mapping[str, Any]):
        import importlib

        try:
            self.module = importlib.import_module(module)
        except ImportError as error:
            raise MissingDependencyError(
                f"logging.log_{module} needs {module}: pip install {module}, or "
                f"'audiogen-fast[{module}]'"
            ) from error
        options = {"dir": str(folder)} if module == "wandb" else {}
        self.run = self.module.init(
            project=project, name=folder.name, config=dict(config), **options
        )

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        self.module.log({f"{stage}/{k}": v for k, v in metrics.items()}, step=step)

    def close(self) -> None:
        self.module.finish()


def open_sinks(config: LoggingConfig, folder: Path, values: Mapping[str, Any]) -> list[Sink]:
    """The sinks a configuration asks for.

    Raises:
        MissingDependencyError: what one of them needs is not installed.
    """
    sinks: list[Sink] = []
    if config.log_tensorboard:
        sinks.append(TensorBoard(folder / "tensorboard"))
    for module, wanted in (("wandb", config.log_wandb), ("trackio", config.log_trackio)):
        if wanted:
            sinks.append(Tracker(module, config.project, folder, values))
    return [JSONLines(folder / "log.jsonl"), *sinks]
