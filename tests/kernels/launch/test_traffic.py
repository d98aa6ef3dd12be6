"""Bytes counted by the interpreter, for kernels whose traffic is known."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from audiogen_fast.launches.record import recording  # noqa: E402

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("counts interpreted launches", allow_module_level=True)

from audiogen_fast.launches.traffic import counting  # noqa: E402


@triton.jit
def copy_kernel(x_ptr, out_ptr, N, stride, count_ptr, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + cols * stride, mask=cols < N, other=0.0)
    tl.atomic_add(count_ptr, 1)
    tl.store(out_ptr + tl.program_id(0) * BLOCK + cols, x, mask=cols < N)


def run(n, programs, stride=1, dtype=torch.float32):
    storage = torch.arange(2048.0).to(dtype)
    x = storage[-storage.data_ptr() % 32 // dtype.itemsize :]  # at the start of a sector
    out = torch.zeros(programs, 64)
    count = torch.zeros(1, dtype=torch.int32)
    with recording(execute=True) as launches, counting() as traffic:
        copy_kernel[(programs,)](x, out, n, stride, count, BLOCK=64)
    assert count.item() == programs and launches[0].grid == (programs, 1, 1)
    assert torch.equal(out[-1, :n], x[: n * stride : stride].float())
    return traffic


def test_repetitions_are_requested_but_touched_once():
    traffic = run(64, programs=3)
    assert traffic.requested_read == 3 * (64 * 4 + 4)
    assert traffic.touched_read == 64 * 4 + 32  # the row, and the counter's sector
    assert traffic.requested_written == 3 * (64 * 4 + 4)
    assert traffic.touched_written in (3 * 64 * 4 + 32, 3 * 64 * 4 + 64)  # by where `out` starts


def test_masked_accesses_do_not_count():
    traffic = run(10, programs=1)
    assert traffic.requested_read == 10 * 4 + 4
    assert traffic.touched_read == 2 * 32 + 32


def test_strides_waste_sectors():
    traffic = run(16, programs=1, stride=8)
    assert traffic.requested_read == 16 * 4 + 4
    assert traffic.touched_read == 16 * 32 + 32


def test_half_precision_counts_two_bytes():
    assert run(64, programs=1, dtype=torch.float16).requested_read == 64 * 2 + 4


def test_nothing_stays_patched():
    builder = triton.runtime.interpreter.InterpreterBuilder
    before = builder.create_masked_load
    with counting():
        assert builder.create_masked_load is not before
    assert builder.create_masked_load is before
