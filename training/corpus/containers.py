"""Readers of the containers that Debian's game packages keep their sounds in."""

import io
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audiogen_fast.errors import DataError

AUDIO = (".ogg", ".oga", ".wav", ".mp3", ".flac")
_ZIPPED = (".pk3", "/public.zip")
_WANTED = (*AUDIO, *_ZIPPED, "/copyright", ".rcc", "opensfx.cat", "sound.ocg")
_C4_HEADER, _C4_ENTRY = 204, 316
_QT_NODE = 14
_QT_ZLIB, _QT_FOLDER, _QT_ZSTD = 1, 2, 4


@dataclass(frozen=True)
class Member:
    """One sound of a package, or its copyright file."""

    name: str
    content: bytes
    note: str = ""
    """What the container says of it: title, author and licence."""


def members(package: Path) -> Iterator[Member]:
    """The sounds of a `.deb`, those inside containers included, and its copyright file.

    Raises:
        DataError: it cannot be unpacked.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                for entry in tar:
                    name = entry.name.removeprefix("./")
                    if entry.isfile() and _wanted(name):
                        yield from _unpack(name, tar.extractfile(entry).read())
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error) as error:
            raise DataError(f"{package}: cannot be unpacked: {error}") from error
    if process.returncode != 0:
        raise DataError(f"{package}: dpkg-deb ended with status {process.returncode}")


def _wanted(name: str) -> bool:
    return name.lower().endswith(_WANTED)


def _unpack(name: str, content: bytes) -> Iterator[Member]:
    lowered = name.lower()
    if lowered.endswith(_ZIPPED):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for inner in archive.namelist():
                if inner.lower().endswith(AUDIO):
                    yield Member(inner, archive.read(inner))
    elif lowered.endswith(".rcc"):
        for inner, sound in read_qt_resources(content).items():
            if inner.lower().endswith(AUDIO):
                yield Member(inner, sound)
    elif lowered.endswith("opensfx.cat"):
        yield from read_openttd(content)
    elif lowered.endswith("sound.ocg"):
        for inner, sound in read_c4group(content).items():
            if inner.lower().endswith(AUDIO):
                yield Member("Sound.ocg!" + inner.replace(".ocg", ""), sound)
    else:
        yield Member(name, content)


def read_openttd(content: bytes) -> Iterator[Member]:
    """The sounds of an OpenTTD `.cat`: a table of (offset, size), at each offset a title with its
    length before it, and the wav."""
    count = (struct.unpack_from("<I", content)[0] & 0x7FFFFFFF) // 8
    for number in range(count):
        offset, size = struct.unpack_from("<II", content, 8 * number)
        offset &= 0x7FFFFFFF
        start = offset + 1 + content[offset]
        title = content[offset + 1 : start].rstrip(b"\0").decode("utf-8", "replace")
        yield Member(f"{number:02d}.wav", content[start : start + size], title)


def read_c4group(content: bytes) -> dict[str, bytes]:
    """The files of an OpenClonk group: gzip with a magic number of its own, a scrambled header,
    then a table of entries, some of them groups themselves."""
    if content[:2] == b"\x1e\x8c":
        content = b"\x1f\x8b" + content[2:]
    if content[:2] == b"\x1f\x8b":
        content = zlib.decompressobj(31).decompress(content)
    header = bytearray(byte ^ 237 for byte in content[:_C4_HEADER])
    for place in range(0, _C4_HEADER - 2, 3):
        header[place], header[place + 2] = header[place + 2], header[place]
    if not header.startswith(b"RedWolf Design"):
        raise DataError("a group of OpenClonk lacks its header")
    (count,) = struct.unpack_from("<i", header, 36)
    base = _C4_HEADER + _C4_ENTRY * count
    files = {}
    for number in range(count):
        start = _C4_HEADER + _C4_ENTRY * number
        entry = content[start : start + _C4_ENTRY]
        name = entry[:257].split(b"\0")[0].decode("latin-1")
        _, group, size, _, offset = struct.unpack_from("<iiiii", entry, 260)
        inner = content[base + offset : base + offset + size]
        if group:
            files |= {f"{name}/{k}": v for k, v in read_c4group(inner).items()}
        else:
            files[name] = inner
    return files


def read_qt_resources(content: bytes) -> dict[str, bytes]:
    """The files of a Qt resource file: a tree of nodes that name each other and their data by
    number and offset. Those compressed with zstd are left out."""
    if content[:4] != b"qres":
        raise DataError("a Qt resource file lacks its magic number")
    version, tree, data, names = struct.unpack_from(">IIII", content, 4)
    size = _QT_NODE if version < 2 else _QT_NODE + 8
    files: dict[str, bytes] = {}
    waiting, seen = [(0, "")], set()
    while waiting:
        number, path = waiting.pop()
        if number in seen:
            raise DataError("a Qt resource file has a node twice")
        seen.add(number)
        place = tree + number * size
        name, flags = struct.unpack_from(">IH", content, place)
        if number:
            (length,) = struct.unpack_from(">H", content, names + name)
            start = names + name + 6
            path += "/" + content[start : start + 2 * length].decode("utf-16-be")
        if flags & _QT_FOLDER:
            count, first = struct.unpack_from(">II", content, place + 6)
            waiting += [(first + n, path) for n in range(count)]
        elif not flags & _QT_ZSTD:
            (offset,) = struct.unpack_from(">I", content, place + 10)
            (length,) = struct.unpack_from(">I", content, data + offset)
            file = content[data + offset + 4 : data + offset + 4 + length]
            # Four bytes with the unpacked size come first.
            files[path[1:]] = zlib.decompress(file[4:]) if flags & _QT_ZLIB else file
    return files
