"""What a data set gives: items, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from audiogen_fast.modules.conditioners import ConditioningAttributes


@dataclass
class SoundInfo:
    """Where a sample comes from and what is said of it."""

    id: str
    """Name of the recording, the same on every machine."""
    path: str
    """File of the recording."""
    description: str | None
    seek_time: float
    """Seconds from the start of the recording to that of the sample."""
    n_frames: int
    """Audio frames that come from the recording; those after them are zeros."""
    total_frames: int
    """Audio frames of the sample, with those zeros."""
    sample_rate: int
    """In Hz, of the sample."""
    channels: int
    duration: float
    """Seconds, of the whole recording."""
    attributes: dict[str, str | None] = field(default_factory=dict)
    """Further text attributes."""
    mixed_with: str | None = None
    """`id` of the recording that was mixed in."""

    def to_condition_attributes(self) -> ConditioningAttributes:
        """What a model that is trained on this sample is conditioned on."""
        return ConditioningAttributes(text={**self.attributes, "description": self.description})


@dataclass(frozen=True)
class Skipped:
    """A draw that gave nothing to train on."""

    path: str
    reason: str
    silent: bool = False
    """Readable, but silence."""


@dataclass
class Item:
    """One sample: audio or codes, and the text's encoding where it is cached."""

    info: SoundInfo
    wav: Tensor | None = None
    """float32 `[C, T]`."""
    codes: Tensor | None = None
    """int64 `[K, T]`."""
    text_embedding: Tensor | None = None
    """`[L, D]`; L is 0 without a description."""
    skipped: list[Skipped] = field(default_factory=list)
    """Draws before this one that gave nothing."""


@dataclass
class Batch:
    """Samples as tensors, either audio or codes."""

    infos: list[SoundInfo]
    wav: Tensor | None = None
    """float32 `[B, C, T]`, full scale 1, zeros after the end of shorter samples."""
    codes: Tensor | None = None
    """int64 `[B, K, T]`."""
    text_embeddings: Tensor | None = None
    """What the text encoder gave, before the model's projection: `[B, L, D]`, zeros where the
    mask is 0. From a cache; else None."""
    text_mask: Tensor | None = None
    """int64 `[B, L]`; a row of zeros without a description. L is at least 1."""
    repeated: int = 0
    """Samples at the end that fill up the last batch of an epoch and were there before; an
    evaluation leaves them out."""
    epoch: int = 0
    step: int = 0
    """Number of the batch in its epoch."""
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.infos)

    @property
    def conditions(self) -> list[ConditioningAttributes]:
        """The conditioning attributes of each sample."""
        return [info.to_condition_attributes() for info in self.infos]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch with its tensors on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; a loader calls this."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change) -> "Batch":
        names = ("wav", "codes", "text_embeddings", "text_mask")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{n: None if t is None else change(t) for n, t in tensors.items()})


def collate(items: Sequence[Item]) -> Batch:
    """One batch of the items, padded with zeros to the longest."""
    batch = Batch(
        [item.info for item in items], skipped=[s for item in items for s in item.skipped]
    )
    if items[0].wav is not None:
        batch.wav = _padded([item.wav for item in items])
        for info in batch.infos:
            info.total_frames = batch.wav.shape[-1]
    if items[0].codes is not None:
        batch.codes = _padded([item.codes for item in items])
    if items[0].text_embedding is not None:
        texts = [item.text_embedding for item in items]
        longest = max(1, *(len(text) for text in texts))
        batch.text_embeddings = texts[0].new_zeros(len(texts), longest, texts[0].shape[1])
        batch.text_mask = torch.zeros(len(texts), longest, dtype=torch.int64)
        for row, text in enumerate(texts):
            batch.text_embeddings[row, : len(text)] = text
            batch.text_mask[row, : len(text)] = 1
    return batch


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    longest = max(tensor.shape[-1] for tensor in tensors)
    out = tensors[0].new_zeros(len(tensors), tensors[0].shape[0], longest)
    for row, tensor in zip(out, tensors, strict=True):
        row[:, : tensor.shape[-1]] = tensor
    return out
