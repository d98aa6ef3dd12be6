"""Launches worth looking at: every kernel at the shapes of the released model, and odd ones.

One list serves the compile tests, the byte counts, the micro-benchmarks and the report of a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One call of a launcher."""

    op: str
    """Name of the op, as in `kernels/README.md`."""
    label: str
    """What is special about it: shapes, dtype."""
    prepare: Callable[[torch.device], Call]
    """Makes the arguments on a device, 'meta' too, and returns the call."""
    needed_bytes: int
    """What the op must move by its definition: every input it uses once, every output once."""
    reference: Callable[[torch.device], Call] | None = None
    """The same by the plain definition, on the same arguments."""
    quick: bool = True
    """Part of the default test run; the others are for the complete one."""
    interpreted: bool = True
    """Small enough for the interpreter to count its bytes."""

    def __str__(self) -> str:
        return f"{self.op}[{self.label}]"


DIM, CARD, N_Q = 1536, 2048, 4


def random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float16) -> Tensor:
    """Normal noise, the same each time; zeros would be unusually quick to compute with."""
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def codes(*shape: int, device: torch.device, card: int = CARD) -> Tensor:
    """Random codes, int64."""
    if device.type == "meta":
        return torch.empty(shape, dtype=torch.int64, device=device)
    generator = torch.Generator(device).manual_seed(sum(shape))
    return torch.randint(0, card, shape, generator=generator, device=device)


def codebook_embedding(
    batch: int, steps: int, dtype: torch.dtype, *, positions: bool = True, quick: bool = True
) -> Case:
    """Embedding sum of `steps` positions of `batch` rows at the released width."""
    size = dtype.itemsize

    def prepare(device: torch.device) -> Call:
        from audiogen_fast.kernels.codebook_embedding import codebook_embedding as launch

        tokens = codes(batch, N_Q, steps, device=device)
        tables = random(N_Q, CARD + 1, DIM, device=device, dtype=dtype)
        where = torch.arange(steps, device=device).expand(batch, steps) if positions else None
        return lambda: launch(tokens, tables, where)

    def reference(device: torch.device) -> Call:
        from audiogen_fast.ops import reference as ops

        tokens = codes(batch, N_Q, steps, device=device)
        tables = list(random(N_Q, CARD + 1, DIM, device=device, dtype=dtype))
        where = torch.arange(steps, device=device).expand(batch, steps)
        if not positions:
            return lambda: ops.codebook_embedding(tokens, tables)
        return lambda: ops.codebook_embedding(tokens, tables) + ops.sin_embedding(where, DIM)

    rows = batch * steps
    needed = rows * (N_Q * (8 + DIM * size) + DIM * 4) + positions * (8 * steps + DIM // 2 * 4)
    label = f"{batch}x{steps} {str(dtype).removeprefix('torch.')}" + (" +pos" if positions else "")
    return Case("codebook_embedding", label, prepare, needed, reference, quick)


def all_cases() -> list[Case]:
    """Every case, the quick ones first."""
    half, full = torch.float16, torch.float32
    cases = [
        codebook_embedding(2, 1, half),
        codebook_embedding(2, 1, full, positions=False),
        codebook_embedding(16, 1, torch.bfloat16, quick=False),
        codebook_embedding(8, 504, half, quick=False),
    ]
    return sorted(cases, key=lambda case: not case.quick)
