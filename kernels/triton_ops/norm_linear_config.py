"""How a product of `norm_linear` is cut into programs: fixed for a shape and a GPU, never tuned.

Three forms, by the number of rows. What a form is good for follows from what it moves:

`gemv`, up to 4 rows: weights are all that counts, the rows stay in registers.
`rows`, up to 8, and any number of float32: weights still are; every program computes the norm of
its few rows itself.
`tiles`, more: rows are read again by every program along N, so programs are large (see
`_tiles_config`) and the statistics of the norm come from whoever wrote the rows.

docs/kernels.md has the bytes of each, by rows. A tile has 64 rows or more, which the matrix cores
of half precision take in their stride; float32 is multiplied on the ordinary cores, whose
registers do not hold tiles.
"""

import functools
from dataclasses import dataclass

import torch
import triton

from audiogen_fast.kernels import _launch

GEMV_ROWS = 4
ROWS_ROWS = 8
_LONGEST_SLICE = 2048  # columns of a row that a gemv program holds in registers
_LARGEST_SPLIT = 12


@dataclass(frozen=True)
class Config:
    """How a product is cut into programs. `split` parts of K; `block_k` not for `gemv`."""

    kind: str
    block_m: int
    block_n: int
    block_k: int
    split: int
    num_warps: int
    num_stages: int = 3


@functools.lru_cache(maxsize=256)
def choose_config(
    rows: int,
    n: int,
    k: int,
    bits: int,
    group: int,
    processors: int,
    *,
    inputs: int = 4,
    shared: int = 232448,
    tiled: bool | None = None,
) -> Config:
    """The fixed configuration of a shape.

    Args:
        rows, n, k: sizes of the product.
        bits: of a weight, 32, 16, 8 or 4.
        group: columns that share an int4 scale; slices of K are whole groups.
        processors: multiprocessors of the device. A single one is the interpreter, where what
            counts is the number of programs.
        inputs: bytes that are read for one column of a row: 4 of float32, 8 of two mixed rows.
        shared: bytes of shared memory that a program may use.
        tiled: whether to take the form `tiles`; None for where it is the better one.
    """
    if tiled is None:
        tiled = takes_tiles(rows, torch.float32 if bits == 32 else torch.bfloat16)
    if tiled:
        return _tiles_config(rows, n, k, bits, group, processors, inputs, shared)
    if rows <= GEMV_ROWS:
        return _gemv_config(rows, n, k, bits, group, processors)
    return _rows_config(rows, n, k, bits, group, processors)


def takes_tiles(rows: int, dtype: torch.dtype) -> bool:
    """Whether `tiles` is the better form for so many rows, multiplied in a dtype."""
    return rows > ROWS_ROWS and dtype != torch.float32


