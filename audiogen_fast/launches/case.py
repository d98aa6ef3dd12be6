"""One launch worth looking at, and what its arguments are made of."""

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
    native: Callable[[torch.device], Call] | None = None
    """The same by the native module, on a CPU."""
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


def short(dtype: torch.dtype) -> str:
    """'bfloat16' of torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
