"""The bytes and operations that a decode step cannot do without, and the time they take.

A step reads every weight once but for the embeddings (a row each) and the projections of the text
(made once), the cached keys and values of all positions so far, and those of the text. It cannot
be faster than that many bytes at the memory's bandwidth, nor than its products at the peak of the
matrix units.
"""

from dataclasses import dataclass

MEDIUM = {"dim": 1536, "num_heads": 24, "num_layers": 48, "n_q": 4, "card": 2048}
TINY = {"dim": 128, "num_heads": 2, "num_layers": 2, "n_q": 4, "card": 64}
SIZES = {"medium": MEDIUM, "tiny": TINY}
FORMATS = ("bfloat16", "float16", "int8", "int4")
INT4_GROUP = 128
FRAMES = 500  # 10 s at 50 frames a second
STEPS = 503  # the delay pattern of four codebooks needs three more
AUDIO_SECONDS = 10.0
TEXT_LENGTH = 16


@dataclass(frozen=True)
class Gpu:
    """Data sheet figures of a GPU."""

    bandwidth: float
    """Bytes per second."""
    bf16: float
    """Dense bfloat16 operations per second."""


GPUS = {
    "H100": Gpu(3.35e12, 989e12),
    "A100": Gpu(2.04e12, 312e12),
    "L4": Gpu(0.30e12, 121e12),
    "RTX 4090": Gpu(1.01e12, 165e12),
}


def find_gpu(name: str) -> str | None:
    """The key of `GPUS` for a device name of CUDA, such as 'NVIDIA H100 80GB HBM3'."""
    words = name.replace("-", " ").split()
    if "Laptop" in words:  # another chip under the same name
        return None
    for key in GPUS:
        if all(word in words for word in key.split()):
            return key
    return None


def linear_bytes(n: int, k: int, weights: str) -> int:
    """Bytes of a weight matrix `[n, k]` with its scales."""
    if weights == "int8":
        return n * k + 4 * n
    if weights == "int4":
        return n * k // 2 + 2 * n * (k // INT4_GROUP)
    return n * k * {"float32": 4, "float16": 2, "bfloat16": 2}[weights]


def layer_linears(shape: dict[str, int]) -> list[tuple[int, int]]:
    """`(n, k)` of the matrices that a step reads in each layer: the feed-forward is 4 wide."""
    d = shape["dim"]
    return [(3 * d, d), (d, d), (d, d), (d, d), (4 * d, d), (d, 4 * d)]


def weight_bytes(shape: dict[str, int], weights: str) -> int:
    """Bytes of the linear maps that a step reads."""
    d, heads = shape["dim"], shape["n_q"] * shape["card"]
    layer = sum(linear_bytes(n, k, weights) for n, k in layer_linears(shape))
    return shape["num_layers"] * layer + linear_bytes(heads, d, weights)


def norm_bytes(shape: dict[str, int]) -> int:
    """Bytes of the layer norms, float32."""
    return (3 * shape["num_layers"] + 1) * 2 * shape["dim"] * 4


@dataclass(frozen=True)
class StepFloor:
    """The least that one step moves and computes."""

    weight_bytes: int
    cache_bytes: int
    other_bytes: int
    """Text keys and values, norms, embedding rows."""
    operations: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.other_bytes

    def seconds(self, gpu: Gpu) -> float:
        return max(self.total_bytes / gpu.bandwidth, self.operations / gpu.bf16)


def step_floor(
    shape: dict[str, int],
    weights: str,
    descriptions: int,
    attended: float | None = None,
    text: int = TEXT_LENGTH,
    kv_bytes: int = 2,
) -> StepFloor:
    """The floor of a step with guidance: two rows for each description.

    Args:
        weights: format of the linear maps, one of `FORMATS`.
        attended: positions that are attended to; None for the mean over a clip, `(STEPS + 1) / 2`.
        text: text slots of each description; only its conditional row has any.
        kv_bytes: bytes of a cached number.
    """
    attended = (STEPS + 1) / 2 if attended is None else attended
    d, layers, rows = shape["dim"], shape["num_layers"], 2 * descriptions
    cache = int(2 * layers * d * kv_bytes * rows * attended)
    text_cache = 2 * layers * d * kv_bytes * descriptions * text
    size = 2 if weights in ("int8", "int4") else linear_bytes(1, 1, weights)
    embeddings = descriptions * shape["n_q"] * d * size
    heads = (shape["n_q"] * shape["card"], d)
    parameters = sum(n * k for n, k in layer_linears(shape)) * layers + heads[0] * heads[1]
    products = 2 * rows * parameters + int(4 * layers * d * rows * attended)
    return StepFloor(
        weight_bytes(shape, weights),
        cache,
        text_cache + norm_bytes(shape) + embeddings,
        products,
    )


def predictions(shape: dict[str, int] = MEDIUM) -> list[dict[str, float | str | int]]:
    """One row for each GPU, format and number of descriptions: bytes, ms/step, times real time."""
    rows = []
    for gpu_name, gpu in GPUS.items():
        for weights in FORMATS:
            for descriptions in (1, 8, 64):
                floor = step_floor(shape, weights, descriptions)
                seconds = floor.seconds(gpu)
                rows.append(
                    {
                        "gpu": gpu_name,
                        "weights": weights,
                        "descriptions": descriptions,
                        "bytes": floor.total_bytes,
                        "ms_per_step": round(1e3 * seconds, 3),
                        "times_real_time": round(
                            descriptions * AUDIO_SECONDS / (STEPS * seconds), 1
                        ),
                    }
                )
    return rows


def training_operations(shape: dict[str, int], batch: int, frames: int, text: int) -> int:
    """Operations of one training step, forward and backward, counting a product as two.

    6 for each parameter and position, and `12 * layers * dim * attended` for each position in
    self-attention with the causal half counted (PaLM, arXiv 2204.02311, appendix B).
    """
    d, layers = shape["dim"], shape["num_layers"]
    per_position = sum(n * k for n, k in layer_linears(shape)) * layers
    per_position += shape["n_q"] * shape["card"] * d
    positions = batch * frames
    text_projections = batch * text * layers * 2 * d * d
    attention = 12 * layers * d * positions * (frames / 2 + text)
    return int(6 * (per_position * positions + text_projections) + attention)
