"""What a command line asks for: one item per sound, checked before any model is loaded."""

import argparse
import hashlib
import math
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiogen_fast.data.audio import audio_info
from audiogen_fast.errors import InvalidInputError, check

OF_ONE_SOUND = ("description", "seed", "prompt_sha256")
"""Settings that differ between the sounds of one run."""
_SLUG_LENGTH = 48


@dataclass(frozen=True)
class Item:
    """One sound to make."""

    name: str
    """Of the file."""
    description: str | None
    seed: int
    settings: dict[str, Any]
    """Everything that decides how it sounds; the same settings give the same file."""
    prompt: Path | None = None
    """Recording to continue."""


def items_to_generate(args: argparse.Namespace) -> list[Item]:
    """One item per description of the arguments and of `--file`."""
    descriptions = list(args.descriptions)
    if args.file is not None:
        descriptions += _read_descriptions(args.file)
    check(len(descriptions) > 0, "descriptions must hold at least one text, got none")
    names = _names(descriptions, args.format)
    seeds = _seeds(args.seed, len(descriptions))
    shared = _shared_settings(args)
    return [
        Item(name, text, seed, shared | {"description": text, "seed": seed})
        for name, text, seed in zip(names, descriptions, seeds, strict=True)
    ]


def items_to_continue(args: argparse.Namespace) -> list[Item]:
    """One item per recording."""
    paths = [Path(path) for path in args.audio]
    given = args.description or [None]
    descriptions = given * len(paths) if len(given) == 1 else given
    check(
        len(descriptions) == len(paths),
        f"--description must be given once or once per recording ({len(paths)}), got {len(given)}",
    )
    names = _names([path.stem for path in paths], args.format)
    seeds = _seeds(args.seed, len(paths))
    shared = _shared_settings(args) | {"prompt_duration": args.prompt_duration}
    items = []
    for name, path, text, seed in zip(names, paths, descriptions, seeds, strict=True):
        _check_prompt(path, args.prompt_duration, args.duration)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        own = {"description": text, "seed": seed, "prompt_sha256": content}
        items.append(Item(name, text, seed, shared | own, prompt=path))
    return items


def _check_prompt(path: Path, prompt_duration: float | None, duration: float) -> None:
    seconds = audio_info(path).duration
    if prompt_duration is not None:
        seconds = min(seconds, prompt_duration)
    check(
        seconds < duration,
        f"{path}: the {seconds:.2f} s to continue must be shorter than --duration, got "
        f"{duration:g} s; --prompt-duration takes less of it",
    )


def check_prompt_frames(
    item: Item, sample_rate: int, frame_rate: float, duration: float, window: float
) -> None:
    """Whether the model can continue the item's recording, which its seconds alone do not tell.

    Args:
        sample_rate, frame_rate: of the model.
        duration, window: seconds of the sound, and of one window of the model.
    Raises:
        InvalidInputError: it has no sample, or as many frames as the sound or a window, or more.
    """
    info, most = audio_info(item.prompt), item.settings["prompt_duration"]
    given = round(info.duration * info.sample_rate)
    if most is not None:
        given = min(given, int(most * info.sample_rate))
    samples = sample_rate * given // info.sample_rate
    check(
        samples > 0,
        f"{item.prompt}: there must be something to continue, got {given} samples at "
        f"{info.sample_rate} Hz; --prompt-duration says how much of it is taken",
    )
    # The codec rounds up to whole frames; the margin is for rates that are no whole number.
    frames = math.ceil(samples / sample_rate * frame_rate - 1e-6)
    limit = int(min(duration, window) * frame_rate)
    what = f"--duration {duration:g}" if duration <= window else f"the model's window of {window:g}"
    check(
        frames < limit,
        f"{item.prompt}: the {samples / sample_rate:.2f} s to continue ({frames} frames) must be "
        f"shorter than {what} s ({limit} frames); --prompt-duration takes less of it",
    )


def _read_descriptions(file: str) -> list[str]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"--file must be UTF-8 text, got {file}: {error}") from error
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _seeds(given: list[int], count: int) -> list[int]:
    """Seed N + i of sound i, or the i-th of a list: a file can be made again alone."""
    if len(given) == 1:
        given = [given[0] + index for index in range(count)]
    check(
        len(given) == count,
        f"--seed must be one int or one per sound ({count}), got {len(given)}",
    )
    for seed in given:
        check(-(2**63) <= seed < 2**64, f"--seed must lie in -2^63..2^64 - 1, got {seed}")
    return given


def _names(titles: Sequence[str], suffix: str) -> list[str]:
    """`00-a-dog-barking.wav`: unique by the number, and safe on every file system."""
    digits = max(2, len(str(len(titles) - 1)))
    return [f"{index:0{digits}}-{slug(title)}.{suffix}" for index, title in enumerate(titles)]


def slug(text: str) -> str:
    """Lower-case ASCII letters and digits of a text, joined by hyphens; `sound` if it has none."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", plain.replace("'", ""))
    joined = "-".join(words) or "sound"
    if len(joined) <= _SLUG_LENGTH:
        return joined
    # back to the end of a word, unless the first one is too long already
    return joined[: _SLUG_LENGTH + 1].rpartition("-")[0] or joined[:_SLUG_LENGTH]


def _shared_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Options that decide how every sound of this run sounds.

    Device, engine and batch size are not among them: the same seed gives the same sound on all.
    """
    model = args.model
    if Path(model).exists():
        model = str(Path(model).resolve())
    names = (
        *(
            "revision",
            "dtype",
            "quantize",
            "duration",
            "top_k",
            "top_p",
            "temperature",
            "greedy",
            "cfg_coef",
        ),
        *("two_step_cfg", "extend_stride", "batch_invariant", "format", "strategy"),
    )
    return {"model": model} | {name: getattr(args, name) for name in names}
