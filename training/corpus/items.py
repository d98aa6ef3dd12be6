"""Training items of a few seconds, made of the short sounds of a corpus.

    python -m audiogen_fast.training.corpus.items CORPUS OUT [--count 6000] [--where split=train]

Half of the sounds are shorter than a second. An item takes one caption and plays sounds of that
caption after each other until its time is full; some items go on with a second caption ("a dog
barking, then rain falling"), some have one in the background ("a dog barking with rain falling in
the background"), mixed as the training augmentation mixes (`training.data.mixing`). Some captions
are worded otherwise, "dog barking" or "the sound of a dog barking". Captions are drawn by the
square root of how many sounds they have: neither the common ones alone nor each rare one as often
as those. So that few sounds are not learnt by heart, `--speed` also plays each faster or slower (Ko
et al., "Audio augmentation for speech recognition", 2015), and `--equalizer` raises and lowers its
octaves, as other microphones and rooms would.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from audiogen_fast.data.audio import audio_read
from audiogen_fast.data.resample import resample_frac
from audiogen_fast.errors import AudioGenFastError, check
from audiogen_fast.training.data.captions import Captions
from audiogen_fast.training.data.containers import Archives
from audiogen_fast.training.data.manifest import (
    Manifest,
    conditions,
    read_manifest,
    write_manifest,
)
from audiogen_fast.training.data.mixing import mix

_PEAK = 0.89
_GAP_SECONDS = 0.3
"""Longest pause between two sounds of one item."""
_BACKGROUND_DB = (4, 12)
"""Level of the sound in front above the one behind it; an integer, the upper end excluded."""
_LEVEL_DB = (-24, -16)
_SPEED_STEPS = 16
"""Speeds are multiples of a sixteenth, about a semitone: fractions with short filters."""
_MAX_EQUALIZER_DB = 24


@dataclass(frozen=True)
class ItemsConfig:
    """What items are like."""

    count: int = 6000
    min_seconds: float = 2.0
    max_seconds: float = 4.0
    then: float = 0.15
    """Share of items with two captions after each other."""
    background: float = 0.15
    """Share of items with one caption behind the other."""
    worded: float = 0.3
    """Share of items whose caption is worded otherwise."""
    speed: float = 0.0
    """Part by which a sound may be faster or slower, and its pitch with it."""
    equalizer: float = 0.0
    """Most decibels by which octaves are raised or lowered, drawn for each caption of an item."""
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.count >= 1, f"count must be at least 1, got {self.count}")
        check(
            0 < self.min_seconds <= self.max_seconds,
            "min_seconds must be positive and at most max_seconds, got "
            f"{self.min_seconds} and {self.max_seconds}",
        )
        check(0 <= self.worded <= 1, f"worded must lie in 0..1, got {self.worded}")
        check(
            self.speed == 0 or 1 / _SPEED_STEPS <= self.speed < 1,
            f"speed must be 0, or at least 1/{_SPEED_STEPS} and less than 1, got {self.speed}",
        )
        check(
            0 <= self.equalizer <= _MAX_EQUALIZER_DB,
            f"equalizer must lie in 0..{_MAX_EQUALIZER_DB} dB, got {self.equalizer}",
        )
        shares = (self.then, self.background)
        check(
            all(share >= 0 for share in shares) and sum(shares) <= 1,
            f"then and background must be shares that add up to at most 1, got {shares}",
        )


class ItemMaker:
    """Draws items from the sounds of a manifest, all of one sample rate, kept in memory."""

    def __init__(self, manifest: Manifest, config: ItemsConfig):
        self.config = config
        self.sounds: dict[str, list[np.ndarray]] = defaultdict(list)
        captions, archives, rates = Captions(lowercase=False), Archives(), set()
        for meta in manifest:
            wav, rate = audio_read(meta.path)
            texts, _ = captions.all(meta, archives)
            check(bool(texts), f"{meta.path}: its description is empty")
            self.sounds[texts[0]].append(wav.mean(0).numpy())
            rates.add(rate)
        check(len(rates) == 1, f"manifest must have sounds of one sample rate, got {sorted(rates)}")
        self.sample_rate = rates.pop()
        self.steps = int(config.speed * _SPEED_STEPS)
        self._played: dict[tuple[str, int, int], np.ndarray] = {}
        self.captions = sorted(self.sounds)
        weights = np.sqrt([len(self.sounds[caption]) for caption in self.captions])
        self.shares = weights / weights.sum()

    def item(self, index: int) -> tuple[np.ndarray, str]:
        """Samples and caption of an item, the same at every call: float32, peak below 1."""
        wav, caption = self._item(index)
        # A generator of its own: the wording changes no sound.
        rng = np.random.default_rng((self.config.seed, index, 1))
        return wav, reworded(caption, rng) if rng.random() < self.config.worded else caption

    def _item(self, index: int) -> tuple[np.ndarray, str]:
        config = self.config
        rng = np.random.default_rng((config.seed, index))
        seconds = rng.uniform(config.min_seconds, config.max_seconds)
        samples = int(seconds * self.sample_rate)
        kind = rng.random()
        first = self._caption(rng)
        if kind < config.then and len(self.captions) > 1:
            second = self._caption(rng, first)
            share = int(samples * rng.uniform(0.35, 0.65))
            parts = (self._filled(first, share, rng), self._filled(second, samples - share, rng))
            return np.concatenate(parts), f"{first}, then {second}"
        wav = self._filled(first, samples, rng)
        if kind < config.then + config.background and len(self.captions) > 1:
            second = self._caption(rng, first)
            pair = [torch.from_numpy(w)[None] for w in (wav, self._filled(second, samples, rng))]
            ratio, level = rng.integers(*_BACKGROUND_DB), rng.integers(*_LEVEL_DB)
            mixed = mix(*pair, float(ratio), 0, torch.tensor([float(level)]))[0]
            return mixed.numpy(), f"{first} with {second} in the background"
        return wav, first

    def _caption(self, rng: np.random.Generator, other: str | None = None) -> str:
        while (caption := str(rng.choice(self.captions, p=self.shares))) == other:
            pass
        return caption

    def _filled(self, caption: str, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Sounds of a caption after each other, each once before any comes again."""
        parts: list[np.ndarray] = []
        length = 0
        while length < samples:
            for number in rng.permutation(len(self.sounds[caption])):
                sound = self._play(caption, int(number), rng)
                if length == 0 and len(sound) > samples:
                    start = int(rng.integers(len(sound) - samples + 1))
                    sound = sound[start:]
                gap = np.zeros(int(rng.uniform(0, _GAP_SECONDS) * self.sample_rate), np.float32)
                parts += [sound, gap]
                length += len(sound) + len(gap)
                if length >= samples:
                    break
        wav = np.concatenate(parts)[:samples]
        if self.config.equalizer > 0:
            wav = equalized(wav, self.sample_rate, self.config.equalizer, rng)
        return (wav * (_PEAK / max(np.abs(wav).max(), 1e-4))).astype(np.float32)

    def _play(self, caption: str, number: int, rng: np.random.Generator) -> np.ndarray:
        """A sound of a caption, at some speed."""
        sound = self.sounds[caption][number]
        if self.steps == 0:
            return sound
        step = int(rng.integers(-self.steps, self.steps + 1))
        key = (caption, number, step)
        if key not in self._played:
            rates = (_SPEED_STEPS + step, _SPEED_STEPS)
            self._played[key] = resample_frac(torch.from_numpy(sound), *rates).numpy()
        return self._played[key]


