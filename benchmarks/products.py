"""What the products of a decode step move and compute, by the number of rows: arithmetic only.

Memory moves each weight once. But every program reads its rows and its weights through the
second-level cache, and that is what separates the forms of `norm_linear`.
"""

from dataclasses import dataclass

from audiogen_fast.kernels.norm_linear_config import ROWS_ROWS, Config, choose_config
from benchmarks.floors import GPUS, layer_linears, linear_bytes

H100_PROCESSORS = 132
L2_BANDWIDTH = 5.5e12
"""Bytes per second that the multiprocessors of an H100 read from its second-level cache together,
as micro-benchmarks of others found; an assumption here."""
ROWS = (2, 4, 8, 16, 32, 64, 128, 256)
# Of the matrices of `layer_linears`: bytes of the residual stream or of an activation for each
# column of a row, whether a norm is in front, and the share of the rows that take part (a row
# without text has no cross-attention).
_INPUTS = [(4, True, 1), (2, False, 1), (4, True, 2), (2, False, 2), (4, True, 1), (2, False, 1)]


def cache_bytes(
    config: Config, rows: int, n: int, k: int, bits: int, inputs: int, norm: bool
) -> int:
    """Bytes that all programs of a product ask for, repetitions included."""
    m_tiles = -(-rows // config.block_m)
    programs = m_tiles * -(-n // config.block_n)
    weights = programs * config.block_n * k * bits // 8
    columns = k + (k * config.split if norm and config.kind != "tiles" else 0)
    read = -(-n // config.block_n) * min(rows, m_tiles * config.block_m) * columns * inputs
    sums = 8 * rows * n * config.split if config.split > 1 else 0  # written, then read
    return weights + read + sums


@dataclass(frozen=True)
class Layer:
    """All products of one layer."""

    rows: int
    kinds: tuple[str, ...]
    weights: int
    """Bytes, which memory moves once."""
    cached: int
    """Bytes asked of the second-level cache."""
    cached_before: int
    """The same, if the form for few rows were taken for all above 4."""
    operations: int

    @property
    def microseconds(self) -> tuple[float, float, float]:
        """At the bandwidth of an H100's memory, at that of its cache, at its bfloat16 peak."""
        gpu = GPUS["H100"]
        seconds = (
            self.weights / gpu.bandwidth,
            self.cached / L2_BANDWIDTH,
            self.operations / gpu.bf16,
        )
        return tuple(1e6 * s for s in seconds)


def layer(shape: dict[str, int], rows: int, weights: str = "bfloat16", group: int = 128) -> Layer:
    """The products of a layer for `rows` rows, half of them with text, on an H100."""
    bits = {"bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}[weights]
    products = [
        (max(rows // share, 1), n, k, inputs, norm)
        for (n, k), (inputs, norm, share) in zip(layer_linears(shape), _INPUTS, strict=True)
    ]

    def configured(tiled: bool) -> list[tuple[str, int]]:
        """Form and bytes of each product."""
        found = []
        for own, n, k, inputs, norm in products:
            sizes = (own, n, k, bits, group if bits == 4 else 0, H100_PROCESSORS)
            config = choose_config(*sizes, inputs=inputs, tiled=tiled)
            found.append((config.kind, cache_bytes(config, own, n, k, bits, inputs, norm)))
        return found

    chosen = configured(rows > ROWS_ROWS)
    return Layer(
        rows=rows,
        kinds=tuple(dict.fromkeys(kind for kind, _ in chosen)),
        weights=sum(linear_bytes(n, k, weights) for _, n, k, _, _ in products),
        cached=sum(asked for _, asked in chosen),
        cached_before=sum(asked for _, asked in configured(False)),
        operations=sum(2 * own * n * k for own, n, k, _, _ in products),
    )
