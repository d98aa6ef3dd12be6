"""Checkpoints: what a file holds, in whichever layout.

Layouts of pickled files: released and legacy (`best_state` and `xp.cfg`), and training
(`checkpoint.th` with `fsdp_best_state` or `best_state` one level deeper). The package's own format
is a folder of safetensors with one `config.json`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from audiogen_fast.config import Config, parse_config
from audiogen_fast.errors import CheckpointError
from audiogen_fast.models.packed import PackedWeights, read_header, split_packed
from audiogen_fast.models.pickled import check_file, load_pickled

FORMAT = "audiogen_fast"
FORMAT_VERSION = 1
PACKED_VERSION = 2
"""Of folders whose matrices are packed, which readers of version 1 cannot use."""
CONFIG_FILE = "config.json"
OWN_FILES = {"lm": "model.safetensors", "compression_model": "compression_model.safetensors"}
CODEC_FOLDER = "compression_model"
"""Where the own format has a codec in the format of transformers."""

# The header of the medium model has 80 kB.
_MAX_HEADER = 2 << 20
_MAX_JSON = 1 << 20


@dataclass
class Checkpoint:
    """Configuration and tensors of one model."""

    source: Path
    cfg: Config
    state: Mapping[str, Tensor]
    pretrained: str | None = None
    """Name or folder of a codec kept elsewhere; there is no state then."""
    packed: PackedWeights | None = None
    """Matrices of a language model packed for the native engine; the state lacks them then."""
    mapped: bool = False
    """The tensors are views of a file, whose pages may be dropped: they come back when read."""


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a pickled checkpoint of any layout; its tensors are mapped from the file.

    Raises:
        CheckpointError: see `load_pickled`; or neither weights nor a configuration in it.
    """
    path = Path(path)
    if re.search(r"\.th\.\d+$", path.name):
        raise CheckpointError(
            f"{path}: is one part of a training state split over processes; the whole model is in "
            f"the one without a number, {path.stem}"
        )
    package = load_pickled(path)
    if not isinstance(package, dict):
        raise CheckpointError(f"{path}: holds a {type(package).__name__}, expected a dictionary")
    pretrained = package.get("pretrained")
    if isinstance(pretrained, str):
        return Checkpoint(path, Config(), {}, pretrained)
    if package.get("xp.cfg") is None:
        raise CheckpointError(
            f"{path}: has no configuration 'xp.cfg'; its keys are {_keys(package)}"
        )
    cfg = _read_config(path, package["xp.cfg"])
    state = _find_state(path, package)
    _check_stored(path, state)
    return Checkpoint(path, cfg, state, mapped=True)


def _keys(package: Mapping) -> list[str]:
    return sorted(str(key)[:100] for key in package)[:20]


def _read_config(path: Path, source: Any) -> Config:
    try:
        return parse_config(source)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _find_state(path: Path, package: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the best model, wherever the layout keeps them."""
    outer = [package.get(key) for key in ("fsdp_best_state", "best_state")]
    inner = [state.get("model") for state in outer if isinstance(state, dict)]
    for state in (*inner, package.get("best_state"), package.get("model")):
        if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
            continue
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise CheckpointError(f"{path}: {str(name)[:100]!r} is not the name of a tensor")
        return state
    raise CheckpointError(f"{path}: holds no weights; its keys are {_keys(package)}")


def _check_stored(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that claim more than is stored: steps of zero repeat a number for free."""
    total, size = 0, path.stat().st_size
    for name, tensor in state.items():
        claimed = tensor.numel() * tensor.element_size()
        stored = tensor.untyped_storage().nbytes()
        if claimed > stored:
            raise CheckpointError(f"{path}: {name} claims {claimed} bytes, {stored} are stored")
        total += claimed
    if total > 2 * size:  # tied tensors, which share what is stored, come in pairs
        raise CheckpointError(f"{path}: its tensors claim {total} bytes, the file has {size}")


def read_json(path: Path) -> dict[str, Any]:
    """The dictionary in a small JSON file; raises `CheckpointError` for anything else."""
    size = check_file(path)
    if size > _MAX_JSON:
        raise CheckpointError(f"{path}: has {size} bytes, the limit is {_MAX_JSON}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a dictionary")
    return content


def read_own_format(folder: str | Path, part: str) -> Checkpoint:
    """Read `part` (`lm` or `compression_model`) of a folder written by `save_pretrained`."""
    folder = Path(folder)
    path = folder / CONFIG_FILE
    config = read_json(path)
    if config.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a configuration of {FORMAT}")
    packed = config.get("packed")
    if config.get("version") != (FORMAT_VERSION if packed is None else PACKED_VERSION):
        raise CheckpointError(
            f"{path}: version {config.get('version')} of the format; this package reads "
            f"{FORMAT_VERSION}, and {PACKED_VERSION} with packed weights"
        )
    if part not in config:
        raise CheckpointError(f"{path}: has no part {part!r}")
    cfg = _read_config(path, config[part])
    if cfg.get("pretrained") == CODEC_FOLDER:
        return Checkpoint(path, Config(), {}, str(folder / CODEC_FOLDER))
    file = folder / OWN_FILES[part]
    state = read_safetensors(file)
    if part != "lm" or packed is None:
        return Checkpoint(file, cfg, state, mapped=True)
    header = read_header(path, packed if isinstance(packed, dict) else {})
    ordinary, matrices = split_packed(state)
    return Checkpoint(file, cfg, ordinary, packed=PackedWeights(*header, matrices), mapped=True)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped from it.

    Raises:
        CheckpointError: missing, truncated, or with a header that is wrong or too large.
    """
    from safetensors import safe_open

    size = check_file(path)
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > min(_MAX_HEADER, size - 8):
        raise CheckpointError(
            f"{path}: truncated or damaged: its header claims {header} bytes, the file has {size} "
            f"and the limit is {_MAX_HEADER}"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except MemoryError:
        raise
    except Exception as error:  # an error class of its own, and what torch raises
        raise CheckpointError(f"{path}: {error}") from error
