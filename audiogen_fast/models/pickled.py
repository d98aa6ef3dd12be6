"""Reading `torch.save` files that nobody has to trust.

Three guards, all before any tensor is touched: the archive's directory must fit the file, the
pickle may name only what checkpoints of this family contain, and torch loads it with
`weights_only=True`, memory-mapped, so that tensors are views of the file.
"""

import os
import pickletools
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import torch

from audiogen_fast.errors import CheckpointError

# The pickle of a model is about 200 bytes a tensor; of a training state with its optimiser a few
# times that.
_MAX_PICKLE = 64 << 20
_MAX_ENTRIES = 1_000_000


class _Inert:
    """Stands in for a configuration class: keeps its state, runs nothing of it."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


_NODES = (
    "AnyNode",
    "BooleanNode",
    "BytesNode",
    "EnumNode",
    "FloatNode",
    "IntegerNode",
    "InterpolationResultNode",
    "PathNode",
    "StringNode",
    "ValueNode",
)
# One class each, because the loader looks an allowed name up by its class.
_STAND_INS = {
    name: type(name.rsplit(".", 1)[1], (_Inert,), {})
    for name in (
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        *(f"omegaconf.nodes.{node}" for node in _NODES),
        "typing.Any",
    )
}
_ALLOWED = {
    "builtins.bool": bool,
    "builtins.dict": dict,
    "builtins.float": float,
    "builtins.int": int,
    "builtins.list": list,
    "builtins.long": int,
    "builtins.str": str,
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": defaultdict,
    **_STAND_INS,
}
# What torch itself writes for tensors; it checks their arguments.
_TENSOR_GLOBALS = frozenset(
    (
        "torch.Size",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        "torch.device",
        *(f"torch.{name}Storage" for name in ("BFloat16", "Bool", "Byte", "Char", "Double")),
        *(f"torch.{name}Storage" for name in ("Float", "Half", "Int", "Long", "Short")),
        *(f"torch.{name}" for name in ("bfloat16", "float16", "float32", "float64", "int64")),
    )
)
_OPCODES_WITHOUT_NAMES = frozenset(("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"))


def load_pickled(path: Path) -> Any:
    """The object saved in `path`, its tensors mapped from the file, configurations as plain data.

    Raises:
        CheckpointError: missing, truncated, not an archive of torch, or naming anything that a
            checkpoint has no business to name.
    """
    _check_archive(path)
    try:
        allowed = [(value, name) for name, value in _ALLOWED.items()]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged pickle makes the loader trip over
        raise CheckpointError(f"{path}: cannot be loaded: {_first_line(error)}") from error
    return _plain(loaded)


def _check_archive(path: Path) -> None:
    size = check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > _MAX_ENTRIES:
                raise CheckpointError(f"{path}: {len(entries)} entries are not believable")
            names = [entry.filename for entry in entries]
            if len(set(names)) != len(names):
                raise CheckpointError(f"{path}: the archive holds an entry twice")
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    raise CheckpointError(f"{path}: entry {entry.filename!r} is compressed")
                if entry.header_offset + entry.file_size > size:
                    raise CheckpointError(
                        f"{path}: truncated: entry {entry.filename!r} ends past the file's "
                        f"{size} bytes"
                    )
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(f"{path}: not a checkpoint written by torch.save")
            if pickles[0].file_size > _MAX_PICKLE:
                raise CheckpointError(
                    f"{path}: its pickle has {pickles[0].file_size} bytes, the limit is "
                    f"{_MAX_PICKLE}"
                )
            _check_names(path, archive.read(pickles[0]))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: truncated or not a torch.save archive ({_first_line(error)}). Files of torch "
            "before 1.6 must be saved again with a newer torch."
        ) from error


def _check_names(path: Path, pickle: bytes) -> None:
    """Refuse a pickle that names a class or function outside the allowed ones."""
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name in _OPCODES_WITHOUT_NAMES:
                raise CheckpointError(f"{path}: its pickle uses the opcode {opcode.name}")
            if opcode.name != "GLOBAL":
                continue
            name = argument.replace(" ", ".").replace("__builtin__.", "builtins.")
            if name not in _ALLOWED and name not in _TENSOR_GLOBALS:
                raise CheckpointError(f"{path}: refused: its pickle names {name!r}")
    except CheckpointError:
        raise
    except Exception as error:  # pickletools raises whatever damaged opcodes lead it to
        raise CheckpointError(f"{path}: damaged pickle: {_first_line(error)}") from error


def check_file(path: Path) -> int:
    """Size of a regular, non-empty file; raises `CheckpointError` for anything else."""
    if not path.is_file():
        kind = "is not a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path}: {kind}")
    size = os.path.getsize(path)
    if size == 0:
        raise CheckpointError(f"{path}: is empty")
    return size


def _plain(value: Any) -> Any:
    """Configuration objects as dictionaries, lists and values; everything else as it is."""
    if isinstance(value, _Inert):
        state = value.__dict__.get("state") or {}
        if "_val" in state:
            return state["_val"]
        return _plain(state.get("_content"))
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no details'}"
