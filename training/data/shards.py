"""The files of a cache: shards that appear whole, and an index that says what each must hold.

`index.json` is written after each shard, so what it lists is complete, and an interruption costs
the shard that was being made. It has the SHA-256 of each shard and of itself.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from audiogen_fast.errors import DataError, check
from audiogen_fast.files import write_atomically

FORMAT = "audiogen_fast tokens"
VERSION = 1
INDEX = "index.json"


@dataclass(frozen=True)
class Shard:
    """One file."""

    name: str
    sha256: str
    items: int
    texts: int


@dataclass
class Index:
    """What a cache holds and how it was made."""

    settings: dict[str, Any]
    """Everything that decides the contents."""
    shards: list[Shard] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """`path`, `reason` and `silent` of what could not be encoded."""
    position: int = 0
    """How many samples of the plan are done, those skipped included."""
    total: int = 0
    """Samples of the plan."""

    @property
    def complete(self) -> bool:
        return self.position == self.total

    def write(self, folder: Path) -> None:
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        text = json.dumps({"sha256": _digest(content), "index": content}, indent=1)
        write_atomically(folder / INDEX, text.encode(), sync=True)


def is_cache(folder: str | Path) -> bool:
    """Whether a folder is a cache, damaged or not, rather than one with a manifest."""
    return Path(folder, INDEX).is_file()


def read_index(folder: str | Path) -> Index:
    """The index of a cache.

    Raises:
        InvalidInputError: no cache there.
        DataError: the index is damaged, or of another version.
    """
    path = Path(folder, INDEX)
    check(is_cache(folder), f"cache: {folder} has no {INDEX}; `audiogen-fast encode` makes one")
    try:
        stored = json.loads(path.read_bytes())
        content = stored["index"]
        if stored["sha256"] != _digest(content):
            raise ValueError("its contents do not have its SHA-256")
        found = (content.pop("format"), content.pop("version"))
        if found != (FORMAT, VERSION):
            raise ValueError(f"its format is {found}, not {(FORMAT, VERSION)}")
        shards = [Shard(**shard) for shard in content.pop("shards")]
        return Index(shards=shards, **content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: is damaged: {error}") from error


def write_shard(folder: Path, number: int, arrays: dict[str, np.ndarray]) -> Shard:
    """Write one shard; `arrays` has `item_offsets` and `text_offsets`, each one longer than what
    it counts."""
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    name = f"shard-{number:05d}.safetensors"
    write_atomically(folder / name, content, sync=True)
    return Shard(
        name,
        hashlib.sha256(content).hexdigest(),
        len(arrays["item_offsets"]) - 1,
        len(arrays["text_offsets"]) - 1,
    )


def check_shard(folder: Path, shard: Shard) -> None:
    """Raises `DataError` unless the file is there, with the contents it was written with."""
    path = folder / shard.name
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if found != shard.sha256:
        raise DataError(f"{path}: is damaged: its SHA-256 is {found}, not {shard.sha256}")


def pack(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as UTF-8 bytes, uint8 `[bytes]`, and where each begins, int64 `[n + 1]`."""
    encoded = [text.encode("utf-8") for text in texts]
    offsets = np.cumsum([0, *(len(text) for text in encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
