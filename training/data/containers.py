"""Files inside zip and tar archives, named `archive.zip:inner/name.wav`.

The members of a tar are found once and then read by their offset, so shards in the layout of
webdataset are as good as folders: any member at any time, which resuming exactly and sampling by
weight need and reading an archive from its start to its end cannot give.
"""

import io
import os
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from audiogen_fast.errors import DataError

ARCHIVES = (".zip", ".tar")
_MAX_OPEN = 64
"""Archives that a process keeps open; a file handle each."""


def split_path(path: str) -> tuple[str, str | None]:
    """`a.zip:b` to `("a.zip", "b")`; a plain path to `(path, None)`.

    The first archive that is a file and is followed by a colon counts, so a folder may have a
    colon in its name. Where there is no such file, the first `.zip:` or `.tar:` counts.
    """
    lowered = path.lower()
    places = sorted(
        place + len(suffix) for suffix in ARCHIVES for place in _occurrences(lowered, suffix + ":")
    )
    for place in places:
        if os.path.isfile(path[:place]):
            return path[:place], path[place + 1 :]
    if places and not os.path.exists(path):
        return path[: places[0]], path[places[0] + 1 :]
    return path, None


def _occurrences(text: str, part: str) -> Iterator[int]:
    place = text.find(part)
    while place >= 0:
        yield place
        place = text.find(part, place + 1)


class Archives:
    """Archives kept open by one process; a copy sent to another process opens its own.

    Not for use by several threads.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Archive] = OrderedDict()

    def __getstate__(self) -> dict:
        return {"_open": OrderedDict()}  # two processes must not share a file position

    def read(self, archive: str, member: str) -> bytes:
        """The contents of a member.

        Raises:
            FileNotFoundError: no such archive, or no such member in it.
            DataError: the archive is damaged.
        """
        return self._archive(archive).read(member)

    def names(self, archive: str) -> list[str]:
        """The names of all files in an archive, in its order; raises as `read`."""
        return list(self._archive(archive).members)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _archive(self, path: str) -> "_Archive":
        if path in self._open:
            self._open.move_to_end(path)
        else:
            self._open[path] = _Archive(path)
            if len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)[1].close()
        return self._open[path]


class _Archive:
    def __init__(self, path: str):
        self.path = path
        self.file = open(path, "rb")
        self.zip: zipfile.ZipFile | None = None
        self.members: dict[str, tuple[int, int] | zipfile.ZipInfo] = {}
        try:
            if Path(path).suffix.lower() == ".zip":
                self.zip = zipfile.ZipFile(self.file)
                self.members = {i.filename: i for i in self.zip.infolist() if not i.is_dir()}
            else:
                with tarfile.open(fileobj=self.file, mode="r:") as tar:
                    self.members = {
                        m.name.removeprefix("./"): (m.offset_data, m.size) for m in tar if m.isreg()
                    }
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            self.close()
            raise DataError(f"{path}: cannot be read as an archive: {error}") from error

    def read(self, member: str) -> bytes:
        if member not in self.members:
            raise FileNotFoundError(f"{self.path} has no member {member!r}")
        place = self.members[member]
        if isinstance(place, zipfile.ZipInfo):
            try:
                return self.zip.read(place)
            except Exception as error:  # damaged members raise errors of the decompressors
                raise DataError(f"{self.path}:{member}: cannot be unpacked: {error}") from error
        offset, size = place
        self.file.seek(offset)
        contents = self.file.read(size)
        if len(contents) < size:
            raise DataError(f"{self.path}:{member}: the archive ends within it")
        return contents

    def close(self) -> None:
        if self.zip is not None:
            self.zip.close()
        self.file.close()


def contents_or_path(archives: Archives, path: str) -> str | io.BytesIO:
    """What `audio_read` takes: the path itself, or the contents of a file in an archive."""
    archive, member = split_path(path)
    return path if member is None else io.BytesIO(archives.read(archive, member))
