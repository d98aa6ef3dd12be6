"""Everything a decode changes, in device tensors that never move: what a CUDA graph needs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audiogen_fast.errors import check
from audiogen_fast.generation.cuda_graph.weights import ModelSize
from audiogen_fast.generation.job import UNKNOWN, SamplingParams

# Positions a step may attend to: one graph for each, so that early steps read short caches.
RANGES = (128, 256, 384, 512)


def position_range(positions: int) -> int:
    """The smallest range that holds so many positions; past the last one, a multiple of it."""
    for limit in RANGES:
        if positions <= limit:
            return limit
    return -(-positions // RANGES[-1]) * RANGES[-1]


def _bucket(number: int, smallest: int, steps_of: int) -> int:
    """`number` rounded up to a power of two, and to a multiple of `steps_of` past that."""
    if number > steps_of:
        return -(-number // steps_of) * steps_of
    return max(smallest, 1 << (number - 1).bit_length())


@dataclass(frozen=True, kw_only=True)
class StateShape:
    """Capacities of a state: graphs are captured for exactly one shape."""

    slots: int
    """Sounds that can be decoded at the same time (B)."""
    rows: int
    """Rows of the model (R): `slots`, or twice that with guidance. Row b is slot b with its text,
    row `slots + b` the same slot without."""
    text_rows: int
    """Rows, from the first, that have cross-attention: 0, `slots` or `rows`."""
    text: int
    """Slots of cached text keys and values of a row (L)."""
    positions: int
    """Steps of a sequence, and positions of the caches (S = C)."""

    @staticmethod
    def bucketed(
        sounds: int, guided: bool, text: int, positions: int, text_for_all: bool = False
    ) -> "StateShape":
        """The shape that serves such a job and similar ones.

        Args:
            sounds: how many sounds are decoded.
            guided: whether each has a second row without text.
            text: text slots of the longest row; 0 for no cross-attention at all.
            positions: steps of the longest sequence.
            text_for_all: the rows without text have cross-attention too, because a bias makes it
                something else than zero.
        """
        slots = _bucket(sounds, 1, 64)
        rows = 2 * slots if guided else slots
        text_rows = 0 if text == 0 else rows if text_for_all else slots
        return StateShape(
            slots=slots,
            rows=rows,
            text_rows=text_rows,
            text=_bucket(text, 16, 64) if text else 0,
            positions=-(-positions // RANGES[0]) * RANGES[0],
        )


class DecodeState:
    """The device tensors of a decode.

    A step reads and writes nothing else that lasts. It handles slot b only while `active[b]`:
    the token of step `step - 1` is fed at `positions`, the drawn code goes to `step`, then both
    and `draws` grow by one, and the slot stops by itself at `ends`. Slots start (`admit`) and stop
    (`release`) independently of one another, without the host ever waiting.

    Args:
        size: of the model.
        shape: capacities.
        kv_dtype: of the caches of self-attention.
        text_dtype: of the cached text keys and values.
        device: where everything is.

    Attributes (B slots, R rows, K codebooks, S = C positions, H heads of width d, L text slots):
        sequence: int64 `[B, K, S]`, interleaved codes; `UNKNOWN` where one is to be drawn.
        pattern_mask: bool `[B, K, S]`: where the pattern holds a code.
        active: bool `[B]`.
        step, ends: int32 `[B]`: next step to draw, and the step to stop before.
        positions: int32 `[R]`: where the next token's keys go; it attends to those and all before.
        seeds, items, draws: int64 `[B]`: the key of the slot's noise and the number of its draw.
        temperature: float32 `[B]`; 0 takes the most likely code.
        top_k: int32 `[B]`, 0 for no limit; top_p: float32 `[B]`, 0 for none, before `top_k`.
        cfg_coef: float32 `[B]`, guidance strength, used with `2 B` rows.
        keys, values: per layer `[R, H, C, d]`, zero where a row has not written.
        text_keys, text_values: per layer `[text_rows, H, L, d]`, zero from the row's length on.
        text_lengths, text_pads: int32 `[text_rows]`: real text slots of a row, and how many zero
            slots (score 0, value 0) are attended to after them.
        x: float32 `[R, D]`, the residual stream; scratch, it carries nothing between steps.
        logits: float32 `[B, K, card]`, what the last step drew from (after guidance, before the
            temperature).
    """

    # Never inference tensors: those could not be written to outside of inference mode.
    @torch.inference_mode(False)
    def __init__(
        self,
        size: ModelSize,
        shape: StateShape,
        kv_dtype: torch.dtype,
        text_dtype: torch.dtype,
        device: torch.device | str,
    ):
        self.size, self.shape, self.device = size, shape, torch.device(device)
        B, R, K, S = shape.slots, shape.rows, size.n_q, shape.positions

        def zeros(*sizes: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=self.device)

        self.sequence = torch.full((B, K, S), UNKNOWN, device=self.device)
        self.pattern_mask = zeros(B, K, S, dtype=torch.bool)
        self.active = zeros(B, dtype=torch.bool)
        self.step = torch.ones(B, dtype=torch.int32, device=self.device)
        self.ends = torch.ones_like(self.step)
        self.positions = zeros(R, dtype=torch.int32)
        # Each an allocation of its own: kernels are compiled for aligned addresses.
        self.seeds, self.items, self.draws = (zeros(B, dtype=torch.int64) for _ in range(3))
        self.temperature, self.top_p, self.cfg_coef = (
            zeros(B, dtype=torch.float32) for _ in range(3)
        )
        self.top_k = zeros(B, dtype=torch.int32)
        # Zero, because a masked slot still takes part in a product, where NaN would spread.
        self._kv = zeros(size.layers, 2, R, size.heads, S, size.head_dim, dtype=kv_dtype)
        keys, values = self._kv.unbind(1)
        self.keys: list[Tensor] = list(keys.unbind())
        self.values: list[Tensor] = list(values.unbind())
        text_shape = (size.layers, 2, shape.text_rows, size.heads, shape.text, size.head_dim)
        self._text = zeros(*text_shape, dtype=text_dtype)
        keys, values = self._text.unbind(1)
        self.text_keys: list[Tensor] = list(keys.unbind())
        self.text_values: list[Tensor] = list(values.unbind())
        self.text_lengths = zeros(shape.text_rows, dtype=torch.int32)
        self.text_pads = zeros(shape.text_rows, dtype=torch.int32)
        self.x = zeros(R, size.dim, dtype=torch.float32)
        self.logits = zeros(B, K, size.card, dtype=torch.float32)
        self._buffers: dict[str, Tensor] = {}

    @property
    def guided(self) -> bool:
        return self.shape.rows == 2 * self.shape.slots

    @torch.inference_mode(False)
    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A named scratch tensor at a fixed address, zero at first; the same one at every call.

        A step asks for all of its buffers when it warms up, so that a capture allocates nothing.
        """
        found = self._buffers.get(name)
        if found is None:
            found = torch.zeros(tuple(shape), dtype=dtype, device=self.device)
            self._buffers[name] = found
        if found.shape != tuple(shape) or found.dtype != dtype:
            raise RuntimeError(
                f"buffer {name!r} is {found.dtype} {tuple(found.shape)}, "
                f"asked for {dtype} {tuple(shape)}"
            )
        return found

    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        own = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return sum(t.numel() * t.element_size() for t in (*own, *self._buffers.values()))

    @torch.no_grad()
    def admit(
        self,
        first: int,
        sequence: Tensor,
        pattern_mask: Tensor,
        start: int,
        seeds: Tensor,
        items: Tensor,
        first_draw: int,
        sampling: SamplingParams,
        cfg_coef: float,
    ) -> None:
        """Start n sounds in slots `first` and up; text and prompt are written apart.

        Args:
            sequence: int64 `[n, K, s]` with s at most the state's positions.
            pattern_mask: bool `[K, s]`.
            start: first step to draw, at least 1; the caches must hold positions 0 .. start - 2
                (`row_slices` and the keys and values say where) before the next step.
            seeds, items: int64 `[n]`.
            first_draw: number of the draw at `start`.
            sampling, cfg_coef: how codes are drawn.
        """
        n, _, steps = sequence.shape
        check(
            0 <= first and first + n <= self.shape.slots,
            f"slots must lie in 0..{self.shape.slots - 1}, got {first}..{first + n - 1}",
        )
        check(
            1 <= start <= steps <= self.shape.positions,
            f"start and steps must lie in 1..{self.shape.positions}, got {start} and {steps}",
        )
        slots = slice(first, first + n)
        self.sequence[slots, :, :steps] = sequence
        self.pattern_mask[slots, :, :steps] = pattern_mask
        self.step[slots] = start
        self.ends[slots] = steps
        self.seeds[slots], self.items[slots] = seeds, items
        self.draws[slots] = first_draw
        self.temperature[slots] = 0.0 if sampling.greedy else sampling.temperature
        self.top_k[slots], self.top_p[slots] = sampling.top_k, sampling.top_p
        self.cfg_coef[slots] = cfg_coef
        for rows in self.row_slices(first, n):
            self.positions[rows] = start - 1
            # What an earlier sound left here may be infinite, and must not reach this one.
            self._kv[:, :, rows].zero_()
        self.active[slots] = True

    @torch.no_grad()
    def release(self, first: int, n: int = 1) -> None:
        """Stop n slots; the rest goes on."""
        self.active[first : first + n] = False

    def row_slices(self, first: int, n: int) -> list[slice]:
        """Rows of n slots: those with text, and with guidance those without."""
        starts = [first, first + self.shape.slots] if self.guided else [first]
        return [slice(start, start + n) for start in starts]

    @torch.no_grad()
    def set_text(self, rows: slice, layer: int, keys: Tensor, values: Tensor) -> None:
        """Text of some rows in one layer: keys and values `[n, H, l, d]`, l at most L."""
        length = keys.shape[2]
        for target, source in ((self.text_keys, keys), (self.text_values, values)):
            target[layer][rows, :, :length] = source
            target[layer][rows, :, length:] = 0

    @torch.no_grad()
    def clear_text(self, rows: slice) -> None:
        """Zero the text of some rows in all layers; their lengths stay."""
        self._text[:, :, rows].zero_()
