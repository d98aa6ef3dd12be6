"""Every figure of the model card of `audiogen-fast/tiny`, by one command.

    make corpus
    python -m benchmarks.tiny

The model makes a sound for every held-out clip of the corpus, in float32 and quantised; these and
its codec are measured beside real clips, shuffled captions, degraded clips and noise, as
`audiogen-fast evaluate` does. Then the quantised formats' distributions are compared with those of
float32 (`benchmarks.quality`). Prints the tables of the card, writes one JSON file, and below
`--page` the page to listen to.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import soundfile

from audiogen_fast import AudioGen
from audiogen_fast.evaluation import evaluate, systems
from audiogen_fast.evaluation.results import Report, title_of
from audiogen_fast.evaluation.sources import read_reference
from audiogen_fast.evaluation.systems import Sampling
from audiogen_fast.pretrained import TINY
from benchmarks import quality
from benchmarks.common import ROOT, machine, write_result

WHERE = {"split": "test"}
FORMATS = ("int8", "int4")
CODEC = "tiny codec"
SOUNDS = ("fad", "kad", "kld", "score", "R@10", "caption_R@10", "speed")
COPIES = ("mel_distance", "visqol", "si_sdr")
QUALITY_CLIPS, QUALITY_SECONDS = 12, 4.0


def find(report: Report, row: str, metric: str) -> Any:
    """The value of a metric in a row, whichever encoder it is by."""
    values = report.row(row).values
    return next((v for key, v in values.items() if key.split(":")[0] == metric), None)


def targets(report: Report, kl: dict[str, float]) -> list[dict[str, Any]]:
    """What the model should reach: name, limit, figure, and whether it is met."""

    def value(row: str, metric: str) -> float:
        return find(report, row, metric).value

    shuffled, real = value("shuffled captions", "score"), value("real clips", "score")
    share = (value("tiny", "score") - shuffled) / (real - shuffled)
    rows = [
        ("text score, of the way from shuffled captions to real clips", ">=", 0.6, share),
        ("caption R@10", ">=", 0.5, value("tiny", "caption_R@10")),
        (
            "FAD, real clips with 10 dB noise",
            "<",
            value("10 dB noise", "fad"),
            value("tiny", "fad"),
        ),
        ("codec ViSQOL", ">=", 3.5, value(CODEC, "visqol")),
        *((f"mean KL, {name}, nats", "<=", quality.LIMITS[name], kl[name]) for name in FORMATS),
    ]
    for name in FORMATS:
        rows += [
            (
                f"{title_of(metric)}, {name}, within the interval of float32",
                "in",
                *_interval(report, metric, name),
            )
            for metric in ("fad", "score", "caption_R@10")
        ]
    return [
        {"target": name, "limit": limit, "is": figure, "met": _met(sign, limit, figure)}
        for name, sign, limit, figure in rows
    ]


def _interval(report: Report, metric: str, name: str) -> tuple[list[float], float]:
    own = find(report, "tiny", metric)
    return [own.low, own.high], find(report, f"tiny, {name}", metric).value


def _met(sign: str, limit: Any, figure: float) -> bool:
    if sign == "in":
        return limit[0] <= figure <= limit[1]
    return {">=": figure >= limit, "<=": figure <= limit, "<": figure < limit}[sign]


def table(report: Report, metrics: tuple[str, ...]) -> str:
    """Markdown: rows that have any of the metrics, values with their intervals."""
    keys = [key for key in report.keys if key.split(":")[0] in metrics]
    lines = [
        "| | " + " | ".join(title_of(key) for key in keys) + " |",
        "|---" * (len(keys) + 1) + "|",
    ]
    for row in report.rows:
        cells = [_cell(row.values.get(key)) for key in keys]
        if any(cells):
            lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None or value.value is None:
        return ""
    if value.low is None:
        return f"{value.value:.3g}"
    return f"{value.value:.3g} ({value.low:.3g} to {value.high:.3g})"


def write_sounds(model: AudioGen, manifest: Path, folder: Path, sampling: Sampling) -> None:
    """A sound for every held-out clip, named like it: what `evaluate` makes itself for a model,
    without what it measures of codec and language model, which is the same for all formats."""
    folder.mkdir(parents=True, exist_ok=True)
    made = systems.generate(model, read_reference(manifest, WHERE), "quantised", sampling)
    for clip in made.clips.clips:
        wav = clip.read(model.sample_rate).numpy()
        soundfile.write(folder / f"{Path(clip.name).stem}.wav", wav, model.sample_rate, "FLOAT")


def _progress(stage: str, done: int, total: int) -> None:
    print(f"\r{stage} {done}/{total or '?'}".ljust(78), end="", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=TINY, help=f"(default {TINY})")
    parser.add_argument("--reference", type=Path, default=ROOT / "data" / "corpus")
    parser.add_argument("--page", type=Path, default=ROOT / "build" / "tiny-evaluation")
    parser.add_argument("--cfg-coef", type=float, default=3.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    facts = machine()  # the load average is that before the run
    began = time.perf_counter()
    sampling = Sampling(cfg_coef=args.cfg_coef)
    folders = {name: args.page.with_name(f"{args.page.name}-{name}") for name in FORMATS}
    for name, folder in folders.items():
        model = AudioGen.get_pretrained(args.model, "cpu", quantize=name)
        write_sounds(model, args.reference, folder, sampling)
    report = evaluate(
        args.reference,
        where=WHERE,
        models={"tiny": AudioGen.get_pretrained(args.model, "cpu", dtype="float32")},
        generated={f"tiny, {name}": folder for name, folder in folders.items()},
        sampling=sampling,
        output=args.page,
        device="cpu",
        progress=_progress,
    )
    measured = quality.measure(
        AudioGen.get_pretrained(args.model, "cpu", dtype="float32", engine="eager"),
        FORMATS,
        [args.cfg_coef],
        QUALITY_SECONDS,
        quality.DESCRIPTIONS[:QUALITY_CLIPS],
    )
    # The worse of the two kinds of cache.
    kl = {f: max(r["kl_mean"] for r in measured["results"] if r["weights"] == f) for f in FORMATS}
    reached = targets(report, kl)
    print("\n\n" + table(report, SOUNDS), "\n")
    print(table(report, COPIES), "\n")
    print(table(report, tuple(f"usage_q{k}" for k in range(1, 5))), "\n")
    print(table(report, ("ce", "ppl")), "\n")
    for row in reached:
        print(
            f"{'met   ' if row['met'] else 'MISSED'} {row['target']}: {row['is']:.4g}", row["limit"]
        )
    rows = [
        {"name": row.name, "values": {k: vars(v) for k, v in row.values.items()}}
        for row in report.rows
    ]
    path = write_result(
        "tiny",
        args.out,
        machine=facts,
        seconds=round(time.perf_counter() - began),
        # Places in this checkout as they are in any.
        settings=json.loads(json.dumps(report.settings).replace(f"{ROOT}/", "")),
        notes=report.notes,
        targets=reached,
        rows=rows,
        quality=measured,
    )
    print(f"written to {path}; {args.page / 'index.html'} is to be listened to")


if __name__ == "__main__":
    main()
