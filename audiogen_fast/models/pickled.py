"""Reading `torch.save` files that nobody has to trust.

Three guards, all before any tensor is touched: the archive's directory must fit the file, the
pickle may name only what checkpoints of this family contain, and torch loads it with
`weights_only=True`, memory-mapped, so that tensors are views of the file.
"""

import os
import pickletools
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from audiogen_fast.config import PickledNode
from audiogen_fast.errors import CheckpointError

# A tensor takes about 80 bytes of directory, 200 bytes of pickle and 30 opcodes; a training state
# of the medium model with averages, optimiser and a long history has some 4000 of them.
_MAX_DIRECTORY = 4 << 20
_MAX_PICKLE = 8 << 20
_MAX_OPCODES = 500_000
_MAX_NESTED_TUPLES = 16


def _empty_dict(*args: Any) -> dict:
    return {}  # the loader fills plain dictionaries, but not a defaultdict


def _stand_ins(module: str, names: Iterable[str]) -> dict[str, Any]:
    """One class per name, because the loader looks an allowed name up by its class."""
    return {f"{module}.{name}": type(name, (PickledNode,), {}) for name in names}


# What training states hold beside tensors: none of it is needed, so all of it becomes husks. Real
# types would be a danger here: `str` of a nested list can be longer than any memory.
_ALLOWED = {
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": _empty_dict,
    **_stand_ins("builtins", ["bool", "dict", "float", "int", "list", "str", "tuple"]),
    **_stand_ins("omegaconf.base", ["ContainerMetadata", "Metadata"]),
    **_stand_ins("omegaconf.dictconfig", ["DictConfig"]),
    **_stand_ins("omegaconf.listconfig", ["ListConfig"]),
    **_stand_ins(
        "omegaconf.nodes",
        [
            "AnyNode",
            "BooleanNode",
            "BytesNode",
            "FloatNode",
            "IntegerNode",
            "InterpolationResultNode",
            "StringNode",
            "ValueNode",
        ],
    ),
    **_stand_ins("typing", ["Any", "Dict", "List", "Tuple", "Union"]),
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
# Protocol 2, torch's, has the names of Python 2; the loader translates them the same way.
_RENAMED = {"__builtin__.long": "builtins.int", "__builtin__.unicode": "builtins.str"}
# The list of allowed names is one for the whole process.
_LOAD = threading.Lock()


def load_pickled(path: Path) -> Any:
    """The object saved in `path`, its tensors mapped from the file, configurations as husks.

    Raises:
        CheckpointError: missing, truncated, not an archive of torch, or naming anything that a
            checkpoint has no business to name.
    """
    _check_pickle(path, _read_pickle(path))
    allowed = [(value, name) for name, value in _ALLOWED.items()]
    try:
        with _LOAD, torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged pickle makes the loader trip over
        raise CheckpointError(f"{path}: cannot be loaded: {_first_line(error)}") from error


def check_file(path: Path) -> int:
    """Size of a regular, non-empty, readable file; raises `CheckpointError` for anything else."""
    if not path.is_file():
        kind = "is not a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path}: {kind}")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if size == 0:
        raise CheckpointError(f"{path}: is empty")
    return size


def _read_pickle(path: Path) -> bytes:
    """The pickle in an archive whose directory is sound."""
    size = check_file(path)
    try:
        with open(path, "rb") as file:
            _check_directory_size(path, file, size)
            with zipfile.ZipFile(file) as archive:
                return archive.read(_find_pickle(path, archive))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise CheckpointError(
            f"{path}: truncated or not a torch.save archive ({_first_line(error)}). Files of torch "
            "before 1.6 must be saved again with a newer torch."
        ) from error


def _check_directory_size(path: Path, file: Any, size: int) -> None:
    """The directory is read as a whole, so its size is looked up first, at the end of the file.

    torch writes no comment, which is what lets archives end in another way than in this record:
    https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, sections 4.3.14 to 4.3.16.
    """
    file.seek(max(0, size - 98))
    end = file.read()
    if end[-22:-18] != b"PK\x05\x06":
        raise zipfile.BadZipFile("no directory at its end")
    directory = int.from_bytes(end[-10:-6], "little")
    if end[-42:-38] == b"PK\x06\x07" and end[:4] == b"PK\x06\x06":
        directory = max(int.from_bytes(end[40:48], "little"), directory % 0xFFFFFFFF)
    if directory > min(size, _MAX_DIRECTORY):
        raise CheckpointError(
            f"{path}: its directory claims {directory} bytes, the limit is "
            f"{min(size, _MAX_DIRECTORY)}"
        )


