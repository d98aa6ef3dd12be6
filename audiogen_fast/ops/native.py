"""Ops of the native module on CPU tensors: the tensors are checked here, the loops are C++.

Each function computes what the function of the same name in `audiogen_fast.ops.reference` defines.
Importing this module never fails; ask `available()` before calling an op.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from audiogen_fast._backend import BACKEND_VARIABLE, backend, load_native
from audiogen_fast.errors import InvalidInputError, MissingDependencyError, check

_UINT32_END = 2**32


def why_unavailable() -> str | None:
    """None when the native ops can be used, else the reason in words."""
    if backend() == "reference":
        return f"turned off by {BACKEND_VARIABLE}=reference"
    return load_native()[1]


def available() -> bool:
    """Whether the native ops are built, load, and are not turned off."""
    return why_unavailable() is None


def philox_exponential(
    seeds: Tensor, items: Tensor, step: int, n_codebooks: int, card: int
) -> Tensor:
    """Exp(1) noise that depends only on (seed, item, step, codebook, entry).

    The logarithm is taken in float64 and rounded once, so the result is the float32 nearest to
    the exact value, the same on every machine.

    Args:
        seeds: int64 `[N]` on the CPU (64 bits, two's complement).
        items: int64 `[N]` on the CPU, each in [0, 2^32).
        step: in [0, 2^32).
        n_codebooks, card: shape of the noise of one item, each in [1, 2^32).
    Returns:
        float32 `[N, n_codebooks, card]` on the CPU, positive and finite.
    Raises:
        InvalidInputError: an argument outside these limits.
        MissingDependencyError: the native module is not available.
    """
    module = _module()
    _check_tensor("seeds", seeds, torch.int64, 1)
    _check_tensor("items", items, torch.int64, 1)
    check(
        items.shape == seeds.shape,
        f"items must have the shape of seeds, {tuple(seeds.shape)}, got {tuple(items.shape)}",
    )
    check(0 <= step < _UINT32_END, f"step must be in [0, 2^32), got {step}")
    check(0 < n_codebooks < _UINT32_END, f"n_codebooks must be in [1, 2^32), got {n_codebooks}")
    check(0 < card < _UINT32_END, f"card must be in [1, 2^32), got {card}")
    seeds, items = seeds.contiguous(), items.contiguous()
    n_items = seeds.shape[0]
    out = torch.empty(n_items, n_codebooks, card, dtype=torch.float32, device="cpu")
    try:
        module.philox_exponential(
            out.data_ptr(), seeds.data_ptr(), items.data_ptr(), n_items, n_codebooks, card, step
        )
    except ValueError as error:
        raise InvalidInputError(str(error)) from error
    return out


def rvq_decode(codes: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Sum of one codebook row per code, rounded to float32 after each addition, k = 0 first.

    Args:
        codes: int64 `[B, K, T]` on the CPU, each in [0, card).
        codebooks: at least K float32 tensors `[card, D]` on the CPU; the first K are used.
    Returns:
        float32 `[B, D, T]` on the CPU.
    Raises:
        InvalidInputError: a code or an argument outside these limits.
        MissingDependencyError: the native module is not available.
    """
    module = _module()
    _check_tensor("codes", codes, torch.int64, 3)
    batch, n_codebooks, frames = codes.shape
    check(
        1 <= n_codebooks <= len(codebooks),
        f"codes must have between 1 and {len(codebooks)} codebooks, got {n_codebooks}",
    )
    tables = []
    for k in range(n_codebooks):
        _check_tensor(f"codebooks[{k}]", codebooks[k], torch.float32, 2)
        check(
            codebooks[k].shape == codebooks[0].shape,
            f"codebooks[{k}] must have the shape of codebooks[0], {tuple(codebooks[0].shape)}, "
            f"got {tuple(codebooks[k].shape)}",
        )
        tables.append(codebooks[k].detach().contiguous())
    codes = codes.contiguous()
    card, dim = tables[0].shape
    out = torch.empty(batch, dim, frames, dtype=torch.float32, device="cpu")
    addresses = [table.data_ptr() for table in tables]
    try:
        module.rvq_decode(out.data_ptr(), codes.data_ptr(), addresses, batch, frames, card, dim)
    except ValueError as error:
        raise InvalidInputError(str(error)) from error
    return out


def read_bandwidth(size: int, threads: int, rounds: int = 5) -> list[float]:
    """Bytes per second at which memory is read, of each of `rounds` passes over a block.

    Args:
        size: bytes of the block, which is allocated and freed; well above the caches.
        threads: each reads a part of its own.
    Raises:
        InvalidInputError: counts that are not positive, or less than 64 KiB for a thread.
        MissingDependencyError: the native module is not available.
    """
    try:
        return _module().read_bandwidth(size, threads, rounds)
    except ValueError as error:
        raise InvalidInputError(str(error)) from error


def _module() -> ModuleType:
    reason = why_unavailable()
    module = load_native()[0]
    if reason is not None or module is None:
        raise MissingDependencyError(f"the native ops are not available: {reason}")
    return module


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, dims: int) -> None:
    check(tensor.device.type == "cpu", f"{name} must be on the CPU, got {tensor.device}")
    check(tensor.dtype == dtype, f"{name} must be {dtype}, got {tensor.dtype}")
    check(
        tensor.ndim == dims,
        f"{name} must have {dims} dimensions, got the shape {tuple(tensor.shape)}",
    )