def equalized(
    wav: np.ndarray, sample_rate: int, decibels: float, rng: np.random.Generator
) -> np.ndarray:
    """The sound `[T]` with its octaves raised or lowered by up to so many decibels each.

    The gain is drawn at the octaves from half the sample rate down to some 60 Hz, and goes straight
    from one to the next over the logarithm of frequency, turns of the lowest octaves rounded off.
    No phase is changed, and nothing spreads by more than 16 ms.
    """
    octaves = int(np.log2(sample_rate / 2 / 60))
    gains = rng.uniform(-decibels, decibels, octaves + 1)
    length = sample_rate // 32 // 2 * 2 + 1
    frequencies = np.maximum(np.fft.rfftfreq(length, 0.5), 1e-9)  # the highest is 1
    curve = 10 ** (np.interp(np.log2(frequencies), np.arange(-octaves, 1), gains) / 20)
    taps = np.fft.fftshift(np.fft.irfft(curve, length)) * np.hanning(length + 2)[1:-1]
    return np.convolve(wav, taps)[length // 2 :][: len(wav)]


def reworded(caption: str, rng: np.random.Generator) -> str:
    """The caption without its articles, or as "the sound of" it."""
    if rng.random() < 0.5 and not caption.startswith("the sound of"):
        return f"the sound of {caption}"
    words = [word for word in caption.split() if word not in ("a", "an", "the")]
    return " ".join(words) or caption


def write_items(
    manifest: Manifest,
    output: Path,
    config: ItemsConfig,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict]:
    """Write items as `output/audio/*.flac` with a manifest; returns its rows."""
    maker = ItemMaker(manifest, config)
    (output / "audio").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(config.count):
        wav, caption = maker.item(index)
        name = f"audio/{index:06d}.flac"
        soundfile.write(output / name, wav, maker.sample_rate, "PCM_16")
        rate = maker.sample_rate
        rows.append(
            {"path": name, "caption": caption, "duration": len(wav) / rate, "sample_rate": rate}
        )
        if progress is not None:
            progress(index + 1, config.count)
    write_manifest(output / "manifest.csv", rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--where", nargs="*", default=["split=train"], metavar="COLUMN=VALUE")
    parser.add_argument("--count", type=int, default=ItemsConfig.count)
    parser.add_argument("--seconds", type=float, nargs=2, default=(2.0, 4.0))
    parser.add_argument(
        "--speed",
        type=float,
        default=ItemsConfig.speed,
        metavar="SHARE",
        help="play each sound up to this much faster or slower, such as 0.125",
    )
    parser.add_argument(
        "--equalizer",
        type=float,
        default=ItemsConfig.equalizer,
        metavar="DB",
        help="raise and lower the octaves of the sounds by up to this, such as 6",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    def progress(done: int, total: int) -> None:
        if done % 500 == 0 or done == total:
            print(f"{done}/{total} items", flush=True)

    try:
        config = ItemsConfig(
            args.count, *args.seconds, speed=args.speed, equalizer=args.equalizer, seed=args.seed
        )
        manifest = read_manifest(args.corpus, where=conditions(args.where))
        rows = write_items(manifest, args.output, config, progress)
    except AudioGenFastError as error:
        parser.error(str(error))
    print(f"{args.output}: {sum(row['duration'] for row in rows) / 60:.0f} min")


if __name__ == "__main__":
    main()
