"""The small copy of the corpus that lies in the source folder, for when packages cannot be had.

    python -m audiogen_fast.training.corpus.subset CORPUS OUT

Takes from a corpus that `build` made the sounds under free licences that were recorded at 16 kHz or
more, at most eight of a caption and four seconds of each, and writes them as Ogg Opus.
"""

import argparse
from collections import Counter
from pathlib import Path

import soundfile

from audiogen_fast.training.corpus.build import attribution
from audiogen_fast.training.corpus.packages import FREE
from audiogen_fast.training.data.manifest import read_manifest, write_manifest

SUBSET = Path(__file__).with_name("subset")
"""Of this source folder; wheels have none."""
_MAX_SECONDS, _MAX_PER_CAPTION, _MIN_RATE = 4.0, 8, 16_000


def subset(corpus: Path, output: Path) -> list[dict]:
    """Write the copy; returns the rows of its manifest."""
    (output / "audio").mkdir(parents=True, exist_ok=True)
    captions: Counter[str] = Counter()
    rows = []
    for meta in read_manifest(corpus):
        row = {"path": ""} | dict(meta.extra)
        caption = row["caption"]
        if row["licence"] not in FREE or int(row["native_sample_rate"]) < _MIN_RATE:
            continue
        captions[caption] += 1
        if captions[caption] > _MAX_PER_CAPTION:
            continue
        rate = meta.sample_rate
        pcm, _ = soundfile.read(meta.path, frames=int(_MAX_SECONDS * rate), dtype="int16")
        name = f"audio/{Path(meta.path).stem}.opus"
        soundfile.write(output / name, pcm, rate, format="OGG", subtype="OPUS")
        rows.append(row | {"path": name, "duration": len(pcm) / rate, "sample_rate": rate})
    write_manifest(output / "manifest.csv", rows)
    (output / "ATTRIBUTION.md").write_text(attribution(rows), "utf-8")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    rows = subset(args.corpus, args.output)
    seconds = sum(row["duration"] for row in rows)
    print(f"{args.output}: {len(rows)} sounds, {seconds:.0f} s")
    print(dict(Counter(row["split"] for row in rows)))


if __name__ == "__main__":
    main()
