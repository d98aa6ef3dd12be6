"""A trained codec as the files that `AudioGen.get_pretrained` and audiocraft load."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen_fast import __version__
from audiogen_fast.config import Config, to_yaml
from audiogen_fast.errors import CheckpointError, check
from audiogen_fast.files import write_atomically, written_beside
from audiogen_fast.models.builders import get_compression_model
from audiogen_fast.models.checkpoint import CONFIG_FILE, FORMAT, FORMAT_VERSION, OWN_FILES
from audiogen_fast.training.checkpoint import Checkpoints, read_state, read_tensors
from audiogen_fast.training.codec.config import CodecConfig
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.recipe import load_recipe

FORMATS = ("audiogen_fast", "audiocraft")
_RUN_CONFIG = "config.toml"
_ORIGINAL_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
    "parametrizations.weight.original": "weight_orig",
    "parametrizations.weight.0._u": "weight_u",
    "parametrizations.weight.0._v": "weight_v",
}


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a training run."""
    folder = Path(folder)
    return (folder / _RUN_CONFIG).is_file() and (folder / "checkpoints").is_dir()


def read_run(
    folder: str | Path, step: int | None = None, average: bool = True
) -> tuple[CodecConfig, dict[str, Tensor], int]:
    """Configuration and codec of a run.

    Args:
        folder: of the run.
        step: of the checkpoint; None: the newest.
        average: the moving average of the weights, if the run has one; else the last weights.
    Returns:
        The configuration, the tensors of the codec by name, and the step.
    Raises:
        CheckpointError: no such checkpoint, or it is damaged.
        InvalidInputError: the run is not that of a codec.
    """
    folder = Path(folder)
    config = load_recipe(folder / _RUN_CONFIG)
    check(
        isinstance(config, CodecConfig),
        f"folder must be a run of the codec solver, {folder} is of {config.solver!r}",
    )
    checkpoints = Checkpoints(folder / "checkpoints", Ranks())
    if step is None:
        step = checkpoints.latest()
    if step is None or step not in checkpoints.steps():
        raise CheckpointError(
            f"{folder}: has the checkpoints of the steps {checkpoints.steps()}, asked for {step}"
        )
    path = checkpoints.path(step)
    averaged = average and "ema_model" in read_state(path)["common"]
    prefix = "ema_model." if averaged else "model."
    model = get_compression_model(config.model_config())
    state = model.state_dict()
    read_tensors(path, {prefix + name: tensor for name, tensor in state.items()})
    return config, state, step


def export_codec(
    folder: str | Path,
    output: str | Path,
    format: str = "audiogen_fast",
    step: int | None = None,
    average: bool = True,
) -> Path:
    """Write the codec of a run for use.

    `audiogen_fast` makes a folder with `compression_model.safetensors`, which
    `CompressionModel.get_pretrained` loads; where the folder holds a model that `save_pretrained`
    or this package's export wrote, its codec is replaced. `audiocraft` makes
    `compression_state_dict.bin` in the folder, the file that audiocraft and this package load from
    beside a language model.

    Args:
        folder: of the run.
        output: folder to write to.
        format: one of `FORMATS`.
        step, average: see `read_run`.
    Returns:
        The path of the file with the weights.
    """
    check(format in FORMATS, f"format must be one of {FORMATS}, got {format!r}")
    config, state, step = read_run(folder, step, average)
    return write_codec(config.model_config(), state, output, format)


def write_released(path: Path, state: Mapping[str, Tensor], cfg: Config) -> None:
    """Write tensors and configuration in the layout of the original's released files, straight to
    the disk: a language model would not fit into memory once more."""
    package = {
        "best_state": {name: t.detach().cpu().contiguous() for name, t in state.items()},
        "xp.cfg": to_yaml(cfg),
        "version": __version__,
        "exported": True,
    }
    with written_beside(path) as temporary:
        torch.save(package, temporary)


def write_codec(
    cfg: Config, state: dict[str, Tensor], output: str | Path, format: str = "audiogen_fast"
) -> Path:
    """Write a codec's configuration and tensors; see `export_codec`."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    if format == "audiocraft":
        path = output / "compression_state_dict.bin"
        write_released(path, {_original_name(name): t for name, t in state.items()}, cfg)
        return path
    from safetensors.torch import save

    path = output / OWN_FILES["compression_model"]
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
    config = _folder_config(output / CONFIG_FILE) | {"compression_model": cfg}
    write_atomically(path, save(tensors, {"format": "pt"}))
    content = json.dumps(config, indent=2) + "\n"
    write_atomically(output / CONFIG_FILE, content.encode())
    return path


def _folder_config(path: Path) -> dict[str, Any]:
    """What a folder says already, if it is one of this package's."""
    if not path.exists():
        return {"format": FORMAT, "version": FORMAT_VERSION}
    config = json.loads(path.read_text())
    check(
        config.get("format") == FORMAT,
        f"output must not hold the {path.name} of another program, got {path.parent}",
    )
    return config


def _original_name(name: str) -> str:
    """The name of a tensor in audiocraft, whose normalised weights have older ones."""
    for ours, theirs in _ORIGINAL_NAMES.items():
        if name.endswith(f".{ours}"):
            return name.removesuffix(ours) + theirs
    return name
