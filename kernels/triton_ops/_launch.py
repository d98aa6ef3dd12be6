"""What the launchers of several kernels share: checks, and facts about the device."""

import functools
import os

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

OPTIONS = {"enable_fp_fusion": True}
"""What every kernel is compiled with: `x * y + z` rounds once, whatever Triton's default is."""


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_tensor(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
    contiguous: bool = True,
) -> None:
    """Raise `ValueError` unless a tensor is what a kernel takes it for."""
    require(
        tuple(tensor.shape) == tuple(shape),
        f"{name} must have the shape {tuple(shape)}, got {tuple(tensor.shape)}",
    )
    require(
        tensor.dtype in dtypes,
        f"{name} must be one of {[str(d) for d in dtypes]}, got {tensor.dtype}",
    )
    require(tensor.device == device, f"{name} must be on {device}, got {tensor.device}")
    require(not contiguous or tensor.is_contiguous(), f"{name} must be contiguous")


def require_cached_attention(
    q: Tensor, keys: Tensor, values: Tensor, out: Tensor, active: Tensor | None
) -> None:
    """Raise `ValueError` unless these are one query `[R, H d]` for each row of caches
    `[R, H, C, d]`, its result, and whether a slot is active `[slots]`."""
    rows, heads, _, width = keys.shape
    device = keys.device
    require_tensor("q", q, (rows, heads * width), FLOATS, device)
    require_tensor("keys", keys, tuple(keys.shape), FLOATS, device, contiguous=False)
    require_tensor("values", values, tuple(keys.shape), (keys.dtype,), device, contiguous=False)
    require(
        keys.stride() == values.stride() and keys.stride(3) == 1,
        "keys and values must have the same strides, the last of them 1",
    )
    require_tensor("out", out, (rows, heads * width), FLOATS, device)
    if active is not None:
        require(active.numel() > 0, "active must not be empty")
        require_tensor("active", active, (active.numel(),), (torch.bool,), device)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which is chosen when they are decorated."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.lru_cache(maxsize=16)
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; 1 for any other, which has one worker.

    Where there is none to ask, as when launches are only recorded, those of an H100.
    """
    if device.type != "cuda":
        return 1
    if not torch.cuda.is_available():
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.lru_cache(maxsize=16)
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may use on a CUDA device; where there is none to
    ask, those of an H100."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 232448
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin
