"""Manifests: which recordings there are, how long, how likely drawn, and what is said of them.

Read unchanged are the original's `data.jsonl` and `data.jsonl.gz` (one JSON object per line, with
`path`, `duration`, `sample_rate`, `amplitude`, `weight`, `info_path`) and CSV files with a header
(`path`, `duration`, `caption` or `description`, anything more). Other keys or columns become
attributes of the recording.
"""

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from audiogen_fast.errors import DataError, InvalidInputError, check
from audiogen_fast.files import write_atomically

NAMES = ("data.jsonl", "data.jsonl.gz", "manifest.csv")
"""Looked for in a folder, in this order."""
_STANDARD = ("path", "duration", "sample_rate", "amplitude", "weight", "info_path")
_NUMBERS = ("duration", "sample_rate", "amplitude", "weight")


@dataclass(frozen=True)
class AudioMeta:
    """One recording."""

    path: str
    """Where it is; `archive.tar:member` or `archive.zip:member` in an archive."""
    duration: float
    """Seconds."""
    id: str
    """Its name on every machine: the path as the manifest has it, or the manifest's `id`."""
    sample_rate: int | None = None
    """In Hz; what the file itself says counts."""
    amplitude: float | None = None
    weight: float | None = None
    """How much likelier than 1 it is drawn, where sampling by weight is on."""
    info_path: str | None = None
    """`archive.zip:member` with its JSON, instead of the file beside the recording."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys, such as `description`."""


class Manifest:
    """The rows of a manifest, kept as compact JSON: a million take some 200 MB, and copies for
    worker processes are quick to make.

    Args:
        rows: checked rows, see `read_manifest`.
        root: folder that relative paths are relative to.
        source: its name in messages.
    Attributes:
        durations: float64 `[n]`, seconds.
        weights: float64 `[n]`, 1 where the manifest has none.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], root: str | Path = ".", source: str = ""):
        self.root, self.source = Path(root), source
        lines, offsets, durations, weights = [], [0], [], []
        for row in rows:
            line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
            lines.append(line)
            offsets.append(offsets[-1] + len(line))
            durations.append(row["duration"])
            weights.append(1.0 if row.get("weight") is None else row["weight"])
        self._text = np.frombuffer(b"".join(lines), np.uint8)
        self._offsets = np.array(offsets, np.int64)
        self.durations = np.array(durations, np.float64)
        self.weights = np.array(weights, np.float64)

    def __len__(self) -> int:
        return len(self.durations)

    def row(self, index: int) -> dict[str, Any]:
        """A row as it was read."""
        start, stop = self._offsets[index : index + 2]
        return json.loads(self._text[start:stop].tobytes())

    def __getitem__(self, index: int) -> AudioMeta:
        row = self.row(index)
        named = {key: row[key] for key in _STANDARD[1:] if row.get(key) is not None}
        if "info_path" in named:
            named["info_path"] = self._resolved(named["info_path"])
        extra = {k: v for k, v in row.items() if k not in _STANDARD and k != "id"}
        return AudioMeta(
            path=self._resolved(row["path"]),
            id=str(row.get("id") or row["path"]),
            extra=extra,
            **named,
        )

    def __iter__(self) -> Iterator[AudioMeta]:
        return (self[index] for index in range(len(self)))

    def select(self, indices: Iterable[int]) -> "Manifest":
        """Some of the rows, in the order given."""
        return Manifest((self.row(int(i)) for i in indices), self.root, self.source)

    def _resolved(self, path: str) -> str:
        return str(self.root / path)  # an absolute path stays


def read_manifest(
    path: str | Path, root: str | Path | None = None, where: Mapping[str, str] | None = None
) -> Manifest:
    """Read a manifest of any kind.

    Args:
        path: `.jsonl`, `.jsonl.gz`, `.csv`, or a folder with one of `NAMES`.
        root: folder that relative paths are relative to. None: the manifest's own folder or the
            working folder, whichever has the first recording (the original's manifests mean the
            latter).
        where: keep only rows with these values, such as `{"split": "train"}`.

    Raises:
        InvalidInputError: no manifest there; a line that is not valid (the message has its
            number); nothing in it, or nothing left of it.
        DataError: it cannot be decompressed or decoded.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in NAMES if (path / name).is_file()]
        check(bool(found), f"manifest: {path} holds none of {', '.join(NAMES)}")
        path = found[0]
    check(path.is_file(), f"manifest: no such file: {path}")
    rows = _csv_rows if path.name.lower().endswith(".csv") else _json_rows
    try:
        kept = [row for row in rows(path) if _matches(row, where or {})]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"manifest {path}: cannot be read: {error}") from error
    condition = f" with {dict(where)}" if where else ""
    check(bool(kept), f"manifest {path} must have at least one recording{condition}, got none")
    return Manifest(kept, _root(path, root, kept[0]["path"]), str(path))


def _root(manifest: Path, root: str | Path | None, first: str) -> Path:
    if root is not None:
        return Path(root)
    folder = manifest.resolve().parent
    first = first.split(":")[0]
    if not (folder / first).exists() and Path(first).exists():
        return Path.cwd()
    return folder


def _matches(row: Mapping[str, Any], where: Mapping[str, str]) -> bool:
    return all(str(row.get(key)) == str(value) for key, value in where.items())


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InvalidInputError(f"{where}: must be a JSON object ({error})") from error
            check(isinstance(row, dict), f"{where}: must be a JSON object, got {line.strip()[:80]}")
            yield _checked(row, where)


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey=None)
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            check(None not in cells, f"{where}: must have {len(reader.fieldnames)} cells, has more")
            row: dict[str, Any] = {name: cell for name, cell in cells.items() if cell}
            for name in _NUMBERS:
                if name in row:
                    row[name] = _parsed(row[name], name, where)
            yield _checked(row, where)


def _parsed(cell: str, name: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise InvalidInputError(f"{where}: {name} must be a number, got {cell!r}") from None


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    path = row.get("path")
    check(isinstance(path, str) and path != "", f"{where}: path must be a text, got {path!r}")
    check("duration" in row, f"{where}: duration is missing (`audiogen-fast manifest` measures it)")
    for name in _NUMBERS:
        value = row.get(name)
        if value is None and name != "duration":
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        check(
            number and math.isfinite(value) and value >= 0,
            f"{where}: {name} must be a finite number, at least 0, got {value!r}",
        )
    if row.get("sample_rate") is not None:
        row["sample_rate"] = int(row["sample_rate"])
    info = row.get("info_path")
    check(
        info is None or (isinstance(info, str) and info.count(":") == 1),
        f"{where}: info_path must be 'archive.zip:member', with one colon, got {info!r}",
    )
    return row


def conditions(texts: Iterable[str], option: str = "--where") -> dict[str, str]:
    """What a command line says with `COLUMN=VALUE`, as the `where` of `read_manifest`.

    Raises:
        InvalidInputError: one of them is something else; the message names the option.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        check(bool(name and equals), f"{option} must be COLUMN=VALUE, got {text!r}")
        found[name] = value
    return found


def write_manifest(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows to `.jsonl`, `.jsonl.gz` or `.csv`, whole or not at all.

    Raises:
        InvalidInputError: another suffix.
    """
    path, rows = Path(path), list(rows)
    name = path.name.lower()
    check(
        name.endswith((".jsonl", ".jsonl.gz", ".csv")),
        f"manifest must end in .jsonl, .jsonl.gz or .csv, got {path}",
    )
    if name.endswith(".csv"):
        buffer = io.StringIO()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(buffer, columns)
        writer.writeheader()
        writer.writerows(rows)
        content = buffer.getvalue().encode("utf-8")
    else:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        if name.endswith(".gz"):
            content = gzip.compress(content, mtime=0)  # the same rows give the same file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
