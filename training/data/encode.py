"""Writing caches: recordings as codes, texts as what the text encoder makes of them.

Each recording is cut into samples of one length, the last one filled up with silence, as they
would be encoded in training. A text is encoded once, however many samples have it.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from audiogen_fast.errors import DataError, check
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.models.weights import fingerprint
from audiogen_fast.training.data.batch import Skipped
from audiogen_fast.training.data.cache import TokenCache
from audiogen_fast.training.data.manifest import Manifest
from audiogen_fast.training.data.shards import Index, is_cache, pack, read_index, write_shard
from audiogen_fast.training.data.text_encoders import TextEncoder
from audiogen_fast.training.data.windows import EncodeConfig, Window, Windows


def encode_manifest(
    manifest: Manifest,
    output: str | Path,
    codec: CompressionModel,
    text_encoder: TextEncoder | None = None,
    config: EncodeConfig | None = None,
    *,
    batch_size: int = 8,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Encode all recordings of a manifest, or those that an interrupted run has left.

    Args:
        manifest: the recordings.
        output: folder of the cache; made if need be.
        codec: on the device that is to encode, in evaluation mode.
        text_encoder: None leaves the texts as they are.
        config: see `EncodeConfig`.
        batch_size: samples encoded at a time.
        workers: processes that read recordings; 0 reads in this one.
        progress: called with how many samples are done, and of how many.

    Returns:
        The index of the cache.

    Raises:
        InvalidInputError: the folder has a cache that was made otherwise, or other files.
        DataError: what is there of the cache is damaged, or no sample could be encoded.
    """
    config = config or EncodeConfig()
    check(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
    check(
        codec.cardinality <= 2**16,
        f"codes of at most 16 bits can be stored, the codec has {codec.cardinality}",
    )
    windows = Windows(manifest, config, codec.sample_rate, codec.channels)
    settings = _settings(manifest, codec, text_encoder, config)
    output = Path(output)
    index = _open(output, Index(settings, total=len(windows)))
    ranges = [
        range(start, min(start + batch_size, stop))
        for start, stop in _shard_ranges(index, config.shard_items)
        for start in range(start, stop, batch_size)
    ]
    batches = iter(_loader(windows, ranges, workers))
    texts = TokenCache(output, incomplete=True).text_numbers()
    for start, stop in _shard_ranges(index, config.shard_items):
        shard = _Contents(codec, text_encoder, np.dtype(config.text_dtype), texts)
        done = start
        while done < stop:
            found = next(batches)
            shard.add(found)
            done += len(found)
            if progress is not None:
                progress(done, index.total)
        index.skipped += [asdict(skipped) for skipped in shard.skipped]
        index.shards.append(write_shard(output, len(index.shards), shard.arrays(batch_size)))
        index.position = stop
        index.write(output)
    if not any(shard.items for shard in index.shards):
        first = index.skipped[0]
        raise DataError(
            f"{output}: none of {index.total} samples can be encoded, the first "
            f"{first['path']}: {first['reason']}"
        )
    return index


def _settings(
    manifest: Manifest,
    codec: CompressionModel,
    text_encoder: TextEncoder | None,
    config: EncodeConfig,
) -> dict[str, Any]:
    rows = hashlib.sha256()
    for number in range(len(manifest)):
        rows.update(json.dumps(manifest.row(number), sort_keys=True).encode())
    text = None
    if text_encoder is not None:
        text = {"dim": text_encoder.dim, "fingerprint": text_encoder.fingerprint}
    return {
        "manifest": rows.hexdigest(),
        "config": asdict(config) | {"attributes": list(config.attributes)},
        "codec": {
            "fingerprint": fingerprint(codec),
            "sample_rate": codec.sample_rate,
            "channels": codec.channels,
            "frame_rate": codec.frame_rate,
            "n_q": codec.num_codebooks,
            "card": codec.cardinality,
            # codes of one moment that a stereo codec puts one after the other
            "virtual_steps": getattr(codec, "num_virtual_steps", 1),
        },
        "text": text,
    }


def _open(folder: Path, new: Index) -> Index:
    """The index of what is there, or the new one, written."""
    if is_cache(folder):
        found = read_index(folder)
        for name, ours in new.settings.items():
            check(
                found.settings.get(name) == ours,
                f"output {folder} has a cache made with another {name}: "
                f"{found.settings.get(name)}, now {ours}",
            )
        for left in folder.glob(".*.tmp"):  # of a run that was killed
            left.unlink()
        return found
    others = [path.name for path in folder.glob("*") if not path.name.startswith(".")]
    check(not others, f"output must be a new or an empty folder, {folder} has {sorted(others)[:5]}")
    folder.mkdir(parents=True, exist_ok=True)
    new.write(folder)
    return new


def _shard_ranges(index: Index, size: int) -> list[tuple[int, int]]:
    starts = range(index.position, index.total, size)
    return [(start, min(start + size, index.total)) for start in starts]


def _loader(windows: Windows, ranges: list[range], workers: int) -> DataLoader:
    options = {"multiprocessing_context": "forkserver"} if workers else {}
    return DataLoader(
        windows,
        batch_sampler=ranges,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # not the global one
        **options,
    )


class _Contents:
    """What one shard is to hold."""

    def __init__(
        self,
        codec: CompressionModel,
        text_encoder: TextEncoder | None,
        text_dtype: np.dtype,
        texts: dict[str, int],
    ):
        self.codec, self.text_encoder, self.text_dtype = codec, text_encoder, text_dtype
        self.texts = texts
        self.new: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.codes: list[np.ndarray] = []
        self.skipped: list[Skipped] = []

    def add(self, found: list[Window | Skipped]) -> None:
        self.skipped += [one for one in found if isinstance(one, Skipped)]
        windows = [one for one in found if isinstance(one, Window)]
        if windows:
            self.codes += self._encode(torch.stack([window.wav for window in windows]))
        for window in windows:
            for text in window.texts:
                if text not in self.texts:
                    self.texts[text] = len(self.texts)
                    self.new.append(text)
            numbers = [self.texts[text] for text in window.texts]
            self.rows.append(
                asdict(window.info) | {"weight": window.weight, "description": numbers}
            )

    @torch.no_grad()
    def _encode(self, wav: Tensor) -> list[np.ndarray]:
        """`[T, K]` for each."""
        device = next(self.codec.parameters()).device
        codes, scale = self.codec.encode(wav.to(device))
        check(scale is None, "codecs that store a scale beside the codes are not supported")
        return list(codes.transpose(1, 2).cpu().numpy())

    def arrays(self, batch_size: int) -> dict[str, np.ndarray]:
        """The tensors of the file; offsets are one longer than what they count."""
        items, item_offsets = pack([json.dumps(row, ensure_ascii=False) for row in self.rows])
        texts, text_offsets = pack(self.new)
        dtype = np.int16 if self.codec.cardinality <= 2**15 else np.uint16
        none = np.zeros((0, self.codec.num_codebooks), dtype)
        seconds = [row["n_frames"] / row["sample_rate"] for row in self.rows]
        arrays = {
            "codes": np.concatenate([none, *(codes.astype(dtype) for codes in self.codes)]),
            "code_offsets": _offsets(self.codes),
            "items": items,
            "item_offsets": item_offsets,
            "seconds": np.array(seconds, np.float64),
            "weights": np.array([row["weight"] for row in self.rows], np.float64),
            "texts": texts,
            "text_offsets": text_offsets,
        }
        if self.text_encoder is not None:
            vectors = self._embed(batch_size)
            none = np.zeros((0, self.text_encoder.dim), self.text_dtype)
            arrays["embeddings"] = np.concatenate([none, *vectors])
            arrays["embedding_offsets"] = _offsets(vectors)
        return arrays

    def _embed(self, batch_size: int) -> list[np.ndarray]:
        vectors: list[np.ndarray] = [np.zeros(0)] * len(self.new)
        # texts of similar length together: little padding
        order = sorted(range(len(self.new)), key=lambda number: len(self.new[number]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            encoded = self.text_encoder.encode([self.new[number] for number in batch])
            for number, rows in zip(batch, encoded, strict=True):
                vectors[number] = rows.astype(self.text_dtype)
                check(
                    bool(np.isfinite(vectors[number]).all()),
                    f"text_dtype {self.text_dtype} cannot hold the vectors of {self.new[number]!r}",
                )
        return vectors


def _offsets(parts: list[np.ndarray]) -> np.ndarray:
    return np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
