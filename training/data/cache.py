"""Reading caches of codes and encoded texts."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audiogen_fast.errors import DataError, check
from audiogen_fast.training.data.shards import check_shard, read_index

VERIFY = ("open", "lazy", "off")


@dataclass
class CachedSample:
    """One sample as it was stored."""

    row: dict[str, Any]
    """The fields of `SoundInfo`, `description` being the numbers of its texts, and `weight`."""
    codes: Tensor
    """int64 `[K, T]`."""


class TokenCache:
    """A cache that `audiogen-fast encode` has written. Only what is asked for is read.

    Args:
        folder: with `index.json`.
        verify: when the SHA-256 of a file is checked: `open` all of them now, `lazy` each when
            a process first reads it, `off` never.
        incomplete: read a cache whose writing was interrupted, too.

    Attributes:
        settings: how it was made; `settings["codec"]` has `sample_rate`, `frame_rate`, `n_q`,
            `card` and `fingerprint`.
        text_dim, text_dtype: of the encoded texts; `text_dim` is None if there are none.

    Raises:
        InvalidInputError: no cache there, or an incomplete one.
        DataError: it is damaged.
    """

    def __init__(self, folder: str | Path, verify: str = "open", incomplete: bool = False):
        check(verify in VERIFY, f"verify must be one of {VERIFY}, got {verify!r}")
        self.folder = Path(folder)
        index = read_index(self.folder)
        check(
            incomplete or index.complete,
            f"cache {folder} has {index.position} of {index.total} samples: its writing was "
            "interrupted, and the same `audiogen-fast encode` goes on with it",
        )
        self.settings, self.skipped = index.settings, index.skipped
        text = self.settings["text"]
        self.text_dim: int | None = None if text is None else text["dim"]
        self.text_dtype = getattr(torch, self.settings["config"]["text_dtype"])
        self._shards = index.shards
        self._items = np.cumsum([0, *(shard.items for shard in self._shards)])
        self._texts = np.cumsum([0, *(shard.texts for shard in self._shards)])
        self._lazy = verify == "lazy"
        self._open: dict[int, safe_open] = {}
        if verify == "open":
            for shard in self._shards:
                check_shard(self.folder, shard)

    def __len__(self) -> int:
        """How many samples there are."""
        return int(self._items[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # each process maps the files itself

    def column(self, name: str) -> np.ndarray:
        """`seconds` or `weights` of all samples, float64 `[n]`."""
        parts = [self._shard(number).get_tensor(name) for number in range(len(self._shards))]
        return np.concatenate([np.zeros(0), *parts])

    def sample(self, number: int) -> CachedSample:
        """One sample."""
        shard, place = locate(self._items, number)
        file = self._shard(shard)
        row = json.loads(_part(file, "items", "item_offsets", place).tobytes())
        codes = _part(file, "codes", "code_offsets", place)
        return CachedSample(row, torch.from_numpy(codes.astype(np.int64).T.copy()))

    def real_frames(self, row: Mapping[str, Any]) -> int:
        """Frames of codes, of a sample's `row`, that are not all padding."""
        rate = self.settings["codec"]["frame_rate"]
        # Multiplied first: 2240 / 16000 * 50 is 7.000000000000001, and the frames are 7.
        return math.ceil(row["n_frames"] * rate / row["sample_rate"])

    def text(self, number: int) -> str:
        """One of the different texts."""
        shard, place = locate(self._texts, number)
        return _part(self._shard(shard), "texts", "text_offsets", place).tobytes().decode("utf-8")

    def embedding(self, number: int) -> Tensor:
        """What the text encoder made of a text, `[L, text_dim]` in the stored dtype."""
        shard, place = locate(self._texts, number)
        return torch.from_numpy(_part(self._shard(shard), "embeddings", "embedding_offsets", place))

    @property
    def text_count(self) -> int:
        """How many different texts there are."""
        return int(self._texts[-1])

    def text_numbers(self) -> dict[str, int]:
        """All texts and their numbers."""
        return {self.text(number): number for number in range(self.text_count)}

    def _shard(self, number: int) -> safe_open:
        if number not in self._open:
            shard = self._shards[number]
            if self._lazy:
                check_shard(self.folder, shard)
            try:
                self._open[number] = safe_open(self.folder / shard.name, framework="numpy")
            except (OSError, SafetensorError) as error:
                raise DataError(f"{self.folder / shard.name}: cannot be read: {error}") from error
        return self._open[number]


def locate(starts: np.ndarray, number: int) -> tuple[int, int]:
    """Which of the parts that begin at `starts` has a number, and its place there."""
    check(0 <= number < starts[-1], f"number must lie in 0..{starts[-1] - 1}, got {number}")
    part = int(np.searchsorted(starts, number, side="right")) - 1
    return part, number - int(starts[part])


def _part(file: safe_open, name: str, offsets: str, place: int) -> np.ndarray:
    start, stop = file.get_slice(offsets)[place : place + 2]
    return file.get_slice(name)[int(start) : int(stop)]
