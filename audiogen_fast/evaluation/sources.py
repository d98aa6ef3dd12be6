"""Where clips come from: a manifest of references, folders of what systems generated."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from audiogen_fast.cli.manifest import NAME as SOUNDS
from audiogen_fast.cli.manifest import Manifest as SoundsManifest
from audiogen_fast.errors import DataError, check
from audiogen_fast.evaluation.clips import Clip, ClipSet, Fault, inspected
from audiogen_fast.training.data.captions import Captions
from audiogen_fast.training.data.containers import Archives, split_path
from audiogen_fast.training.data.manifest import NAMES, AudioMeta, read_manifest
from audiogen_fast.training.data.probe import SUFFIXES

REFERENCE = "reference"
"""Name of the set of references."""


def read_reference(
    manifest: str | Path,
    where: Mapping[str, str] | None = None,
    root: str | Path | None = None,
    name: str = REFERENCE,
    progress: Callable[[], None] | None = None,
) -> ClipSet:
    """The recordings of a manifest; see `training.data.read_manifest` for its kinds.

    The first caption counts where there are several. A clip's name is its id in the manifest.

    Raises:
        InvalidInputError, DataError: no such manifest, no row with these values, or damaged.
    """
    rows = list(read_manifest(manifest, root, where))
    return _from_rows(name, rows, progress)


def read_generated(
    name: str, folder: str | Path, progress: Callable[[], None] | None = None
) -> ClipSet:
    """What a system generated: the sounds of a folder.

    Captions come from the `manifest.json` of `audiogen-fast generate`, from a manifest of
    recordings (`data.jsonl`, `data.jsonl.gz`, `manifest.csv`), or from JSON or text files beside
    the sounds. Without a manifest all sounds below the folder are taken.

    Raises:
        InvalidInputError: no such folder, or a manifest in it that cannot be used.
    """
    folder = Path(folder)
    check(folder.is_dir(), f"generated: {name} must be a folder, no such folder: {folder}")
    if (folder / SOUNDS).is_file():
        found = _from_sounds(name, folder, progress)
    elif any((folder / manifest).is_file() for manifest in NAMES):
        found = _from_rows(name, list(read_manifest(folder)), progress)
    else:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        rows = [AudioMeta(str(p), 0.0, str(p.relative_to(folder))) for p in paths]
        found = _from_rows(name, rows, progress)
    if not found.clips:
        count = len(found.faults)
        detail = f"no sound that can be used in {folder} ({count} cannot)"
        found.faults.append(Fault(name, "", "empty", detail))
    return found


def _from_rows(
    name: str, rows: list[AudioMeta], progress: Callable[[], None] | None = None
) -> ClipSet:
    captions, archives = Captions(lowercase=False), Archives()
    candidates, reasons = [], {}
    for meta in rows:
        texts: list[str] = []
        try:
            texts, _ = captions.all(meta, archives)
        except (DataError, OSError) as error:
            reasons[meta.id] = str(error)
        candidates.append(Clip(meta.id, texts[0] if texts else None, meta.path, archives=archives))
    found = inspected(name, candidates, [meta.duration or None for meta in rows], progress)
    _name_missing_captions(found, reasons)
    return found


def _from_sounds(name: str, folder: Path, progress: Callable[[], None] | None) -> ClipSet:
    candidates, seconds, absent = [], [], []
    for file, record in SoundsManifest(folder).records.items():
        if not (folder / file).is_file():
            detail = f"is in {SOUNDS} and not in the folder"
            absent.append(Fault(name, file, "unreadable", detail))
            continue
        caption = record.get("settings", {}).get("description")
        candidates.append(Clip(file, caption, str(folder / file)))
        seconds.append(record.get("seconds"))
    found = inspected(name, candidates, seconds, progress)
    found.faults = absent + found.faults
    _name_missing_captions(found, {})
    return found


def _name_missing_captions(found: ClipSet, reasons: Mapping[str, str]) -> None:
    for clip in found.clips:
        if clip.caption is None:
            detail = reasons.get(clip.name, "its caption is empty")
            found.faults.append(Fault(found.name, clip.name, "no caption", detail, False))


def match(generated: ClipSet, reference: ClipSet) -> ClipSet:
    """Give every generated clip the reference it answers to: of its name, else of its caption.

    Names match with their folders and without suffix; else without folders, where one reference
    alone has such a name and no clip has all of it. The k-th clip of a caption answers to the k-th
    reference of it, beginning again where there are fewer. A clip without caption takes that of
    its reference. What answers to nothing is named, so are references without an answer, and clips
    whose name several references have.
    """
    named = _of_its_name(generated, reference)
    by_caption: dict[str, list[Clip]] = defaultdict(list)
    for clip in reference.clips:
        if clip.caption is not None:
            by_caption[same(clip.caption)].append(clip)
    used: dict[str, int] = defaultdict(int)
    faults = list(generated.faults)
    matched = []
    for clip in generated.clips:
        candidates = named[clip.name]
        answer = candidates[0] if len(candidates) == 1 else None
        if len(candidates) > 1:
            several = ", ".join(candidate.name for candidate in candidates[:3])
            detail = f"its name is that of {len(candidates)} references ({several}); "
            detail += "only its caption can say which: name it, folder and all, as its reference"
            faults.append(Fault(generated.name, clip.name, "ambiguous", detail, False))
        if answer is None and clip.caption is not None:
            key = same(clip.caption)
            if by_caption[key]:
                answer = by_caption[key][used[key] % len(by_caption[key])]
                used[key] += 1
        if answer is None:
            detail = "no reference has its name or its caption; not compared item by item"
            faults.append(Fault(generated.name, clip.name, "unmatched", detail, False))
            matched.append(clip)
            continue
        caption = clip.caption or answer.caption
        if None not in (clip.caption, answer.caption) and same(caption) != same(answer.caption):
            detail = f"says {clip.caption!r}, its reference {answer.caption!r}; its own counts"
            faults.append(Fault(generated.name, clip.name, "other caption", detail, False))
        if clip.caption is None and caption is not None:
            faults = [f for f in faults if (f.clip, f.kind) != (clip.name, "no caption")]
        matched.append(dataclasses.replace(clip, reference=answer.name, caption=caption))
    answered = {clip.reference for clip in matched}
    if matched:
        faults += [
            Fault(generated.name, clip.name, "missing", "nothing was generated for it", False)
            for clip in reference.clips
            if clip.name not in answered
        ]
    return ClipSet(generated.name, matched, faults)


def _of_its_name(generated: ClipSet, reference: ClipSet) -> dict[str, list[Clip]]:
    """The references whose name each generated clip has, by its own name."""
    known: list[dict[str, list[Clip]]] = [defaultdict(list) for _ in range(3)]
    for clip in reference.clips:
        for level, name in enumerate(_names(clip.name)):
            known[level][name].append(clip)
    found = {}
    for clip in generated.clips:
        whole, inside, _ = _names(clip.name)
        found[clip.name] = known[0].get(whole) or known[1].get(inside) or []
    answered = {one.name for exact in found.values() for one in exact}
    for name, exact in found.items():
        if not exact:
            bare = known[2].get(_names(name)[2], [])
            # rain/1 is no answer to dog/1 where dog/1 is there as well.
            found[name] = [] if len(bare) == 1 and bare[0].name in answered else bare
    return found


def _names(name: str) -> tuple[str, str, str]:
    """A clip's name without suffix: with its archive, with folders only, and the bare one."""
    path, member = split_path(name)
    inside = _unsuffixed(member or path)
    return _unsuffixed(name), inside, PurePosixPath(inside).name


def _unsuffixed(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)


def same(caption: str) -> str:
    """What is equal for captions that count as the same: case and spaces do not matter."""
    return " ".join(caption.casefold().split())