def _gemv_config(rows: int, n: int, k: int, bits: int, group: int, processors: int) -> Config:
    """Programs so small that every multiprocessor has at least two, and K split where the outputs
    are too few for that, because what counts is how many bytes are in flight."""
    step = {8: 16, 4: group}.get(bits, 16)
    split = -(-k // _LONGEST_SLICE)
    split = triton.cdiv(k, triton.cdiv(triton.cdiv(k, split), step) * step)
    # More rows of weights than 8, or 4 of float32, would need more registers than there are.
    block_n = 128 if processors == 1 else 4 if bits == 32 else 8
    while block_n > 2 and triton.cdiv(n, block_n) * split < 2 * processors:
        block_n //= 2
    # With so few bytes for each program, more threads hold them without spilling (sm_80).
    num_warps = 8 if bits == 8 and block_n <= 4 else 4
    return Config("gemv", triton.next_power_of_2(max(rows, 1)), block_n, 0, split, num_warps)


def _rows_config(rows: int, n: int, k: int, bits: int, group: int, processors: int) -> Config:
    """The same for the matrix cores; more than 32 rows take another program for each 32."""
    # At most 32 rows and 4 blocks ahead: what fits the 99 KB of shared memory of the smallest.
    block_m = 16 if rows <= 16 else 32
    # 64 rows of quantised weights would be multiplied by wgmma, for which Triton reads them in the
    # layout of its registers, 8 bytes at a time.
    block_n = 128 if processors == 1 else 64 if n >= 4096 and bits >= 16 else 32
    block_k = group if bits == 4 else 32 if bits == 32 else 64
    programs = triton.cdiv(n, block_n) * triton.cdiv(rows, block_m)
    split = 1
    while split < 8 and programs * split < 2 * processors and k // (2 * split) >= 2 * block_k:
        split *= 2
    split = triton.cdiv(k, triton.cdiv(triton.cdiv(k, split), block_k) * block_k)
    return Config("rows", block_m, block_n, block_k, split, 4, 4 if block_m == 16 else 3)


def _tiles_config(
    rows: int,
    n: int,
    k: int,
    bits: int,
    group: int,
    processors: int,
    inputs: int,
    shared: int,
) -> Config:
    """The blocks and the split that move the least.

    A program moves `rows * slice * inputs` bytes of its rows, `block_n * slice * bits / 8` of
    weights and, with a split, its block of float32 sums twice. Two things limit that: a
    multiprocessor takes 64 bytes a cycle from the second-level cache, and all of them together
    about two fifths of their sum (5.5 TB/s of 14 on an H100). The cheaper blocks are those for
    which the slower of the two is the quickest.
    """
    block_m = 64 if rows <= 64 or inputs == 8 else 128
    block_k = group if bits == 4 else 64
    if processors == 1:
        return Config("tiles", 64, 128, block_k if bits == 4 else 128, 1, 8)
    # Wider blocks of these would need more registers than there are.
    narrow = bits == 4 or (bits == 8 and inputs == 2)
    widest = 64 if narrow else 128
    while _shared(3, block_m, widest, block_k, bits, inputs) > shared:
        if block_k == 64 and bits != 4:
            block_k = 32
        elif block_m == 128:
            block_m = 64
        elif widest == 128:
            widest = 64
        else:
            block_m //= 2
    found = None
    for block_n in (64, 128):
        if block_n > widest:
            continue
        tiles = triton.cdiv(rows, block_m) * triton.cdiv(n, block_n)
        for wanted in range(1, _LARGEST_SPLIT + 1):
            part = triton.cdiv(triton.cdiv(k, wanted), block_k) * block_k
            split = triton.cdiv(k, part)
            if split != wanted:
                continue
            # Wide rows, their norm and the addresses of split sums need too many registers.
            if split > 1 and block_m * block_n * inputs > 32768:
                continue
            height = min(rows, block_m)
            moved = height * part * inputs + block_n * part * bits // 8
            moved += 8 * height * block_n * (split > 1)
            programs = tiles * split
            busiest, all_of_them = triton.cdiv(programs, processors), programs / processors
            cost = moved * max(busiest, 2.5 * all_of_them)
            if found is None or cost < found[0]:
                found = cost, block_n, split
    _, block_n, split = found
    fits = _shared(4, block_m, block_n, block_k, bits, inputs) <= shared
    num_warps = 8 if block_m * block_n > 4096 or inputs == 8 else 4
    return Config("tiles", block_m, block_n, block_k, split, num_warps, 4 if fits else 3)


def _shared(stages: int, block_m: int, block_n: int, block_k: int, bits: int, inputs: int) -> int:
    """Bytes of shared memory with so many stages: one block less than that is on its way, and the
    weights of one more where the matrix cores read them while the next ones arrive."""
    weights = block_k * block_n * bits // 8
    return (stages - 1) * (block_k * block_m * inputs + weights) + weights + 6144


def default_config(
    rows: int,
    n: int,
    k: int,
    bits: int,
    group: int,
    device: torch.device,
    inputs: int = 4,
    tiled: bool | None = None,
) -> Config:
    """`choose_config` for a device."""
    return choose_config(
        rows,
        n,
        k,
        bits,
        group,
        _launch.multiprocessors(device),
        inputs=inputs,
        shared=_launch.shared_memory(device),
        tiled=tiled,
    )


def workspace_sizes(config: Config, rows: int, n: int) -> tuple[int, int]:
    """Elements of `Workspace.partial` and `.counters` that a product needs; 0 without a split."""
    if config.split == 1:
        return 0, 0
    m_tiles = 1 if config.kind == "gemv" else triton.cdiv(rows, config.block_m)
    return config.split * rows * n, triton.cdiv(n, config.block_n) * m_tiles
