"""One functional surface for every op: the fastest implementation that is there.

`AUDIOGEN_FAST_BACKEND=reference` turns every fast path off. The choice is made once, at the first
use, and for CUDA once per device; `implementations()` tells what was chosen on a CPU.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from audiogen_fast._backend import backend, why_no_triton
from audiogen_fast.ops import cuda, native, reference


def fast_paths_enabled() -> bool:
    """False when `AUDIOGEN_FAST_BACKEND=reference` asks for the plain definition of everything."""
    return backend() != "reference"


def kernels_run_on(device: torch.device) -> bool:
    """Whether the Triton kernels can be launched on this CUDA device; else the reference is used.

    A constant to `torch.compile`, which cannot trace how it is found out.
    """
    return why_no_triton(device) is None


# What `torch.compiler.assume_constant_result` does; that function imports torch._dynamo, which
# takes seconds.
kernels_run_on._dynamo_marked_constant = True


@functools.cache
def _use_native() -> bool:
    return fast_paths_enabled() and native.available()


def implementations() -> dict[str, str]:
    """Name of each dispatched op -> 'native' or 'reference' for CPU tensors."""
    chosen = "native" if _use_native() else "reference"
    return {"philox_exponential": chosen, "rvq_decode": chosen}


def philox_exponential(
    seeds: Tensor, items: Tensor, step: int, n_codebooks: int, card: int
) -> Tensor:
    """See `reference.philox_exponential`."""
    if _use_native() and seeds.device.type == "cpu":
        return native.philox_exponential(seeds, items, step, n_codebooks, card)
    return reference.philox_exponential(seeds, items, step, n_codebooks, card)


def rvq_decode(codes: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """See `reference.rvq_decode`. Differentiable inputs always take the reference."""
    first = codebooks[0]
    if first.device.type == "cuda" and kernels_run_on(first.device):
        if not first.requires_grad and first.dtype != torch.float64:
            return cuda.rvq_decode(codes, codebooks)
    fast = first.device.type == "cpu" and first.dtype == torch.float32 and not first.requires_grad
    if fast and _use_native():
        return native.rvq_decode(codes, codebooks)
    return reference.rvq_decode(codes, codebooks)
