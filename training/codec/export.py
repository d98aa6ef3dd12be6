"""A trained codec as the files that `AudioGen.get_pretrained` and audiocraft load."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen_fast import __version__
from audiogen_fast.config import Config, to_yaml
from audiogen_fast.errors import check
from audiogen_fast.files import write_atomically, written_beside
from audiogen_fast.models.builders import get_compression_model
from audiogen_fast.models.checkpoint import CONFIG_FILE, FORMAT, FORMAT_VERSION, OWN_FILES
from audiogen_fast.training.checkpoint import read_tensors
from audiogen_fast.training.codec.config import CodecConfig
from audiogen_fast.training.runs import Chosen, Exported, choose, run_config

FORMATS = ("audiogen_fast", "audiocraft")
_ORIGINAL_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
    "parametrizations.weight.original": "weight_orig",
    "parametrizations.weight.0._u": "weight_u",
    "parametrizations.weight.0._v": "weight_v",
}


def read_run(
    folder: str | Path, step: int | str | None = None, weights: str = "ema"
) -> tuple[CodecConfig, dict[str, Tensor], Chosen]:
    """Configuration and codec of a run.

    Args:
        folder: of the run.
        step, weights: see `runs.choose`.
    Returns:
        The configuration, the tensors of the codec by name, and where they are from.
    Raises:
        CheckpointError: no such checkpoint, or it is damaged.
        InvalidInputError: the run is not that of a codec.
    """
    config = run_config(folder)
    check(
        isinstance(config, CodecConfig),
        f"run must be one of the codec solver, {folder} is of {config.solver!r}",
    )
    chosen = choose(folder, config, step, weights)
    state = get_compression_model(config.model_config()).state_dict()
    tensors = {}
    for name, tensor in state.items():
        # What is frozen has no average of its own.
        frozen = name.split(".")[0] == config.frozen
        tensors[("model." if frozen else chosen.prefix) + name] = tensor
    read_tensors(chosen.path, tensors)
    return config, state, chosen


def export_codec(
    folder: str | Path,
    output: str | Path,
    format: str = "audiogen_fast",
    step: int | str | None = None,
    weights: str = "ema",
) -> Exported:
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
        step, weights: see `runs.choose`.
    """
    check(format in FORMATS, f"format must be one of {FORMATS}, got {format!r}")
    config, state, chosen = read_run(folder, step, weights)
    path = write_codec(config.model_config(), state, output, format)
    return Exported(path.parent, chosen.step, chosen.weights)


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
