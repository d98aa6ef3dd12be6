"""The native engine: the whole loop of a generation in C++, on a CPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from audiogen_fast._backend import load_native
from audiogen_fast.errors import CheckpointError, DeviceMemoryError, InvalidInputError, check
from audiogen_fast.generation import native_weights
from audiogen_fast.generation.job import DecodeJob, RowGroup
from audiogen_fast.generation.plain_model import why_not_plain
from audiogen_fast.models.lm import LMModel
from audiogen_fast.models.packed import FORMATS, GROUP_SIZES, PackedWeights
from audiogen_fast.models.weights import forget_mapped
from audiogen_fast.ops import native
from audiogen_fast.ops.reference import sin_embedding

KV_FORMATS = ("float32", "bfloat16")
MAX_THREADS = 1024


def default_threads() -> int:
    """`AUDIOGEN_FAST_THREADS`, else what torch uses (which honours `OMP_NUM_THREADS`)."""
    value = os.environ.get("AUDIOGEN_FAST_THREADS", "")
    if not value:
        return torch.get_num_threads()
    check(
        value.isdigit() and int(value) > 0,
        f"AUDIOGEN_FAST_THREADS must be a positive number, got {value!r}",
    )
    return int(value)


def why_unsupported(lm: LMModel, device: torch.device | None = None) -> str | None:
    """None if the native engine can run this model here, else the reason in words.

    `device` is where the model will be, when it is not there yet.
    """
    reason = native.why_unavailable()
    if reason is not None:
        return reason
    device = device or lm.device
    if device.type != "cpu":
        return f"the model is on {device}"
    head_dim = lm.transformer.layers[0].self_attn.head_dim
    wrong_head = f"it needs heads of a multiple of 16, got {head_dim}" if head_dim % 16 else None
    return why_not_plain(lm) or wrong_head


class NativeEngine:
    """Decodes with packed weights in C++; the model's own weights stay where they are.

    Args:
        lm: a model `why_unsupported` has nothing against.
        weights: format of the packed weights, one of `FORMATS`. float32 gives the eager engine's
            codes; the others trade accuracy for speed. None for float32, or for the format in
            which the model was loaded packed.
        kv: format of the caches, float32 or bfloat16; None for float32 with float32 weights and
            bfloat16 otherwise.
        threads: None for `default_threads()`.
        group_size: columns per scale of int4, 64 or 128; None for 128, or for what it was packed
            with.
        steps_per_call: progress, cancelling and streaming come back this often.
    """

    name = "native"

    def __init__(
        self,
        lm: LMModel,
        weights: str | None = None,
        kv: str | None = None,
        threads: int | None = None,
        group_size: int | None = None,
        steps_per_call: int = 8,
    ):
        packed = lm.packed
        weights = weights or (packed.format if packed else "float32")
        group_size = group_size or (packed.group_size if packed else 128)
        check(weights in FORMATS, f"weights must be one of {FORMATS}, got {weights!r}")
        check(
            group_size in GROUP_SIZES,
            f"group_size must be one of {GROUP_SIZES}, got {group_size!r}",
        )
        check(
            packed is None or (packed.format, packed.group_size) == (weights, group_size),
            f"weights must be {packed and packed.format!r} in groups of "
            f"{packed and packed.group_size}, as this model was packed, got {weights!r} in groups "
            f"of {group_size}",
        )
        kv = kv or ("float32" if weights == "float32" else "bfloat16")
        check(kv in KV_FORMATS, f"kv must be one of {KV_FORMATS}, got {kv!r}")
        reason = why_unsupported(lm)
        check(reason is None, f"the native engine cannot run this model: {reason}")
        self.lm, self.weights, self.kv, self.group_size = lm, weights, kv, group_size
        self.threads = default_threads() if threads is None else threads
        check(
            1 <= self.threads <= MAX_THREADS,
            f"threads must lie in 1..{MAX_THREADS}, got {self.threads}",
        )
        check(steps_per_call >= 1, f"steps_per_call must be at least 1, got {steps_per_call}")
        self.steps_per_call = steps_per_call
        self._decoder = None
        self._fingerprint: tuple = ()
        self._capacity = (0, 0, 0)  # rows, positions, text tokens
        self._running: DecodeJob | None = None  # the last job begun, which owns the caches

    def prepare(self, just_loaded: bool = False) -> None:
        """Pack the weights now rather than at the first generation.

        Args:
            just_loaded: nobody can have written the model's weights since they were loaded: memory
                mapped from the checkpoint is handed back on the way, and read again if needed.
        """
        self._pack(1, 2, 0, release=just_loaded)
        forget_mapped(self.lm)

    def packed_weights(self) -> PackedWeights:
        """The packed matrices, as views of memory that this engine owns."""
        return native_weights.packed_weights(self.decoder(), self.lm, self.weights, self.group_size)

    def decoder(self, rows: int = 1, positions: int = 2, text: int = 0):
        """The C++ decoder with at least these capacities; the weights are packed only once, and
        again when the model's have changed, or in a process that was forked.

        Raises:
            DeviceMemoryError: there is too little memory for them.
        """
        try:
            return self._pack(rows, positions, text)
        except MemoryError as error:
            raise DeviceMemoryError(
                f"the machine has too little memory to decode {rows} rows of {positions} steps "
                f"and {text} tokens of text: generate fewer or shorter sounds at once"
            ) from error

    def _pack(self, rows: int, positions: int, text: int, release: bool = False):
        # Threads do not survive a fork.
        current = (self.lm.fingerprint(), os.getpid())
        if current != self._fingerprint:
            self._decoder, self._capacity = None, (0, 0, 0)
        wanted = tuple(map(max, (rows, positions, text), self._capacity))
        if self._decoder is None:
            self._decoder = self._build(*wanted, release)
            self._fingerprint = current
        elif wanted != self._capacity:
            self._capacity = (0, 0, 0)  # should this fail, there is none
            with _refusals():
                self._decoder.resize(*wanted)
        if wanted[1] > self._capacity[1]:
            self._set_positions(wanted[1])
        self._capacity = wanted
        return self._decoder

    def _set_positions(self, count: int) -> None:
        transformer = self.lm.transformer
        table = sin_embedding(torch.arange(count), self.lm.dim, transformer.max_period)
        table = (table * transformer.positional_scale).contiguous()
        self._decoder.set_positions(table.data_ptr(), count)

    def _build(self, rows: int, positions: int, text: int, release: bool):
        module, reason = load_native()
        if module is None:
            raise InvalidInputError(f"the native engine is not available: {reason}")
        with _refusals():
            decoder = native_weights.make_decoder(
                module,
                self.lm,
                rows=rows,
                positions=positions,
                text=text,
                format=self.weights,
                kv_format=self.kv,
                group=self.group_size,
                threads=self.threads,
                isa=os.environ.get("AUDIOGEN_FAST_ISA", ""),
            )
        try:
            native_weights.fill(decoder, self.lm, release)
        except ValueError as error:
            kind = InvalidInputError if self.lm.packed is None else CheckpointError
            raise kind(str(error)) from error
        return decoder

    @torch.no_grad()
    def _set_text(
        self, decoder, groups: list[RowGroup], texts: list[tuple[Tensor, Tensor]]
    ) -> None:
        first = 0
        biased = self.lm.transformer.layers[0].cross_attention.in_proj_bias is not None
        for group, (vectors, mask) in zip(groups, texts, strict=True):
            lengths, pads = _lengths(vectors, mask, group.mask_padding, biased)
            for row, (length, pad) in enumerate(zip(lengths, pads, strict=True)):
                kept = native_weights.floats(vectors[row, :length])
                decoder.set_text(first + row, kept.data_ptr(), length, pad)
            first += group.rows

    def run(self, job: DecodeJob) -> Iterator[int]:
        """See `Engine.run`; yields after every `steps_per_call` steps."""
        texts = [self.lm.fuser.cross_input(group.conditions) for group in job.groups]
        rows = sum(group.rows for group in job.groups)
        steps = job.sequence.shape[-1]
        longest = 0 if texts[0] is None else max(vectors.shape[1] for vectors, _ in texts)
        decoder = self.decoder(rows, steps, longest)
        with _refusals():
            decoder.begin(rows, self._text_rows(texts), steps)
            self._running = job
            if longest:
                self._set_text(decoder, job.groups, texts)
        sequence = job.sequence.contiguous()
        mask = job.pattern_mask.to(torch.uint8).contiguous()
        sampling, keys = job.sampling, job.keys
        for begin in range(job.start, steps, self.steps_per_call):
            end = min(begin + self.steps_per_call, steps)
            check(
                self._running is job,
                "another generation has begun on this native engine; give each its own engine",
            )
            with _refusals():
                decoder.run(
                    sequence.data_ptr(),
                    mask.data_ptr(),
                    sequence.shape[0],
                    steps,
                    job.start,
                    self.lm.special_token_id,
                    sampling.greedy,
                    sampling.temperature,
                    sampling.top_k,
                    sampling.top_p,
                    job.first_draw,
                    keys.seeds.data_ptr(),
                    keys.items.data_ptr(),
                    job.cfg_coef,
                    begin,
                    end,
                )
            if sequence is not job.sequence:
                job.sequence.copy_(sequence)
            yield end - job.start

    def _text_rows(self, texts: list[tuple[Tensor, Tensor] | None]) -> int:
        """Rows, from the first, whose cross-attention is not exactly zero."""
        if texts[0] is None:
            return 0
        last = first = 0
        for vectors, _ in texts:
            used = self.lm.transformer.rows_with_text(vectors)
            last = first + used if used else last
            first += vectors.shape[0]
        return last


@contextmanager
def _refusals() -> Iterator[None]:
    """What the decoder refuses, as this package's error."""
    try:
        yield
    except ValueError as error:
        raise InvalidInputError(str(error)) from error


def _lengths(
    vectors: Tensor, mask: Tensor, mask_padding: bool, biased: bool
) -> tuple[list[int], list[int]]:
    """Text slots to keep of each row, and how many zero slots stand for the rest.

    With a bias a padded slot has a key and a value of its own, so it is kept as it is.
    """
    width = vectors.shape[1]
    real = mask.bool()
    counts = [int(row.nonzero()[-1]) + 1 if bool(row.any()) else 0 for row in real]
    if mask_padding:
        check(
            all(int(row.sum()) == count for row, count in zip(real, counts, strict=True)),
            "batch_invariant needs the eager engine where padding lies between two conditions",
        )
        return [count or width for count in counts], [0] * len(counts)
    if biased or bool(vectors[~real].any()):
        return [width] * len(counts), [0] * len(counts)
    return counts, [width - count for count in counts]
