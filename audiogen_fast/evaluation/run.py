"""One evaluation from its arguments to its files."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiogen_fast.api import AudioGen
from audiogen_fast.env import get_env
from audiogen_fast.errors import InvalidInputError, MissingDependencyError, check
from audiogen_fast.evaluation import anchors, codec_rows, language_rows, page, sources, systems
from audiogen_fast.evaluation.clips import ClipSet, Fault
from audiogen_fast.evaluation.encoders import load_encoder
from audiogen_fast.evaluation.encoders.base import TextEncoder
from audiogen_fast.evaluation.encoders.cache import cached
from audiogen_fast.evaluation.head import head_of
from audiogen_fast.evaluation.measures import Value
from audiogen_fast.evaluation.results import PAGE, TEXT_METRICS, Report, Row
from audiogen_fast.evaluation.systems import Sampling
from audiogen_fast.evaluation.table import ABOUT, Progress, Table
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.models.loaders import load_compression_model

SOUND_METRICS = ("fad", "kad", "kld")
METRICS = (*SOUND_METRICS, "text_consistency", "language", "codec")
"""What `metrics` may name."""
DEFAULT = "aisfx"
"""The encoder of sounds when none is named."""
HEAD_ROWS = {"split": "metric"}
"""Rows of the reference's manifest that the offline text measure learns from."""


