"""Weight-only int8 and int4: how a matrix is rounded, and how a GPU kernel finds it in memory.

The numbers are those of the native engine (`csrc/cpu/decoder/pack.cpp`): the same scales, groups
and rounding, so that both engines compute with the same weights. The memory layout is the GPU's:

- int8: `data` int8 `[N, Kp]`, row-major; `scale` float32 `[N]`, one per output channel.
- int4: `data` uint8 `[N, Kp / 2]`, row-major; `scale` bfloat16 `[N, Kp / group]`. A group of G
  columns is G / 2 contiguous bytes, whole 16-byte loads that need one scale; byte j of it holds
  column j in its low and column j + G / 2 in its high nibble, each plus 8. Low and high nibbles
  are then two runs of neighbouring columns, and are multiplied without being interleaved.

Columns past K are zero: Kp is K rounded up to 16 (int8) or to a multiple of the group (int4).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from audiogen_fast.errors import check

FORMATS = ("int8", "int4")
GROUPS = (64, 128)


@dataclass(frozen=True)
class QuantizedWeight:
    """A packed matrix `[n, k]`; see the module's docstring for the layout."""

    format: str
    data: Tensor
    scale: Tensor
    n: int
    k: int
    group: int
    """Columns that share a scale: all of them (Kp) for int8."""

    @property
    def nbytes(self) -> int:
        """Bytes of data and scales."""
        return self.data.nbytes + self.scale.nbytes

    def to(self, device: torch.device | str) -> "QuantizedWeight":
        """The same matrix on another device."""
        data, scale = self.data.to(device), self.scale.to(device)
        return QuantizedWeight(self.format, data, scale, self.n, self.k, self.group)


@torch.no_grad()
def quantize(weight: Tensor, format: str, group: int = 128) -> QuantizedWeight:
    """Round a matrix to int8 (one scale per row) or int4 (one per row and group of columns).

    int8: `scale = max |row| / 127`, values rounded to the nearest (ties to even) of
    -127..127. int4: `scale = max |group| / 7` in bfloat16, rounded up so that the largest value is
    never cut, values in -7..7. Rows and groups of zeros have scale 0.

    Args:
        weight: floating `[N, K]`, finite.
        format: `int8` or `int4`.
        group: 64 or 128, of int4.
    Returns:
        The packed matrix on the device of `weight`.
    Raises:
        InvalidInputError: another shape, format or group, or values that are not finite.
    """
    check(format in FORMATS, f"format must be one of {FORMATS}, got {format!r}")
    check(group in GROUPS, f"group must be one of {GROUPS}, got {group!r}")
    check(
        weight.dim() == 2 and weight.is_floating_point() and weight.numel() > 0,
        f"weight must be a floating matrix [N, K], got {weight.dtype} {tuple(weight.shape)}",
    )
    check(bool(weight.isfinite().all()), "weight must be finite, got NaN or infinite")
    n, k = weight.shape
    step = 16 if format == "int8" else group
    values = torch.nn.functional.pad(weight.float(), (0, -k % step))
    if format == "int8":
        scale = values.abs().amax(dim=1) / 127
        data = _rounded(values, scale.unsqueeze(1), 127).to(torch.int8)
        return QuantizedWeight(format, data, scale, n, k, values.shape[1])
    values = values.unflatten(1, (-1, group))
    exact = values.abs().amax(dim=2) / 7
    scale = exact.to(torch.bfloat16)
    # Next bfloat16 up: one more in the bits of a positive number.
    up = (scale.view(torch.int16) + 1).view(torch.bfloat16)
    scale = torch.where(scale.float() < exact, up, scale)
    q = (_rounded(values, scale.float().unsqueeze(2), 7) + 8).to(torch.uint8)
    low, high = q[..., : group // 2], q[..., group // 2 :]
    data = (low | high << 4).flatten(1).contiguous()
    return QuantizedWeight(format, data, scale, n, k, group)


def dequantize(packed: QuantizedWeight) -> Tensor:
    """The matrix that a packed one stands for, float32 `[N, K]`."""
    # `narrow`, because fake CUDA tensors, on which steps are tested, cannot be indexed.
    values = integers(packed).float() * _scale_of_columns(packed)
    return values.narrow(1, 0, packed.k)


def integers(packed: QuantizedWeight) -> Tensor:
    """The integers of a packed matrix, int8 `[N, Kp]`, padding included."""
    if packed.format == "int8":
        return packed.data
    grouped = packed.data.unflatten(1, (-1, packed.group // 2))
    both = torch.cat([grouped & 15, grouped >> 4], dim=2)
    return both.flatten(1).to(torch.int8) - 8


def _scale_of_columns(packed: QuantizedWeight) -> Tensor:
    if packed.format == "int8":
        return packed.scale.unsqueeze(1).expand(-1, packed.group)
    return packed.scale.float().repeat_interleave(packed.group, dim=1)


def _rounded(values: Tensor, scale: Tensor, limit: int) -> Tensor:
    q = torch.round(values / scale).clamp(-limit, limit)
    return torch.where(scale == 0, 0.0, q)
