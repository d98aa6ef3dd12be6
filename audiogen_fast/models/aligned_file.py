"""Safetensors files whose large tensors begin on a cache line.

The library's own writer orders tensors by dtype and name after a header of any length. A kernel
that streams a tensor straight from the mapped file wants it aligned, so this writes the same format
(https://huggingface.co/docs/safetensors, "Format") in another order; the library reads it.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

ALIGNMENT = 64
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_aligned(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous CPU tensors to `path`, without a copy of them.

    Those whose size is a multiple of `ALIGNMENT` bytes come first, each on such a multiple in the
    file; the others follow, widest elements first, so that each is aligned to its elements.
    """
    order = sorted(
        tensors,
        key=lambda n: (_size(tensors[n]) % ALIGNMENT != 0, -tensors[n].element_size(), n),
    )
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + _size(tensor)
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            if tensors[name].numel():
                file.write(memoryview(tensors[name].view(-1).view(torch.uint8).numpy()))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