def evaluate(
    reference: str | Path,
    *,
    where: Mapping[str, str] | None = None,
    root: str | Path | None = None,
    generated: Mapping[str, str | Path] | None = None,
    models: Mapping[str, str | Path | AudioGen] | None = None,
    codecs: Mapping[str, str | Path | CompressionModel] | None = None,
    metrics: Sequence[str] | None = None,
    encoders: Sequence[str] | None = None,
    text_encoder: str | None = None,
    head_rows: Mapping[str, str] | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    limit: int | None = None,
    degraded: bool = True,
    output: str | Path | None = None,
    items: int = 4,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure systems, and what anchors score, against reference recordings.

    Args:
        reference: manifest of recordings with captions; see `sources.read_reference`.
        where: take only its rows with these values, such as `{"split": "test"}`.
        root: folder that its relative paths are relative to.
        generated: folders of sounds by name of the system; see `sources.read_generated`.
        models: models, or where they are, by name: each makes a sound for every caption, and its
            cross entropy on the references is measured.
        codecs: codecs, or where they are, by name: each encodes and decodes the references. The
            codec of a model is measured without being named.
        metrics: some of `METRICS`; None for all that can be had, with the reason for the others.
        encoders: of sounds, for FAD, KAD and KL; see `encoders.load_encoder`. None is `aisfx`.
        text_encoder: of sounds and texts, for `text_consistency`. None is the first of `encoders`
            that can do both, else a small one that is trained on `head_rows` and kept.
        head_rows: rows of the manifest for that; None is `{"split": "metric"}`. No system may
            have learnt from them.
        sampling: how models generate.
        limit: so many references at most, drawn with `seed`.
        degraded: rows of two degradations of the real clips too.
        output: folder for `report.json`, `table.csv`, `items.csv` and `index.html`; None writes
            nothing.
        items: best and worst items of each row on the page.
        seed: of everything that is drawn but the generated sounds.
        device: of encoders and models that are loaded; None for CUDA where there is one.
        progress: see `table.Progress`.
    Raises:
        InvalidInputError: a bad argument, a folder or a manifest that is not there.
        MissingDependencyError: what `metrics` or `encoders` name needs a package.
        CheckpointError, DataError: a model or a manifest cannot be used.
    """
    _check_arguments(metrics, generated, models, codecs, limit, items)
    run = _Run(metrics, seed, device, progress)
    found = run.load_encoders(encoders)  # what is missing shows before the work
    clips = run.read(lambda: sources.read_reference(reference, where, root, progress=run.tick))
    check(bool(clips.clips), f"reference must have clips that can be used, {reference} has none")
    run.start(_limited(clips, limit, seed))
    judge = None
    if "text_consistency" in run.metrics:
        judge = run.judge(found, text_encoder, reference, root, dict(head_rows or HEAD_ROWS))
    run.table.add_anchors(degraded)
    for name, folder in (generated or {}).items():
        own = run.read(lambda n=name, f=folder: sources.read_generated(n, f, run.tick))
        run.add(_within(sources.match(own, clips), run.table.reference), f"sounds of {folder}")
    for name, model in (models or {}).items():
        run.add_model(name, model, sampling)
    for name, codec in (codecs or {}).items():
        run.add_codec(name, codec)
    for encoder in found:
        run.measure_sounds(encoder)
    if judge is not None:
        run.measure_text(judge)
    if "codec" in run.metrics:
        run.measure_copies()
    report = run.report(
        reference=str(reference),
        where=dict(where or {}),
        generated={name: str(folder) for name, folder in (generated or {}).items()},
        models={name: _label(model) for name, model in (models or {}).items()},
        codecs={name: _label(codec) for name, codec in (codecs or {}).items()},
        encoders=[encoder.name for encoder in found],
        text_encoder=judge.name if judge is not None else None,
        sampling=asdict(sampling),
        limit=limit,
    )
    if output is not None:
        report.write(Path(output))
        page.write_page(Path(output) / PAGE, report, run.audible(), run.table.reference, items)
    return report


def _check_arguments(metrics, generated, models, codecs, limit, items) -> None:
    for metric in metrics or ():
        known = ", ".join(METRICS)
        check(metric in METRICS, f"metrics must be some of {known}, got {metric!r}")
    check(limit is None or limit >= 1, f"limit must be at least 1, got {limit}")
    check(items >= 0, f"items must be at least 0, got {items}")
    for name, folder in (generated or {}).items():
        check(Path(folder).is_dir(), f"generated: no such folder: {folder} ({name})")
    taken = {sources.REFERENCE, anchors.SHUFFLED, *ABOUT}
    for argument, named in (("generated", generated), ("models", models), ("codecs", codecs)):
        for name in named or {}:
            check(
                name != "" and name not in taken,
                f"{argument} must have names that no other row has, got {name!r}",
            )
            taken.add(name)


def _limited(clips: ClipSet, limit: int | None, seed: int) -> ClipSet:
    if limit is None or len(clips) <= limit:
        return clips
    kept = np.random.default_rng([seed, 0x11]).permutation(len(clips))[:limit]
    return clips.take([clips.clips[i] for i in np.sort(kept)])


def _within(system: ClipSet, reference: ClipSet) -> ClipSet:
    """The clips that do not answer to a reference that was left out by `limit`."""
    kept = {clip.name for clip in reference.clips}
    clips = [clip for clip in system.clips if clip.reference is None or clip.reference in kept]
    faults = [f for f in system.faults if f.kind != "missing" or f.clip in kept]
    return ClipSet(system.name, clips, faults)


def _label(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else str(getattr(model, "name", "codec"))


class _Run:
    """The parts of `evaluate`, with what they share."""

    def __init__(self, metrics, seed: int, device: str | None, progress: Progress | None):
        self.named = metrics is not None
        self.metrics = tuple(METRICS if metrics is None else metrics)
        self.seed, self.progress = seed, progress or (lambda *_: None)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.seconds: dict[str, float] = {}
        self.faults: list[Fault] = []
        self.codecs: list[str] = []
        self.missing: dict[str, str] = {}

    @contextmanager
    def timed(self, part: str):
        began = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

    def tick(self) -> None:
        """One more recording was read."""
        self.count += 1
        self.progress("reading", self.count, 0)

    def read(self, function: Callable[[], ClipSet]) -> ClipSet:
        self.count = 0
        with self.timed("reading"):
            return function()

    def start(self, reference: ClipSet) -> None:
        self.table = Table(reference, self.seed, self.progress)
        self.faults += reference.faults
        seconds = sum(clip.seconds for clip in reference.clips)
        self.table.notes.append(f"{len(reference)} references of {seconds:.0f} s in all.")

    def load_encoders(self, specs: Sequence[str] | None) -> list:
        """Encoders of sounds; none where the usual one is not installed and nobody asked."""
        wanted = set(self.metrics) & set(SOUND_METRICS)
        if not specs and not wanted:
            return []
        try:
            return [cached(load_encoder(spec, self.device)) for spec in specs or (DEFAULT,)]
        except MissingDependencyError as error:
            if specs or self.named:
                raise
            self.missing = {f"{name}:{DEFAULT}": str(error) for name in SOUND_METRICS}
            return []

    def add(self, clips: ClipSet, about: str) -> Row:
        self.faults += clips.faults
        return self.table.add(clips, "system", about)

    def add_model(self, name: str, model: str | Path | AudioGen, sampling: Sampling) -> None:
        """Rows of what a model generates and of its codec, and what it thinks of the references."""
        label = _label(model)
        if not isinstance(model, AudioGen):
            # A CPU's default leaves matrices as stored, and the cross entropy is of `model.lm`.
            dtype = "float32" if torch.device(self.device).type == "cpu" else None
            with self.timed(f"loading {name}"):
                model = AudioGen.get_pretrained(model, self.device, dtype=dtype)
        reference = self.table.reference
        with self.timed(f"generating, {name}"):
            done = 0

            def step(count: int) -> None:
                nonlocal done
                done += count
                self.progress(f"{name}: generating", done, len(reference))

            made = systems.generate(model, reference, name, sampling, step)
        top_k, temperature = made.drawn["top_k"], made.drawn["temp"]
        how = f"top_k {top_k}, temperature {temperature:g}, seed {sampling.seed}"
        row = self.add(made.clips, f"what {label} makes of the captions, {how}")
        row.values["speed"] = Value(made.sound / made.computing, n=len(made.clips))
        if "language" in self.metrics:
            with self.timed(f"language model, {name}"):
                language_rows.measure_language(self.table, name, model)
        if "codec" in self.metrics:
            self.add_codec(f"{name} codec", model.compression_model, f"the codec of {label}")

    def add_codec(
        self, name: str, codec: str | Path | CompressionModel, label: str | None = None
    ) -> None:
        """A row of the references as a codec gives them back."""
        label = label or _label(codec)
        if not isinstance(codec, CompressionModel):
            codec = load_compression_model(str(codec), self.device)
        reference, done = self.table.reference, 0

        def step(count: int) -> None:
            nonlocal done
            done += count
            self.progress(f"{name}: encoding and decoding", done, len(reference))

        with self.timed(f"codec, {name}"):
            made = systems.reconstruct(codec.eval(), reference, name, step)
        row = self.add(made.clips, f"the references, encoded and decoded by {label}")
        row.values["speed"] = Value(made.sound / made.computing, n=len(made.clips))
        row.values |= codec_rows.codebook_values(made, codec.num_codebooks, codec.cardinality)
        self.codecs.append(name)

    def measure_sounds(self, encoder) -> None:
        with self.timed(f"sounds, {encoder.name}"):
            self.table.measure_sounds(encoder, self.metrics)

    def judge(
        self,
        encoders: list,
        spec: str | None,
        manifest: str | Path,
        root: str | Path | None,
        rows: Mapping[str, str],
    ):
        """The encoder of sounds and texts: what was asked for, else what there is, else None."""
        joint = [encoder for encoder in encoders if isinstance(encoder, TextEncoder)]
        try:
            if spec is not None:
                return cached(load_encoder(spec, self.device))
            return joint[0] if joint else self._trained(manifest, root, rows)
        except (MissingDependencyError, InvalidInputError) as error:
            if spec is not None or self.named:
                raise
            self.missing |= {f"{key}:contrastive": str(error) for key in TEXT_METRICS}
            return None

    def measure_text(self, encoder) -> None:
        with self.timed(f"text consistency, {encoder.name}"):
            self.table.measure_text(encoder)

    def _trained(self, manifest, root, rows: Mapping[str, str]):
        """The small encoder of sounds and texts, learnt from rows that no system has seen."""
        with self.timed("the small text measure"):
            encoder, clips = head_of(manifest, rows, root, self.device, self.progress)
        self.faults += clips.faults
        names = {clip.name for clip in self.table.reference.clips}
        shared = sum(clip.name in names for clip in clips.clips)
        check(
            shared == 0,
            f"head_rows must be other rows than the references, {shared} of them are both",
        )
        self.table.notes.append(
            f"Text consistency is by heads trained on {len(clips)} other clips of the same "
            f"manifest ({', '.join(f'{k}={v}' for k, v in rows.items())}): it compares rows of "
            "this table, and nothing else."
        )
        return encoder

    def measure_copies(self) -> None:
        if self.codecs:
            with self.timed("waveforms"):
                codec_rows.measure_copies(self.table, self.codecs)

    def report(self, **settings: Any) -> Report:
        for key, reason in self.missing.items():
            self.table.give_up([key], reason)
        env = get_env()
        facts = {name: version for name, version in env["versions"].items() if version}
        facts |= {"platform": env["platform"], "devices": "; ".join(env["devices"])}
        settings |= {"metrics": list(self.metrics), "seed": self.seed}
        seconds = {name: round(value, 3) for name, value in self.seconds.items()}
        table = self.table
        return Report(table.rows, self.faults, table.notes, settings, facts, seconds)

    def audible(self) -> dict[str, ClipSet]:
        """Rows whose best and worst clips are worth hearing: systems, else the real clips."""
        entries = self.table.entries
        found = {n: e.clips for n, e in entries.items() if e.row.kind == "system"}
        return found or {anchors.REAL: entries[anchors.REAL].clips}