def _find_pickle(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The entry of the pickle, once every entry is plain, single and inside the file."""
    entries = archive.infolist()
    # torch ignores case where it looks an entry up.
    names = [entry.filename.lower() for entry in entries]
    if len(set(names)) != len(names):
        raise CheckpointError(f"{path}: the archive holds an entry twice")
    if min((entry.header_offset for entry in entries), default=0) != 0:
        raise CheckpointError(f"{path}: something lies before the archive")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise CheckpointError(f"{path}: entry {entry.filename!r} is compressed or encrypted")
        if entry.header_offset + entry.file_size > archive.start_dir:
            raise CheckpointError(
                f"{path}: truncated: entry {entry.filename!r} ends past byte {archive.start_dir}"
            )
    pickles = [entry for entry in entries if entry.filename.lower().endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path}: not a checkpoint written by torch.save")
    if pickles[0].file_size > _MAX_PICKLE:
        raise CheckpointError(
            f"{path}: its pickle has {pickles[0].file_size} bytes, the limit is {_MAX_PICKLE}"
        )
    return pickles[0]


def _check_pickle(path: Path, pickle: bytes) -> None:
    """Refuse what names more than the allowed, has no end, or is a trap for hashing.

    Nested tuples are the trap: hashing one, as a key, goes through all it holds as often as it
    holds it. So their nesting is followed on a stack like the unpickler's.
    """
    stack: list[int] = []  # of each value, how many tuples it nests
    marks: list[int] = []
    memo: dict[int, int] = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
            if count > _MAX_OPCODES:
                raise CheckpointError(f"{path}: its pickle has more than {_MAX_OPCODES} opcodes")
            if opcode.name == "PROTO" and argument != 2:
                raise CheckpointError(f"{path}: its pickle has protocol {argument}, torch writes 2")
            if opcode.name == "GLOBAL":
                _check_name(path, argument)
            if opcode.name == "MARK":
                marks.append(len(stack))
                continue
            if opcode.name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
                continue
            nested = _take(opcode.stack_before, stack, marks)
            if opcode.name.startswith("TUPLE"):
                nested += 1
            elif opcode.name in ("BINGET", "LONG_BINGET"):
                nested = memo[argument]
            elif opcode.name not in ("BUILD", "NEWOBJ", "REDUCE"):
                nested = 0
            if nested > _MAX_NESTED_TUPLES:
                raise CheckpointError(f"{path}: its pickle nests tuples {nested} deep")
            stack += [nested] * len(opcode.stack_after)
    except CheckpointError:
        raise
    except Exception as error:  # pickletools raises whatever damaged opcodes lead it to
        raise CheckpointError(f"{path}: damaged pickle: {_first_line(error)}") from error


def _take(before: list, stack: list[int], marks: list[int]) -> int:
    """Take what an opcode consumes off the stack; the deepest nesting in it."""
    if pickletools.markobject in before:
        start = marks.pop() - before.index(pickletools.markobject)
    else:
        start = len(stack) - len(before)
    if start < 0:
        raise ValueError("it takes more values than there are")
    nested = max(stack[start:], default=0)
    del stack[start:]
    return nested


def _check_name(path: Path, argument: str) -> None:
    name = argument.replace(" ", ".")
    name = _RENAMED.get(name, name.replace("__builtin__.", "builtins."))
    if name not in _ALLOWED and name not in _TENSOR_GLOBALS:
        raise CheckpointError(
            f"{path}: refused: its pickle names {name!r}, which no model needs. If you trust the "
            "file, load it where it was made and save a dictionary with only its 'best_state' and "
            "the YAML text of its 'xp.cfg', as audiocraft.utils.export does."
        )


def _first_line(error: BaseException) -> str:
    # Before this come torch's words on how to load the file without its guard.
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no details'}"
