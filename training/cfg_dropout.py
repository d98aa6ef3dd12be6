"""Dropout of conditions, drawn from the number of the update alone.

A draw depends on the seed, the update and the sample's place in the whole batch, so it is the same
on any number of processes, in any split into parts, and after a resumption, with nothing to save.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from audiogen_fast.modules.conditioners import ConditioningAttributes

_GUIDANCE, _ATTRIBUTES = 1, 2


def kept_conditions(
    seed: int, update: int, batch: int, p: float, per_sample: bool = True
) -> np.ndarray:
    """Which samples of the whole batch keep their text: bool `[batch]`.

    Args:
        p: probability of training without the text (Ho and Salimans 2022, algorithm 1).
        per_sample: one draw for each; otherwise one for all, as in the original.
    """
    rng = np.random.default_rng((_GUIDANCE, seed, update))
    draws = rng.random(batch if per_sample else 1)
    return np.broadcast_to(draws >= p, (batch,))


def kept_attributes(
    seed: int, update: int, batch: int, p: Mapping[str, float], per_sample: bool = True
) -> dict[str, np.ndarray]:
    """The same for each attribute by itself: bool `[batch]` by name."""
    rng = np.random.default_rng((_ATTRIBUTES, seed, update))
    size = batch if per_sample else 1
    return {name: np.broadcast_to(rng.random(size) >= p[name], (batch,)) for name in sorted(p)}


def drop(
    conditions: Sequence[ConditioningAttributes],
    kept: np.ndarray,
    attributes: Mapping[str, np.ndarray],
) -> list[ConditioningAttributes]:
    """The samples without what was dropped; the arrays are of these samples."""
    dropped = []
    for row, sample in enumerate(conditions):
        text = {
            name: value if kept[row] and attributes.get(name, kept)[row] else None
            for name, value in sample.text.items()
        }
        dropped.append(replace(sample, text=text))
    return dropped
