"""What an engine is given, and what an engine is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from audiogen_fast.errors import check
from audiogen_fast.generation.arguments import integer, number, seed_list, seed_value
from audiogen_fast.modules.codebooks_patterns import Pattern
from audiogen_fast.modules.conditioners import ConditionTensors

UNKNOWN = -1  # a code that has not been generated yet
SMALLEST_TEMPERATURE = 1e-6
"""Below it nothing is drawn: float32 logits divided by less can be infinite, and infinite logits
have no softmax."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next codes are chosen."""

    use_sampling: bool = True
    """Draw at random; otherwise take the most likely code."""
    temperature: float = 1.0
    """Divides the logits; below `SMALLEST_TEMPERATURE` the most likely code is taken."""
    top_k: int = 250
    """Draw among the k most likely codes (and those tied with the last); 0 for all of them."""
    top_p: float = 0.0
    """Draw among the most likely codes that together reach this; takes precedence over top_k."""

    def __post_init__(self) -> None:
        plain = {
            "temperature": number("temperature", self.temperature),
            "top_k": integer("top_k", self.top_k, least=0),
            "top_p": number("top_p", self.top_p),
        }
        check(
            0.0 <= plain["temperature"] < float("inf"),
            f"temperature must be a finite number >= 0, got {self.temperature}",
        )
        check(0.0 <= plain["top_p"] <= 1.0, f"top_p must lie in [0, 1], got {self.top_p}")
        for name, value in plain.items():  # a frozen dataclass has no other way
            object.__setattr__(self, name, value)

    @property
    def greedy(self) -> bool:
        """Whether the most likely code is taken; the one place that decides it for all engines."""
        return not self.use_sampling or self.temperature < SMALLEST_TEMPERATURE


@dataclass(frozen=True)
class Keys:
    """Keys of the random draws: one (seed, item) per row of the batch, int64 `[B]` each.

    A row's draws depend on its key and on how many draws it has made, not on the batch.
    """

    seeds: Tensor
    items: Tensor


@dataclass
class RowGroup:
    """Rows that run through the model together.

    `conditions` holds `rows` rows; `active` of them, from the first, have text in their
    cross-attention, which is exactly zero for the others. `mask_padding` leaves padded text slots
    out of the softmax.
    """

    conditions: ConditionTensors
    rows: int
    mask_padding: bool = False


@dataclass
class DecodeJob:
    """One pass of step-by-step decoding.

    Args:
        sequence: int64 `[B, K, S]`, interleaved; `UNKNOWN` where a code is to be generated, the
            special token where the pattern is empty. The engine fills it in place.
        pattern_mask: bool `[K, S]`: where the pattern holds a code.
        start: first step to generate; the steps before are the prompt.
        groups: one group of `B` rows (no guidance), one of `2 B` (conditional rows first), or
            two of `B` (conditional, unconditional).
        cfg_coef: guidance strength, used when there are `2 B` rows.
        sampling, keys: how codes are drawn.
        first_draw: number of the first draw, so that windows of one clip never share draws.
    """

    sequence: Tensor
    pattern_mask: Tensor
    pattern: Pattern
    start: int
    groups: list[RowGroup]
    cfg_coef: float
    sampling: SamplingParams
    keys: Keys
    first_draw: int = 0

    @property
    def total_steps(self) -> int:
        return self.sequence.shape[-1] - self.start


class Engine(Protocol):
    """Fills the sequence of a job."""

    name: str

    def run(self, job: DecodeJob) -> Iterator[int]:
        """Decode; yield, after every step or every few, how many steps are done.

        Closing the iterator stops the work and leaves the model usable.
        """
        ...


def make_keys(
    seed: int | Sequence[int] | Tensor | None,
    generator: torch.Generator | None,
    batch: int,
    device: torch.device,
) -> Keys:
    """Keys of a batch.

    Args:
        seed: an int gives row i the key (seed, i); a list, an array or a tensor gives row i the
            key (seed[i], 0), so that a description's sound does not depend on its place in the
            batch.
        generator: source of one seed when `seed` is None; torch's default one if None.
    """
    seed = seed_list(seed)
    if isinstance(seed, list):
        check(len(seed) == batch, f"seed must have one int per sound ({batch}), got {len(seed)}")
        seeds, items = seed, [0] * batch
    else:
        if seed is None:
            high = 2**62
            device_of_draw = "cpu" if generator is None else generator.device
            seed = int(torch.randint(high, (1,), generator=generator, device=device_of_draw).item())
        seeds, items = [seed] * batch, list(range(batch))
    seeds = [seed_value(value) for value in seeds]
    return Keys(torch.tensor(seeds, device=device), torch.tensor(items, device=device))
