"""How long a training step waits for its data: a folder of thousands of recordings.

    python -m benchmarks.data_stream --folder DISK [--files 4000] [--workers 2] [--out FILE]

Writes recordings of 2 to 20 s as wav, flac, ogg and mp3, mono and stereo, at 16, 22.05, 44.1 and
48 kHz to a folder in `DISK`, makes a manifest of it, and reads batches of 10 s segments, mixed:

- `streaming`: every step takes `--step` seconds without the CPU, as one on a GPU does; how long
  the next batch is waited for after it. The first batches, for which the workers have to start,
  are left out.
- `audio_seconds_per_second`: without such steps, how much can be read.
- `audio_seconds_per_cpu_second`: the same for each second of processor time of one core, in this
  process; other programs hardly matter to this figure.
"""

import argparse
import itertools
import shutil
import tempfile
import time
from pathlib import Path

import torch

from audiogen_fast.data.audio import audio_write
from audiogen_fast.training.data import (
    DatasetConfig,
    Loader,
    MixingConfig,
    SoundDataset,
    read_manifest,
    write_manifest,
)
from audiogen_fast.training.data.probe import probe_folder
from benchmarks.common import machine, summary, write_result

SEGMENT = 10.0
LENGTHS = (2, 6, 20)
KINDS = list(
    itertools.product(("wav", "flac", "ogg", "mp3"), (1, 2), (16_000, 22_050, 44_100, 48_000))
)


def make_folder(folder: Path, files: int) -> None:
    """Each kind is encoded once per length, and copied; a copy is read like any other file."""
    made = []
    generator = torch.Generator().manual_seed(0)
    for seconds in LENGTHS:
        for format, channels, rate in KINDS:
            wav = torch.randn(channels, seconds * rate, generator=generator) * 0.1
            stem = folder / f"{seconds}-{channels}-{rate}"
            made.append(audio_write(stem, wav, rate, format, strategy="clip", log_clipping=False))
    for number in range(files):
        source = made[number % len(made)]
        target = folder / f"{number % 100:02d}" / f"{number:06d}{source.suffix}"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    for path in made:
        path.unlink()


def waits(loader: Loader, steps: int, step_seconds: float, skip: int) -> list[float]:
    seconds = []
    for number, _ in enumerate(itertools.islice(loader.forever(), skip + steps)):
        if number >= skip:
            seconds.append(loader.wait_seconds)
        time.sleep(step_seconds)
    return seconds


def run(args: argparse.Namespace, folder: Path) -> dict:
    start = time.perf_counter()
    found = probe_folder(folder)
    manifest = folder / "data.jsonl"
    write_manifest(manifest, found.rows)
    probing = time.perf_counter() - start
    config = DatasetConfig(
        segment_duration=SEGMENT,
        num_samples=100 * args.batch_size,
        require_description=False,
        mixing=MixingConfig(aug_p=0.5),
    )

    def loader(workers: int) -> Loader:
        dataset = SoundDataset(read_manifest(manifest), config)
        return Loader(dataset, args.batch_size, num_workers=workers)

    streaming = loader(args.workers)
    waited = waits(streaming, args.steps, args.step, skip=args.workers * 4)
    streaming.close()
    unpaced = loader(args.workers)
    skip = args.workers * 4  # what was read ahead before the clock starts
    batches = unpaced.forever()
    for _ in range(skip + 1):
        next(batches)
    start = time.perf_counter()
    for _ in range(args.steps):
        next(batches)
    seconds = time.perf_counter() - start
    unpaced.close()
    torch.set_num_threads(1)
    alone = loader(0).forever()
    next(alone)
    start = time.process_time()
    for _ in range(10):
        next(alone)
    processor = time.process_time() - start
    return {
        "files_per_second": round(len(found.rows) / probing, 1),
        "streaming": summary(waited)
        | {"max_ms": round(max(waited) * 1e3, 3), "share": sum(waited) / (args.steps * args.step)},
        "audio_seconds_per_cpu_second": round(10 * args.batch_size * SEGMENT / processor, 1),
        "audio_seconds_per_second": round(args.steps * args.batch_size * SEGMENT / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where to write the recordings (default: the system's)")
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--step", type=float, default=0.5, help="seconds of a step (default 0.5)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        make_folder(Path(folder), args.files)
        result = run(args, Path(folder))
    settings = {k: v for k, v in vars(args).items() if k not in ("folder", "out")}
    path = write_result("data_stream", args.out, machine=before, settings=settings, **result)
    waited = result["streaming"]
    print(
        f"{args.files} files, {args.workers} workers, {args.batch_size} x {SEGMENT:.0f} s in a "
        f"step of {args.step} s: wait {waited['median_ms']} ms (median), {waited['max_ms']} ms "
        f"(most), {waited['share']:.1%} of the time; {result['audio_seconds_per_second']} s of "
        f"audio a second can be read, {result['audio_seconds_per_cpu_second']} s with a second of "
        f"one core; {result['files_per_second']} files a second listed; {path}"
    )


if __name__ == "__main__":
    main()
