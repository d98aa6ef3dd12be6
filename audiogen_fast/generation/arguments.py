"""Checks of what a caller passes to `AudioGen`; all raise `InvalidInputError`."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from audiogen_fast.data.audio_utils import convert_audio
from audiogen_fast.errors import InvalidInputError, check
from audiogen_fast.modules.conditioners import ConditioningAttributes

MAX_DURATION = 3600.0
"""Longest clip in seconds that a single call makes."""


def number(name: str, value: Any) -> float:
    """The argument `name` as a float: a Python or numpy number, or a tensor that is one."""
    try:
        if isinstance(value, str | bytes):  # which float() would read
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise InvalidInputError(f"{name} must be a number, got {value!r}") from None


def integer(name: str, value: Any, least: int) -> int:
    """The argument `name`, an int of any library, as one of Python that is at least `least`."""
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    check(found is not None and found >= least, f"{name} must be an int >= {least}, got {value!r}")
    return found


def duration_seconds(value: Any) -> float:
    """The argument `duration`."""
    duration = number("duration", value)
    check(
        math.isfinite(duration) and 0 < duration <= MAX_DURATION,
        f"duration must lie in (0, {MAX_DURATION:g}] seconds, got {value}",
    )
    return duration


def guidance_strength(value: Any) -> float | None:
    """The argument `cfg_coef`; None, the model's own strength, stays None."""
    if value is None:
        return None
    strength = number("cfg_coef", value)
    check(math.isfinite(strength), f"cfg_coef must be a finite number or None, got {value}")
    return strength


def prompt_audio(prompt: Any, sample_rate: Any, model_rate: int, channels: int) -> Tensor:
    """The prompt `[B, C, T]` at the model's rate and channels.

    Args:
        prompt: `[B, C, T]`, or `[C, T]` for one.
        sample_rate: of the prompt.
    """
    check(
        isinstance(prompt, Tensor),
        f"prompt must be a torch tensor [B, C, T], got {type(prompt).__name__}",
    )
    if prompt.dim() == 2:
        prompt = prompt[None]
    check(
        prompt.dim() == 3,
        "prompt should have 3 dimensions: [B, C, T] (C = 1), or 2 for a single one, got "
        f"{tuple(prompt.shape)}",
    )
    check(
        prompt.is_floating_point() and prompt.numel() > 0,
        "prompt must be floating-point audio with at least one sample, got "
        f"{prompt.dtype} {tuple(prompt.shape)}",
    )
    check(bool(torch.isfinite(prompt).all()), "prompt must be finite, got NaN or infinite")
    check(sample_rate is not None, "prompt_sample_rate must be given with a prompt, got None")
    rate = number("prompt_sample_rate", sample_rate)
    check(
        math.isfinite(rate) and rate == int(rate) and rate > 0,
        f"prompt_sample_rate must be a positive number of Hz, got {sample_rate}",
    )
    converted = convert_audio(prompt, int(rate), model_rate, channels)
    check(
        converted.shape[-1] > 0,
        f"prompt must have at least one sample at the model's {model_rate} Hz, got "
        f"{prompt.shape[-1]} at {int(rate)} Hz",
    )
    return converted


def description_attributes(descriptions: Any) -> list[ConditioningAttributes]:
    """What the model's conditioners take for these texts."""
    check(
        not isinstance(descriptions, str | bytes),
        f"descriptions must be a list of texts, got the bare string {descriptions!r}; "
        "pass [description]",
    )
    try:
        descriptions = list(descriptions)
    except TypeError:
        raise InvalidInputError(
            f"descriptions must be a list of texts, got {type(descriptions).__name__}"
        ) from None
    check(len(descriptions) > 0, "descriptions must hold at least one text, got none")
    for index, text in enumerate(descriptions):
        check(
            text is None or isinstance(text, str),
            f"descriptions[{index}] must be a text or None, got {type(text).__name__}",
        )
        check(
            text is None or _is_unicode(text),
            f"descriptions[{index}] must be Unicode text, got half of a surrogate pair in {text!r}",
        )
    return [ConditioningAttributes(text={"description": text}) for text in descriptions]


def _is_unicode(text: str) -> bool:
    """Python's strings may hold surrogates, which no encoding and no tokenizer has."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def seed_list(seed: Any) -> int | list:
    """One seed as it is, or a list of those in a sequence, array or tensor."""
    if hasattr(seed, "tolist"):  # of numpy or torch; with no dimension it is a number
        return seed.tolist()
    if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
        return list(seed)
    return seed


def seed_value(value: Any) -> int:
    """One 64-bit seed, unsigned ones as the signed with the same bits."""
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    check(
        found is not None and -(2**63) <= found < 2**64,
        f"seed must be an int in -2^63..2^64 - 1, got {value!r}",
    )
    return found - 2**64 if found >= 2**63 else found
