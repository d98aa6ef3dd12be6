"""Matrices of a language model packed for the native engine, as a folder keeps them.

`csrc/cpu/decoder/kernels.h` defines the layout. In the file, matrix `qkv` of layer 3 is the bytes
`packed.3.qkv.data`, aligned to 64, and, in the integer formats, `packed.3.qkv.scales`;
everything that is not a packed matrix has its usual name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from audiogen_fast.errors import CheckpointError

PREFIX = "packed."
FORMATS = ("float32", "bfloat16", "int8", "int4")
GROUP_SIZES = (64, 128)
_PARAMETER = re.compile(
    r"transformer\.layers\.\d+\.(self_attn\.|cross_attention\.|linear[12]\.)"
    r"(in_proj_weight|out_proj\.weight|weight)|linears\.\d+\.weight"
)


def is_packed_parameter(name: str) -> bool:
    """Whether the language model's parameter of that name becomes part of a packed matrix."""
    return _PARAMETER.fullmatch(name) is not None


@dataclass
class PackedWeights:
    """All packed matrices of a model.

    Args:
        format: one of `FORMATS`.
        group_size: columns per scale of int4.
        tensors: `LAYER.NAME.data` and `LAYER.NAME.scales` -> uint8 `[bytes]`; `0.heads` for the
            output heads. Layer and name are those of `generation.native_weights.matrices`.
    """

    format: str
    group_size: int
    tensors: Mapping[str, Tensor] = field(repr=False)


def split_packed(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The ordinary and the packed tensors of a file."""
    ordinary = {name: t for name, t in state.items() if not name.startswith(PREFIX)}
    packed = {n.removeprefix(PREFIX): t for n, t in state.items() if n.startswith(PREFIX)}
    return ordinary, packed


def read_header(source: Any, config: Mapping[str, Any]) -> tuple[str, int]:
    """Format and group size of a folder's configuration `packed`.

    Raises:
        CheckpointError: unknown values.
    """
    kind, group_size = config.get("format"), config.get("group_size")
    if kind not in FORMATS or group_size not in GROUP_SIZES:
        raise CheckpointError(
            f"{source}: packed weights must have a format of {FORMATS} and a group_size of "
            f"{GROUP_SIZES}, got {kind!r} and {group_size!r}"
        )
    return kind, group_size
