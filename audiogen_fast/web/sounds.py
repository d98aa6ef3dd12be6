"""What the web page makes: one sound, given out in pieces while it is made."""

import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audiogen_fast.api import AudioGen
from audiogen_fast.errors import GenerationCancelled, check

CHUNK = 0.5
"""Seconds of sound between two pieces."""
_LARGEST_RANDOM_SEED = 2**32
"""People copy seeds; ten digits are enough of them."""


@dataclass(frozen=True)
class Wishes:
    """What the controls of the page say, as they come: an empty number is None."""

    description: str
    duration: float | None
    top_k: int | None
    top_p: float | None
    temperature: float | None
    cfg_coef: float | None
    greedy: bool
    seed: int | None
    random_seed: bool

    def text(self) -> str | None:
        """The description, or None for a sound without one."""
        return self.description.strip() or None

    def draw(self) -> int:
        """The seed to use."""
        if self.random_seed:
            return secrets.randbelow(_LARGEST_RANDOM_SEED)
        return _filled("seed", self.seed)


@dataclass(frozen=True)
class Made:
    """A sound, or as much of it as there was when it was stopped."""

    wav: Tensor
    """`[C, T]` on the CPU."""
    seed: int
    computing: float
    first: float
    """Seconds until the first piece."""
    stopped: bool


def make_sound(model: AudioGen, wishes: Wishes, stop: threading.Event) -> Iterator[Tensor | Made]:
    """Pieces `[C, n]` of a sound, and at last what they make together.

    Args:
        stop: once it is set, the sound ends at the next step.
    Raises:
        InvalidInputError: one of the wishes is out of its limits.
    """
    model.set_generation_params(**_parameters(model, wishes))
    seed = wishes.draw()
    pieces: list[Tensor] = []
    computing = first = 0.0
    stopped = False
    stream = model.generate_stream(
        [wishes.text()], progress=True, chunk_duration=CHUNK, seed=[seed]
    )
    model.set_custom_progress_callback(lambda *_: not stop.is_set())
    try:
        while True:
            # Not what whoever takes the pieces does with them.
            start = time.perf_counter()
            piece = next(stream, None)
            if piece is not None:
                pieces.append(piece[0].cpu())
            computing += time.perf_counter() - start
            if piece is None:
                break
            first = first or computing
            yield pieces[-1]
    except GenerationCancelled:
        stopped = True
    finally:
        stream.close()
        model.set_custom_progress_callback(None)
    wav = torch.cat(pieces, dim=-1) if pieces else torch.zeros(model.audio_channels, 0)
    yield Made(wav, seed, computing, first, stopped)


def facts(model: AudioGen, made: Made, wishes: Wishes) -> str:
    """A line about a sound."""
    seconds = made.wav.shape[-1] / model.sample_rate
    text = wishes.text()
    parts = ["stopped"] if made.stopped else []
    parts += [
        "unconditional" if text is None else f"“{text}”",
        f"seed {made.seed}",
        f"{seconds:.2f} s of sound in {made.computing:.2f} s",
        f"{seconds / made.computing:.1f} times real time",
        f"first sound after {made.first:.2f} s",
        f"model {model.name}",
        f"device {model.device}",
        f"engine {model.engine.name}",
    ]
    return " · ".join(parts)


def _parameters(model: AudioGen, wishes: Wishes) -> dict[str, Any]:
    """For `set_generation_params`, which checks the values."""
    return {
        "use_sampling": not wishes.greedy,
        "top_k": _filled("top_k", wishes.top_k),
        "top_p": _filled("top_p", wishes.top_p),
        "temperature": _filled("temperature", wishes.temperature),
        "duration": _filled("duration", wishes.duration),
        "cfg_coef": _filled("cfg_coef", wishes.cfg_coef),
        "extend_stride": min(2, model.max_duration / 2),
    }


def _filled(name: str, value: Any) -> Any:
    check(value is not None, f"{name} must be a number, got an empty field")
    return value
