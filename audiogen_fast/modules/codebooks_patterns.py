"""Interleaving patterns: which (timestep, codebook) is modelled at which sequence step.

A pattern is a list over sequence steps of lists of coordinates. Building and reverting sequences
are single gathers through index tables that are computed once per pattern, length and device.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from audiogen_fast.errors import check

# Patterns and tables kept per provider: one per generated length; windows need two.
_CACHE_SIZE = 100


class LayoutCoord(NamedTuple):
    """Timestep `t` of codebook `q`."""

    t: int
    q: int


PatternLayout = list[list[LayoutCoord]]


class Pattern:
    """Layout of K codebooks of T timesteps over S sequence steps.

    Args:
        layout: for every sequence step, the coordinates modelled there. The first step is usually
            empty: it holds the special token that starts the sequence. Coordinates with
            `t >= timesteps` may occur in the tail; they are never filled.
        timesteps: T.
        n_q: K.
    """

    def __init__(self, layout: PatternLayout, timesteps: int, n_q: int):
        check(len(layout) > 0, "layout must have at least one step, got none")
        self.layout, self.timesteps, self.n_q = layout, timesteps, n_q
        self._check_layout()
        self._sequence_table = lru_cache(_CACHE_SIZE)(self._make_sequence_table)
        self._reverse_table = lru_cache(_CACHE_SIZE)(self._make_reverse_table)

    def _check_layout(self) -> None:
        latest = [0] * self.n_q
        for step, coords in enumerate(self.layout):
            codebooks = [coord.q for coord in coords]
            check(len(set(codebooks)) == len(codebooks), f"step {step} holds one codebook twice")
            for coord in coords:
                check(
                    0 <= coord.q < self.n_q,
                    f"step {step} holds codebook {coord.q}, but there are only {self.n_q}",
                )
                check(
                    coord.t >= latest[coord.q],
                    f"codebook {coord.q} goes back in time at step {step}",
                )
                latest[coord.q] = coord.t

    @property
    def num_sequence_steps(self) -> int:
        """Steps after the first one."""
        return len(self.layout) - 1

    @property
    def max_delay(self) -> int:
        """How many timesteps the layout reaches past `timesteps`."""
        last = max((c.t + 1 for coords in self.layout[1:] for c in coords), default=0)
        return last - self.timesteps

    @property
    def valid_layout(self) -> PatternLayout:
        """The layout without its tail of incomplete steps."""
        return self.layout[: len(self.layout) - self.max_delay]

    def starts_with_special_token(self) -> bool:
        return self.layout[0] == []

    def get_sequence_coords_with_timestep(
        self, t: int, q: int | None = None
    ) -> list[tuple[int, LayoutCoord]]:
        """(step, coordinate) of every coordinate with timestep `t` (and codebook `q`)."""
        check(t <= self.timesteps, f"t must be at most {self.timesteps}, got {t}")
        check(q is None or q <= self.n_q, f"q must be at most {self.n_q}, got {q}")
        return [
            (step, coord)
            for step, coords in enumerate(self.layout)
            for coord in coords
            if coord.t == t and (q is None or coord.q == q)
        ]

    def get_steps_with_timestep(self, t: int, q: int | None = None) -> list[int]:
        return [step for step, _ in self.get_sequence_coords_with_timestep(t, q)]

    def get_first_step_with_timesteps(self, t: int, q: int | None = None) -> int | None:
        """The first step that holds timestep `t`, or None."""
        steps = self.get_steps_with_timestep(t, q)
        return steps[0] if steps else None

    @cached_property
    def complete_timesteps(self) -> list[int]:
        """For every sequence step, how many leading timesteps are complete after it."""
        last_step = [0] * self.timesteps
        for step, coords in enumerate(self.layout):
            for coord in coords:
                if coord.t < self.timesteps:
                    last_step[coord.t] = max(last_step[coord.t], step)
        complete, done = [], 0
        for step in range(len(self.layout)):
            while done < self.timesteps and last_step[done] <= step:
                done += 1
            complete.append(done)
        return complete

    def _make_sequence_table(
        self, timesteps: int, n_q: int, keep_only_valid_steps: bool, device: str
    ) -> tuple[Tensor, Tensor]:
        check(
            n_q == self.n_q and timesteps <= self.timesteps,
            f"z must be [B, {self.n_q}, T <= {self.timesteps}], got K={n_q}, T={timesteps}",
        )
        layout = self.valid_layout if keep_only_valid_steps else self.layout
        index = torch.full((n_q, len(layout)), n_q * timesteps, dtype=torch.long)
        for step, coords in enumerate(layout):
            for coord in coords:
                if coord.t < timesteps:
                    index[coord.q, step] = coord.t + coord.q * timesteps
        return index.to(device), (index < n_q * timesteps).to(device)

    def _make_reverse_table(
        self, steps: int, n_q: int, keep_only_valid_steps: bool, is_model_output: bool, device: str
    ) -> tuple[Tensor, Tensor]:
        layout = self.valid_layout if keep_only_valid_steps else self.layout
        check(
            n_q == self.n_q and steps <= len(layout),
            f"s must be [B, {self.n_q}, S <= {len(layout)}], got K={n_q}, S={steps}",
        )
        if is_model_output and self.starts_with_special_token():
            layout = layout[1:]
        index = torch.full((n_q, self.timesteps), n_q * steps, dtype=torch.long)
        for step, coords in enumerate(layout[:steps]):
            for coord in coords:
                if coord.t < self.timesteps:
                    index[coord.q, coord.t] = step + coord.q * steps
        return index.to(device), (index < n_q * steps).to(device)

    def build_pattern_sequence(
        self, z: Tensor, special_token: int, keep_only_valid_steps: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Interleave codes `[B, K, T]` into a sequence.

        Args:
            special_token: fills every place the pattern leaves empty.
            keep_only_valid_steps: leave the tail of incomplete steps away.
        Returns:
            values `[B, K, S]`, gather indexes `[K, S]`, and a mask `[K, S]` of the filled places.
        """
        index, mask = self._sequence_table(
            z.shape[2], z.shape[1], keep_only_valid_steps, str(z.device)
        )
        return _gather(z.reshape(z.shape[0], -1), index, special_token), index, mask

    def revert_pattern_sequence(
        self, s: Tensor, special_token: int, keep_only_valid_steps: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Undo `build_pattern_sequence`: `[B, K, S]` to values `[B, K, T]`, indexes and mask."""
        index, mask = self._reverse_table(
            s.shape[2], s.shape[1], keep_only_valid_steps, False, str(s.device)
        )
        return _gather(s.reshape(s.shape[0], -1), index, special_token), index, mask

    def revert_pattern_logits(
        self, logits: Tensor, special_token: float, keep_only_valid_steps: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Align logits `[B, card, K, S]` with the codes they predict: `[B, card, K, T]`.

        The logits of a step predict the next one; the last step's are dropped.
        """
        B, card, K, S = logits.shape
        index, mask = self._reverse_table(S, K, keep_only_valid_steps, True, str(logits.device))
        return _gather(logits.reshape(B, card, -1), index, special_token), index, mask


def _gather(flat: Tensor, index: Tensor, fill: float) -> Tensor:
    """`flat[..., index]`, where the index one past the end stands for `fill`."""
    return F.pad(flat, (0, 1), value=fill)[..., index]


class CodebooksPatternProvider(ABC):
    """Makes the pattern for a number of timesteps; patterns are cached.

    Args:
        n_q: number of codebooks.
    """

    def __init__(self, n_q: int):
        check(n_q > 0, f"n_q must be positive, got {n_q}")
        self.n_q = n_q
        self._cached = lru_cache(_CACHE_SIZE)(self._make_pattern)

    def get_pattern(self, timesteps: int) -> Pattern:
        """The pattern of `timesteps` frames."""
        check(timesteps >= 0, f"timesteps must not be negative, got {timesteps}")
        return self._cached(timesteps)

    def _make_pattern(self, timesteps: int) -> Pattern:
        return Pattern(self._layout(timesteps), n_q=self.n_q, timesteps=timesteps)

    @abstractmethod
    def _layout(self, timesteps: int) -> PatternLayout: ...


def _delayed(
    timesteps: int, delays: Sequence[int], first: int = 0, q_offset: int = 0
) -> PatternLayout:
    """Steps with codebook q running `delays[q]` behind, from timestep `first` on."""
    return [
        [LayoutCoord(t - d, q + q_offset) for q, d in enumerate(delays) if t - d >= first]
        for t in range(first, timesteps + max(delays))
    ]


def _ascending(name: str, values: Sequence[int], n: int) -> list[int]:
    values = list(values)
    check(
        len(values) == n and sorted(values) == values and all(value >= 0 for value in values),
        f"{name} must be {n} ascending numbers from 0 on, got {values}",
    )
    return values


class DelayedPatternProvider(CodebooksPatternProvider):
    """Codebook q runs `delays[q]` steps behind; AudioGen uses [0, 1, 2, 3].

    With 3 timesteps and delays [0, 1, 2] (`.` is the special token)::

        q0  . 0 1 2 . .
        q1  . . 0 1 2 .
        q2  . . . 0 1 2

    Args:
        delays: ascending; 0, 1, 2, ... by default.
        flatten_first: give each codebook of the first N timesteps a step of its own.
        empty_initial: extra empty steps at the start; a negative number drops the first one too.
    """

    def __init__(
        self,
        n_q: int,
        delays: Sequence[int] | None = None,
        flatten_first: int = 0,
        empty_initial: int = 0,
    ):
        super().__init__(n_q)
        self.delays = _ascending("delays", range(n_q) if delays is None else delays, n_q)
        self.flatten_first, self.empty_initial = flatten_first, empty_initial

    def _layout(self, timesteps: int) -> PatternLayout:
        layout: PatternLayout = [[] for _ in range(1 + self.empty_initial)]
        for t in range(min(timesteps, self.flatten_first)):
            layout += [[LayoutCoord(t, q)] for q in range(self.n_q)]
        return layout + _delayed(timesteps, self.delays, self.flatten_first)


class ParallelPatternProvider(DelayedPatternProvider):
    """All codebooks of a timestep in one step."""

    def __init__(self, n_q: int, empty_initial: int = 0):
        super().__init__(n_q, [0] * n_q, empty_initial=empty_initial)


class UnrolledPatternProvider(CodebooksPatternProvider):
    """Codebooks of a timestep spread over several steps.

    Args:
        flattening: inner step of each codebook, ascending; 0, 1, 2, ... by default.
        delays: timesteps each codebook runs behind, ascending; codebooks that share an inner step
            must share the delay. None by default.
    """

    def __init__(
        self,
        n_q: int,
        flattening: Sequence[int] | None = None,
        delays: Sequence[int] | None = None,
    ):
        super().__init__(n_q)
        self.flattening = _ascending(
            "flattening", range(n_q) if flattening is None else flattening, n_q
        )
        self.delays = _ascending("delays", [0] * n_q if delays is None else delays, n_q)
        self._groups: dict[int, tuple[list[int], int]] = {}
        for q, (inner, delay) in enumerate(zip(self.flattening, self.delays, strict=True)):
            codebooks, shared = self._groups.setdefault(inner, ([], delay))
            check(
                shared == delay,
                f"codebooks at inner step {inner} must have one delay, got {shared} and {delay}",
            )
            codebooks.append(q)
        self.max_delay = max(self.delays)

    @property
    def _num_inner_steps(self) -> int:
        return max(self.flattening) + 1

    def num_virtual_steps(self, timesteps: int) -> int:
        """Sequence steps of `timesteps` frames without the delays."""
        return timesteps * self._num_inner_steps + 1

    def _layout(self, timesteps: int) -> PatternLayout:
        end = timesteps + self.max_delay
        timed: list[tuple[int, list[LayoutCoord]]] = [(-1, [])]
        for t in range(end):
            for inner in range(self._num_inner_steps):
                codebooks, delay = self._groups.get(inner, ([], 0))
                if t + delay < end:
                    timed.append((t + delay, [LayoutCoord(t, q) for q in codebooks]))
        return [coords for _, coords in sorted(timed)]


class CoarseFirstPattern(CodebooksPatternProvider):
    """All of codebook 0, then the others together, with delays.

    Args:
        delays: of codebooks 1 and up, ascending; none by default.
    """

    def __init__(self, n_q: int, delays: Sequence[int] | None = None):
        super().__init__(n_q)
        self.delays = _ascending("delays", [0] * (n_q - 1) if delays is None else delays, n_q - 1)

    def _layout(self, timesteps: int) -> PatternLayout:
        coarse: PatternLayout = [[LayoutCoord(t, 0)] for t in range(timesteps)]
        return [[]] + coarse + _delayed(timesteps, self.delays, q_offset=1)


class MusicLMPattern(CodebooksPatternProvider):
    """Groups of codebooks one after another, each group fully flattened.

    Args:
        group_by: codebooks per group.
    """

    def __init__(self, n_q: int, group_by: int = 2):
        super().__init__(n_q)
        check(
            group_by > 0 and n_q % group_by == 0,
            f"group_by must divide n_q={n_q}, got {group_by}",
        )
        self.group_by = group_by

    def _layout(self, timesteps: int) -> PatternLayout:
        layout: PatternLayout = [[]]
        for first in range(0, self.n_q, self.group_by):
            for t in range(timesteps):
                layout += [[LayoutCoord(t, q)] for q in range(first, first + self.group_by)]
        return layout
