"""What the native engine is made of: a model's matrices, packed now or before."""

import ctypes
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from audiogen_fast.models.lm import LMModel
from audiogen_fast.models.packed import PackedWeights, is_packed_parameter
from audiogen_fast.models.weights import release_mapped

Matrix = tuple[str, int, Tensor, Tensor | None]
"""Name, layer, weight `[n, k]` (on the meta device where it is packed already), bias or None."""


def matrices(lm: LMModel) -> Iterator[Matrix]:
    """All matrices the decoder packs, layer by layer, and the heads last."""
    dim = lm.dim
    for index, layer in enumerate(lm.transformer.layers):
        own, cross = layer.self_attn, layer.cross_attention
        yield "qkv", index, own.in_proj_weight, own.in_proj_bias
        yield "out", index, own.out_proj.weight, own.out_proj.bias
        yield "ff1", index, layer.linear1.weight, layer.linear1.bias
        yield "ff2", index, layer.linear2.weight, layer.linear2.bias
        if cross is not None:
            weight, bias = cross.in_proj_weight, cross.in_proj_bias
            yield "cross_q", index, weight[:dim], None if bias is None else bias[:dim]
            yield "cross_kv", index, weight[dim:], None if bias is None else bias[dim:]
            yield "cross_out", index, cross.out_proj.weight, cross.out_proj.bias
    biased = lm.linears[0].bias is not None
    heads = torch.cat([head.weight for head in lm.linears])
    yield "heads", 0, heads, torch.cat([h.bias for h in lm.linears]) if biased else None


@torch.no_grad()
def fill(decoder, lm: LMModel, release: bool = False) -> None:
    """Give a decoder the weights of `lm`: matrices one by one, so that the peak of memory is the
    packed result and one of them in float32.

    Args:
        release: hand back memory mapped from the checkpoint on the way, with whatever was written
            to it since.
    Raises:
        ValueError: weights that are not finite, or packed ones of the wrong size.
    """
    packed = lm.packed
    scratch = torch.empty(0)  # one for all: hundreds of their own would leave holes in the heap
    for name, index, weight, bias in matrices(lm):
        bias = None if bias is None else floats(bias)
        bias_address = 0 if bias is None else bias.data_ptr()
        if packed is None:
            wide = weight.detach()
            if wide.dtype != torch.float32 or not wide.is_contiguous():
                scratch = scratch if scratch.numel() >= wide.numel() else torch.empty(wide.numel())
                wide = scratch[: wide.numel()].view_as(wide).copy_(wide)
            decoder.set_matrix(name, index, wide.data_ptr(), *wide.shape, bias_address)
            if release:
                release_mapped(lm, weight)
        else:
            data, scales = (_bytes(packed, f"{index}.{name}.{part}") for part in ("data", "scales"))
            decoder.set_packed(name, index, *data, *scales, bias_address)
    for index, layer in enumerate(lm.transformer.layers):
        for name in ("norm1", "norm2", "norm_cross"):
            if hasattr(layer, name):
                _set_norm(decoder, name, index, getattr(layer, name))
    _set_norm(decoder, "out_norm", 0, lm.out_norm)
    for codebook, table in enumerate(lm.emb):
        vectors = floats(table.weight)  # perhaps a copy, which must live until it is read
        decoder.set_embedding(codebook, vectors.data_ptr())


def packed_weights(decoder, lm: LMModel, format: str, group_size: int) -> PackedWeights:
    """All packed matrices of a decoder, as views of its memory."""
    tensors = {}
    for name, index, _, _ in matrices(lm):
        data, size, scales, scale_size = decoder.packed_matrix(name, index)
        tensors[f"{index}.{name}.data"] = _view(data, size)
        if scale_size:
            tensors[f"{index}.{name}.scales"] = _view(scales, scale_size)
    return PackedWeights(format, group_size, tensors)


def packed_size(lm: LMModel, weights: str) -> int:
    """Bytes that the packed matrices of `lm` take, up to some padding."""
    bits = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}[weights]
    total = 0
    for name, weight in lm.named_parameters():
        if name.endswith("cross_attention.in_proj_weight"):
            # Two thirds of it project the text, which is packed with at least 16 bits.
            total += weight.numel() * (bits + 2 * max(bits, 16)) // 24
        elif is_packed_parameter(name):
            total += weight.numel() * bits // 8
    return total


def make_decoder(module: ModuleType, lm: LMModel, **settings):
    """An empty decoder for `lm`; `settings` are fields of `DecoderConfig`."""
    layers = lm.transformer.layers
    config = module.DecoderConfig()
    config.dim, config.heads = lm.dim, layers[0].self_attn.num_heads
    config.layers, config.hidden = len(layers), layers[0].linear1.out_features
    config.card, config.codebooks = lm.card, lm.n_q
    config.eps = layers[0].norm1.eps
    for name, value in settings.items():
        setattr(config, name, value)
    return module.Decoder(config)


def floats(tensor: Tensor) -> Tensor:
    """The tensor in float32 on the CPU, contiguous."""
    return tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()


def _set_norm(decoder, name: str, layer: int, module: torch.nn.LayerNorm) -> None:
    weight, bias = floats(module.weight), floats(module.bias)
    decoder.set_norm(name, layer, weight.data_ptr(), bias.data_ptr())


def _bytes(packed: PackedWeights, name: str) -> tuple[int, int]:
    tensor = packed.tensors.get(name)
    if tensor is None:
        return 0, 0
    if tensor.dtype != torch.uint8 or not tensor.is_contiguous():
        raise ValueError(f"packed {name} must be contiguous bytes, got {tensor.dtype}")
    return tensor.data_ptr(), tensor.numel()


def _view(address: int, size: int) -> Tensor:
    return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)
