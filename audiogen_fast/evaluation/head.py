"""The offline measure of text: heads learnt from part of a manifest."""

from collections.abc import Callable, Mapping
from pathlib import Path

from audiogen_fast.evaluation.clips import ClipSet
from audiogen_fast.evaluation.encoders.aisfx import AiSFX
from audiogen_fast.evaluation.encoders.contrastive import Contrastive, train_contrastive
from audiogen_fast.evaluation.sources import read_reference, same


def head_of(
    manifest: str | Path,
    rows: Mapping[str, str],
    root: str | Path | None = None,
    device: str = "cpu",
    progress: Callable[[], None] | None = None,
) -> tuple[Contrastive, ClipSet]:
    """The encoder, and the captioned clips that it is trained on, or was trained on before.

    Raises:
        InvalidInputError: the manifest has no such rows, or they have fewer than 2 captions.
        MissingDependencyError: a package is missing.
    """
    clips = read_reference(manifest, rows, root, "head", progress)
    clips = clips.take([clip for clip in clips.clips if clip.caption is not None])
    waves = [clip.read(AiSFX.sample_rate) for clip in clips.clips]
    captions = [same(clip.caption) for clip in clips.clips]
    return train_contrastive(waves, captions, device=device), clips
