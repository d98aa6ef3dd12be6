"""The offline measure of text: heads learnt from part of a manifest."""

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

from audiogen_fast.evaluation.anchors import noise
from audiogen_fast.evaluation.clips import ClipSet
from audiogen_fast.evaluation.encoders.aisfx import AiSFX
from audiogen_fast.evaluation.encoders.contrastive import Contrastive, train_contrastive
from audiogen_fast.evaluation.sources import read_reference, same

NOISE_CAPTION = "white noise"
_NOISE_SEED = 0x4EAD
_NOISE_SHARE = 4


def head_of(
    manifest: str | Path,
    rows: Mapping[str, str],
    root: str | Path | None = None,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Contrastive, ClipSet]:
    """The encoder, and the captioned clips that it is trained on, or was trained on before.

    A clip of white noise is added for every fourth of them, captioned so: without any, what it
    thinks of noise would be chance, and noise might fit a caption better than a wrong clip does.

    Args:
        progress: called with a stage, how much of it is done, and of how much (0: not known).
    Raises:
        InvalidInputError: the manifest has no such rows, or they have fewer than 2 captions.
        MissingDependencyError: a package is missing.
    """
    tell, read = progress or (lambda *_: None), count(1)
    clips = read_reference(manifest, rows, root, "head", lambda: tell("reading", next(read), 0))
    clips = clips.take([clip for clip in clips.clips if clip.caption is not None])
    hiss = noise(clips, _NOISE_SEED).clips[::_NOISE_SHARE]
    waves = [clip.read(AiSFX.sample_rate) for clip in (*clips.clips, *hiss)]
    captions = [same(clip.caption) for clip in clips.clips] + [NOISE_CAPTION] * len(hiss)
    return train_contrastive(waves, captions, device=device, progress=progress), clips
