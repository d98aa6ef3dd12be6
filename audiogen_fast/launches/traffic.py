"""Bytes that a launch moves, counted while the interpreter runs it.

This needs `TRITON_INTERPRET=1` in the environment before triton is imported.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from triton.runtime import interpreter

SECTOR = 32
"""Bytes: the smallest piece that a GPU of these generations reads from or writes to memory."""


@dataclass
class Traffic:
    """What one block of launches asked of memory, in bytes."""

    requested_read: int = 0
    """Sum over all programs, however often they read the same; caches serve the repetitions."""
    requested_written: int = 0
    touched_read: int = 0
    """Different sectors that were read: the least that memory moves with a cold cache."""
    touched_written: int = 0
    _read: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    _written: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def touched(self) -> int:
        return self.touched_read + self.touched_written

    @property
    def requested(self) -> int:
        return self.requested_read + self.requested_written


@contextlib.contextmanager
def counting() -> Iterator[Traffic]:
    """Count the traffic of the interpreted launches in the block; totals are there at its end."""
    traffic = Traffic()
    builder = interpreter.InterpreterBuilder
    names = ("create_masked_load", "create_masked_store", "create_atomic_rmw", "create_atomic_cas")
    load, store, rmw, cas = originals = [getattr(builder, name) for name in names]

    def counted_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        traffic.requested_read += _count(traffic._read, ptrs, mask.data)
        return load(self, ptrs, mask, *rest, **options)

    def counted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any, **kw: Any) -> Any:
        traffic.requested_written += _count(traffic._written, ptrs, mask.data)
        return store(self, ptrs, value, mask, *rest, **kw)

    def counted_rmw(self: Any, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
        traffic.requested_read += _count(traffic._read, ptr, mask.data)
        traffic.requested_written += _count(traffic._written, ptr, mask.data)
        return rmw(self, op, ptr, val, mask, *rest)

    def counted_cas(self: Any, ptr: Any, *rest: Any) -> Any:
        everywhere = np.ones_like(ptr.data, dtype=bool)
        traffic.requested_read += _count(traffic._read, ptr, everywhere)
        traffic.requested_written += _count(traffic._written, ptr, everywhere)
        return cas(self, ptr, *rest)

    for name, counted in zip(
        names, (counted_load, counted_store, counted_rmw, counted_cas), strict=True
    ):
        setattr(builder, name, counted)
    try:
        yield traffic
    finally:
        for name, original in zip(names, originals, strict=True):
            setattr(builder, name, original)
        traffic.touched_read = SECTOR * sum(int(page.sum()) for page in traffic._read.values())
        traffic.touched_written = SECTOR * sum(
            int(page.sum()) for page in traffic._written.values()
        )


_PAGE = 1 << 20  # sectors of one bitmap


def _count(pages: dict[int, np.ndarray], ptrs: Any, mask: np.ndarray) -> int:
    """Mark the sectors of the addresses that the mask lets through; bytes of these accesses."""
    size = max(ptrs.get_element_ty().primitive_bitwidth, 8) // 8
    addresses, mask = np.broadcast_arrays(ptrs.data, mask)
    sectors = addresses[mask] // np.uint64(SECTOR)
    numbers = sectors // np.uint64(_PAGE)
    if numbers.size:
        for number in range(int(numbers.min()), int(numbers.max()) + 1):  # mostly one
            page = pages.setdefault(number, np.zeros(_PAGE, dtype=bool))
            page[(sectors[numbers == number] % np.uint64(_PAGE)).astype(np.int64)] = True
    return size * numbers.size
