"""Checkpoints: what a file holds, and how it gets into a model without a copy too many.

Layouts of pickled files: released and legacy (`best_state` and `xp.cfg`), and training
(`checkpoint.th` with `fsdp_best_state` or `best_state` one level deeper). The package's own format
is a folder of safetensors with one `config.json`.
"""

import ctypes
import json
import mmap
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiogen_fast.config import Config, parse_config
from audiogen_fast.errors import CheckpointError
from audiogen_fast.models.pickled import check_file, load_pickled
from audiogen_fast.modules.conv import fold_weight_norm

FORMAT = "audiogen_fast"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
_MADV_DONTNEED = 4


@dataclass
class Checkpoint:
    """Configuration and tensors of one model; `pretrained` names a codec kept elsewhere."""

    source: Path
    cfg: Config
    state: Mapping[str, Tensor]
    pretrained: str | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a pickled checkpoint of any layout; its tensors are mapped from the file.

    Raises:
        CheckpointError: see `load_pickled`; or neither weights nor a configuration in it.
    """
    path = Path(path)
    package = load_pickled(path)
    if not isinstance(package, dict):
        raise CheckpointError(f"{path}: holds a {type(package).__name__}, expected a dictionary")
    cfg = package.get("xp.cfg")
    if cfg is None:
        raise CheckpointError(
            f"{path}: has no configuration 'xp.cfg'; its keys are {sorted(map(str, package))}"
        )
    try:
        cfg = parse_config(cfg)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    pretrained = package.get("pretrained")
    if isinstance(pretrained, str):
        return Checkpoint(path, cfg, {}, pretrained)
    return Checkpoint(path, cfg, _find_state(path, package))


def _find_state(path: Path, package: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of the best model, wherever the layout keeps them."""
    candidates = [
        (package.get("fsdp_best_state") or {}).get("model"),
        (package.get("best_state") or {}).get("model"),
        package.get("best_state"),
        package.get("model"),
    ]
    for state in candidates:
        if not isinstance(state, dict) or not state:
            continue
        wrong = [name for name, value in state.items() if not isinstance(value, Tensor)]
        if wrong:
            raise CheckpointError(f"{path}: {wrong[0]!r} is not a tensor")
        return state
    raise CheckpointError(f"{path}: holds no weights; its keys are {sorted(map(str, package))}")


def read_own_format(folder: str | Path, part: str) -> Checkpoint:
    """Read `part` (`lm` or `compression_model`) of a folder written by `save_pretrained`."""
    folder = Path(folder)
    path = folder / CONFIG_FILE
    check_file(path)
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a configuration of {FORMAT}")
    if config.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: version {config.get('version')} of the format; this package reads "
            f"{FORMAT_VERSION}"
        )
    if part not in config:
        raise CheckpointError(f"{path}: has no part {part!r}")
    pretrained = config.get(f"{part}_pretrained")
    if isinstance(pretrained, str):
        return Checkpoint(folder, parse_config(config[part]), {}, pretrained)
    file = folder / OWN_FILES[part]
    return Checkpoint(file, parse_config(config[part]), read_safetensors(file))


OWN_FILES = {"lm": "model.safetensors", "compression_model": "compression_model.safetensors"}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped from it."""
    from safetensors import SafetensorError, safe_open

    size = check_file(path)
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if size < 8 or header > size - 8:
        raise CheckpointError(
            f"{path}: truncated: its header claims {header} bytes, the file has {size}"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_state(
    model: nn.Module,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give a model built on the meta device the checkpoint's tensors.

    Tensors that already have the wanted dtype and device stay mapped from the file; others are
    converted one by one, and the pages read for them are handed back, so the peak is the result
    and one tensor.

    Raises:
        CheckpointError: listing every missing, unexpected and misshapen tensor.
    """
    state = _canonical(checkpoint.state)
    wanted = dict(model.state_dict(keep_vars=True))
    _compare(checkpoint.source, wanted, state)
    for name, target in wanted.items():
        source = state[name]
        tensor = source.to(device=device, dtype=dtype if source.is_floating_point() else None)
        if tensor is not source:
            _release_pages(source)
        _assign(model, name, target, tensor)


def load_codec_state(model: nn.Module, checkpoint: Checkpoint, device: torch.device) -> None:
    """`load_state` in float32, with the weight norm folded into plain weights."""
    load_state(model, checkpoint, device, torch.float32)
    fold_weight_norm(model.eval())  # in training mode a spectral norm would refine its estimate


# Older names of normalised convolution weights -> those of torch's parametrizations.
_WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
_SPECTRAL_NORM = {
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
}


def _canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensor names as this package's modules spell them."""
    renamed = {}
    for name, tensor in state.items():
        if ".rope." in f".{name}":
            continue  # tables of rotary positions are computed, not loaded
        prefix, _, leaf = name.rpartition(".")
        spectral = f"{prefix}.weight_orig" in state
        leaf = (_SPECTRAL_NORM if spectral else _WEIGHT_NORM).get(leaf, leaf)
        name = f"{prefix}.{leaf}".replace("_fsdp_wrapped_module.", "").replace(".mha.", ".")
        renamed[name.removeprefix(".")] = tensor
    return renamed


def _compare(source: Path, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    problems = [f"missing: {name} {tuple(wanted[name].shape)}" for name in wanted.keys() - state]
    problems += [f"unexpected: {name} {tuple(state[name].shape)}" for name in state.keys() - wanted]
    problems += [
        f"wrong shape: {name} is {tuple(state[name].shape)}, "
        f"the configuration says {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        listing = "\n  ".join(sorted(problems))
        raise CheckpointError(
            f"{source}: does not fit its configuration, {len(problems)} problems:\n  {listing}"
        )


def _assign(model: nn.Module, name: str, target: Tensor, tensor: Tensor) -> None:
    *path, leaf = name.split(".")
    owner = model.get_submodule(".".join(path))
    if isinstance(target, nn.Parameter):
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=target.requires_grad)
    else:
        owner._buffers[leaf] = tensor


def _release_pages(tensor: Tensor) -> None:
    """Let the kernel drop the file pages behind a mapped tensor that has been copied."""
    if not sys.platform.startswith("linux"):
        return
    start = tensor.data_ptr()
    end = start + tensor.numel() * tensor.element_size()
    start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = end // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
