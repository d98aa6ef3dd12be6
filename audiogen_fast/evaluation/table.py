"""The table that an evaluation fills: rows of clips, measured by encoders in the same way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audiogen_fast.evaluation import anchors
from audiogen_fast.evaluation.clips import Clip, ClipSet
from audiogen_fast.evaluation.measures import (
    FEWEST,
    Assigned,
    Embedded,
    Value,
    absent,
    consistencies,
    divergences,
    half_distances,
    half_size,
    whole_distance,
)
from audiogen_fast.evaluation.results import TEXT_METRICS, Item, Row
from audiogen_fast.evaluation.sources import same
from audiogen_fast.evaluation.statistics import frechet_distance, kernel_distance

_BATCH = 16
Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and of how much."""

ABOUT = {
    anchors.REAL: "the references of the other half; in KL another clip of the same caption",
    anchors.SHUFFLED: "real clips with captions of others; distances see no captions",
    anchors.NOISE: "white noise with the levels and lengths of the clips, in another order",
    anchors.NOISY: "each clip with white noise 10 dB below it",
    anchors.LOW_PASSED: "each clip without what lies above 1 kHz",
}


@dataclass
class _Entry:
    row: Row
    clips: ClipSet


class Table:
    """Rows of one evaluation.

    Args:
        reference: the clips that everything is compared with.
        seed: of halves, shuffles, noise and intervals.
        progress: see `Progress`.
    """

    def __init__(self, reference: ClipSet, seed: int = 0, progress: Progress | None = None):
        self.reference, self.seed = reference, seed
        self.progress = progress or (lambda *_: None)
        self.index = {clip.name: i for i, clip in enumerate(reference.clips)}
        self.entries: dict[str, _Entry] = {}
        self.notes: list[str] = []
        self.shuffled: Row | None = None

    @property
    def rows(self) -> list[Row]:
        found = [entry.row for entry in self.entries.values()]
        if self.shuffled is not None:
            found.insert(1, self.shuffled)
        return found

    def add(self, clips: ClipSet, kind: str = "system", about: str = "") -> Row:
        """A row of clips, each with the `reference` that it answers to or None."""
        items = [Item(c.name, c.caption, c.reference) for c in clips.clips]
        row = Row(clips.name, kind, about or ABOUT.get(clips.name, ""), {}, items)
        self.entries[row.name] = _Entry(row, clips)
        return row

    def add_anchors(self, degraded: bool = False) -> None:
        """Rows of real clips, shuffled captions and noise; also of two degradations."""
        self.add(ClipSet(anchors.REAL, self.reference.clips), "anchor")
        self.shuffled = Row(anchors.SHUFFLED, "anchor", ABOUT[anchors.SHUFFLED])
        if degraded:
            self.add(anchors.noisy(self.reference, self.seed), "anchor")
            self.add(anchors.low_passed(self.reference), "anchor")
        self.add(anchors.noise(self.reference, self.seed), "anchor")

    def measure_sounds(self, encoder, metrics: Sequence[str]) -> None:
        """`fad`, `fad_all`, `kad` and `kld` of every row, by an audio encoder."""
        reference = self._embed(encoder, self.reference)
        rows = {
            name: reference if name == anchors.REAL else self._embed(encoder, entry.clips)
            for name, entry in self.entries.items()
        }
        usable = {name: row for name, row in rows.items() if len(row) >= FEWEST}
        size = half_size(len(reference), list(usable.values()))
        self._note_counts(encoder.name, size, len(reference), usable)
        distances = {"fad": frechet_distance, "kad": kernel_distance}
        for metric, distance in distances.items():
            if metric not in metrics:
                continue
            for name, row in rows.items():
                value = self._too_few(name)
                if value is None:
                    value = half_distances(distance, reference.vectors, row, size, self.seed)
                self._set(name, f"{metric}:{encoder.name}", value)
        if "fad" in metrics:
            self._whole(encoder.name, reference, rows)
        if "kld" in metrics:
            for name, row in rows.items():
                self._divergence(name, f"kld:{encoder.name}", reference, row)

    def _whole(self, encoder: str, reference: Embedded, rows: dict[str, Embedded]) -> None:
        """Distance to all references, of the rows that are not made of them."""
        key = f"fad_all:{encoder}"
        counts = [len(rows[n]) for n, e in self.entries.items() if e.row.kind == "system"]
        size = min([len(reference), *(count for count in counts if count >= FEWEST)])
        for name, row in rows.items():
            value = self._too_few(name)
            if name == anchors.REAL:
                value = absent("real clips have no distance from themselves")
            if value is None:
                whole = (frechet_distance, reference.vectors, row.vectors)
                value = whole_distance(*whole, min(size, len(row)), self.seed)
            self._set(name, key, value)

    def _divergence(self, name: str, key: str, reference: Embedded, row: Embedded) -> None:
        if self._empty(name) is not None:
            return self._set(name, key, self._empty(name))
        if row.posteriors is None:
            return self._set(name, key, absent("the encoder knows no labels"))
        answers = row.answers
        if name == anchors.REAL:
            answers = anchors.partners(row.captions)
        kept = [i for i, answer in enumerate(answers) if answer is not None]
        if not kept:
            real = "no caption has a second clip" if name == anchors.REAL else None
            return self._set(name, key, absent(real or "no clip answers to a reference"))
        own = [answers[i] for i in kept]
        groups = [_group(self.reference.clips[i]) for i in own]
        assigned = divergences(reference.posteriors, row.posteriors[kept], own, groups)
        self._assign(name, key, assigned, kept)

    def measure_text(self, encoder, metrics: Sequence[str] = ("text_consistency",)) -> None:
        """`TEXT_METRICS` of every row, by an encoder of sounds and texts."""
        if "text_consistency" not in metrics:
            return
        texts: dict[str, str] = {}
        for clips in (self.reference, *(entry.clips for entry in self.entries.values())):
            for clip in clips.clips:
                if clip.caption is not None:
                    texts.setdefault(same(clip.caption), clip.caption)
        names = [f"{metric}:{encoder.name}" for metric in TEXT_METRICS]
        if not texts:
            return self.give_up(names, "no clip has a caption")
        columns = {key: i for i, key in enumerate(texts)}
        vectors = encoder.embed_texts(list(texts.values()))
        rivals = self._embed(encoder, self.reference).vectors
        rival_captions = [
            -1 if clip.caption is None else columns[same(clip.caption)]
            for clip in self.reference.clips
        ]
        self.notes.append(
            f"R@k of {encoder.name}: each sound among the real clips of other captions, of "
            f"{len(rivals)} in all; caption R@k: its caption among all {len(texts)}."
        )
        for name, entry in self.entries.items():
            kept = [i for i, c in enumerate(entry.clips.clips) if c.caption is not None]
            if not kept:
                for key in names:
                    self._set(name, key, self._empty(name) or absent("no clip has a caption"))
                continue
            clips = entry.clips.take([entry.clips.clips[i] for i in kept])
            groups = [same(clip.caption) for clip in clips.clips]
            own = [columns[group] for group in groups]
            real = name == anchors.REAL
            sounds = rivals[kept] if real else self._embed(encoder, clips).vectors
            selves = kept if real else None
            rows = (sounds, vectors, own, groups, rivals, rival_captions, selves)
            for metric, assigned in consistencies(*rows).items():
                self._assign(name, f"{metric}:{encoder.name}", assigned, kept)

    def _assign(self, name: str, key: str, assigned: Assigned, kept: list[int]) -> None:
        self._set(name, key, assigned.value(self.seed))
        if name == anchors.REAL and self.shuffled is not None:
            self.shuffled.values[key] = assigned.shuffled(self.seed)
        items = self.entries[name].row.items
        for i, value in zip(kept, assigned.items.tolist(), strict=True):
            items[i].values[key] = value

    def give_up(self, keys: Sequence[str], reason: str) -> None:
        """No figure in any row, and why."""
        for row in self.rows:
            for key in keys:
                row.values.setdefault(key, absent(reason))

    def _set(self, name: str, key: str, value: Value) -> None:
        self.entries[name].row.values[key] = value
        if name == anchors.REAL and self.shuffled is not None:
            # The same clips: what sees no captions cannot tell them apart.
            self.shuffled.values[key] = value

    def _empty(self, name: str) -> Value | None:
        clips = self.entries[name].clips
        return None if clips.clips else absent(f"no clip that can be used: {_faults(clips)}")

    def _too_few(self, name: str) -> Value | None:
        count = len(self.entries[name].clips)
        few = absent(f"needs {FEWEST} clips that can be used, there are {count}")
        return self._empty(name) or (few if count < FEWEST else None)

    def _embed(self, encoder, clips: ClipSet) -> Embedded:
        found: dict[str, list[Tensor]] = {}
        for start in range(0, len(clips), _BATCH):
            self.progress(f"{encoder.name}: {clips.name}", start, len(clips))
            batch = clips.clips[start : start + _BATCH]
            waves = [clip.read(encoder.sample_rate) for clip in batch]
            for name, tensor in encoder.encode(waves).items():
                found.setdefault(name, []).append(tensor)
        self.progress(f"{encoder.name}: {clips.name}", len(clips), len(clips))
        joined = {name: torch.cat(parts) for name, parts in found.items()}
        own = clips is self.reference
        answers = [self.index.get(c.name if own else c.reference) for c in clips.clips]
        vectors = joined.get("embedding", torch.zeros(0, 1))
        captions = [clip.caption for clip in clips.clips]
        return Embedded(vectors, answers, joined.get("posteriors"), captions)

    def _note_counts(
        self, encoder: str, size: int, references: int, rows: dict[str, Embedded]
    ) -> None:
        counts = ", ".join(f"{name} {len(row)}" for name, row in rows.items())
        self.notes.append(
            f"Distances by {encoder} have {size} clips on each side in every row, the largest "
            f"number that all have (references {references}, of which a half; {counts}); which "
            f"ones is drawn with seed {self.seed}."
        )


def _group(clip: Clip) -> str:
    """What a shuffle keeps apart; a clip without a caption is alone."""
    return f"clip {clip.name}" if clip.caption is None else same(clip.caption)


def _faults(clips: ClipSet) -> str:
    kinds = [fault.kind for fault in clips.faults if fault.left_out and fault.clip]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "nothing there"
