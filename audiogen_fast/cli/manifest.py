"""`manifest.json` of an output folder: how each sound in it was made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiogen_fast.errors import InvalidInputError, check
from audiogen_fast.files import write_atomically

FORMAT = "audiogen_fast sounds"
FORMAT_VERSION = 1
NAME = "manifest.json"


class Manifest:
    """Records by file name. A record is written before its file, and a file appears whole or not
    at all, so a file that is there was made as its record says.

    Raises:
        InvalidInputError: the folder has a `manifest.json` that is not one of these.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.records: dict[str, dict[str, Any]] = {}
        path = folder / NAME
        if path.is_file():
            self.records = _read(path)

    def finished(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Whether the file is there, made with these settings.

        Raises:
            InvalidInputError: a file of this name is there that was made in another way.
        """
        if not (self.folder / name).exists():
            return False
        check(
            self.records.get(name, {}).get("settings") == settings,
            f"{self.folder / name} is there, but was made with other settings; pass --overwrite "
            "or another --output",
        )
        return True

    def record(self, records: Mapping[str, dict[str, Any]]) -> None:
        """Note how the files, which the caller writes next, are made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in records:
            # or an interruption now would leave an old file under a new record
            (self.folder / name).unlink(missing_ok=True)
        self.records.update(records)
        content = {"format": FORMAT, "version": FORMAT_VERSION, "files": self.records}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.folder / NAME, text.encode("utf-8"))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_text("utf-8"))
        if (content["format"], content["version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"its format is {content['format']!r}, {content['version']!r}")
        return {str(name): dict(record) for name, record in content["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInputError(
            f"{path} is not a manifest that this program wrote ({error}); choose another --output"
        ) from error
