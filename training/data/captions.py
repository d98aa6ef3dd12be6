"""What is said of a recording: the JSON beside it, in an archive, or in the manifest itself."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiogen_fast.errors import DataError
from audiogen_fast.training.data.containers import Archives, split_path
from audiogen_fast.training.data.manifest import AudioMeta

_DESCRIPTIONS = ("description", "caption")


class Captions:
    """Finds the text attributes of recordings.

    In this order: the manifest's own `description` or `caption`; the JSON that its `info_path`
    names; the JSON beside the recording, with the suffix `.json`; the one of that name in
    `external_metadata_source`; the text beside the recording, with the suffix `.txt`.

    Args:
        names: further attributes that every sample gets, None where a recording has none.
        external_metadata_source: a folder with JSON files.
        required: a recording without a `description` cannot be used. One that is empty can.
        lowercase: as the original does.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        external_metadata_source: str | Path | None = None,
        required: bool = True,
        lowercase: bool = True,
    ):
        self.names = [name for name in names if name != "description"]
        self.external = external_metadata_source
        self.required, self.lowercase = required, lowercase

    def read(
        self, meta: AudioMeta, archives: Archives, rng: np.random.Generator
    ) -> tuple[str | None, dict[str, str | None]]:
        """The description and the attributes; `rng` draws one text where there are several.

        Raises:
            DataError: required and not there, or the JSON is damaged.
        """
        descriptions, attributes = self.all(meta, archives)
        return _drawn(descriptions, rng), {k: _drawn(v, rng) for k, v in attributes.items()}

    def all(self, meta: AudioMeta, archives: Archives) -> tuple[list[str], dict[str, list[str]]]:
        """All descriptions of a recording, and all texts of each attribute; raises as `read`."""
        fields = self._fields(meta, archives)
        found = [key for key in _DESCRIPTIONS if key in fields]
        if not found and self.required:
            raise DataError(f"{meta.path}: has no description in the manifest or its JSON file")
        descriptions = self.texts(fields[found[0]]) if found else []
        return descriptions, {name: self.texts(fields.get(name)) for name in self.names}

    def texts(self, value: Any) -> list[str]:
        """The texts of a field, without surrounding space; none for empty ones and "None"."""
        if isinstance(value, list):
            return [text for part in value for text in self.texts(part)]
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or value.strip() in ("", "None"):
            return []
        return [value.strip().lower() if self.lowercase else value.strip()]

    def _fields(self, meta: AudioMeta, archives: Archives) -> Mapping[str, Any]:
        if any(key in meta.extra for key in _DESCRIPTIONS):
            return meta.extra
        if not (self.required or self.names or meta.info_path):
            return meta.extra  # nobody asks: do not search the disk
        for source in self._places(meta):
            try:
                text = _contents(source, archives)
            except FileNotFoundError:
                continue
            if source.endswith(".txt"):
                return {**meta.extra, "description": text.decode("utf-8", "replace")}
            try:
                fields = json.loads(text)
                if not isinstance(fields, dict):
                    raise ValueError("it holds no object")
            except ValueError as error:
                raise DataError(f"{source}: is no valid JSON: {error}") from error
            return {**meta.extra, **fields}
        return meta.extra

    def _places(self, meta: AudioMeta) -> list[str]:
        archive, member = split_path(meta.path)
        name = Path(member or archive)
        prefix = "" if member is None else f"{archive}:"
        places = [] if meta.info_path is None else [meta.info_path]
        places.append(f"{prefix}{name.with_suffix('.json')}")
        if self.external is not None:
            places.append(str(Path(self.external, name.with_suffix(".json").name)))
        places.append(f"{prefix}{name.with_suffix('.txt')}")
        return places


def _drawn(texts: Sequence[str], rng: np.random.Generator) -> str | None:
    if len(texts) > 1:
        return texts[int(rng.integers(len(texts)))]
    return texts[0] if texts else None


def _contents(path: str, archives: Archives) -> bytes:
    archive, member = split_path(path)
    return Path(path).read_bytes() if member is None else archives.read(archive, member)
