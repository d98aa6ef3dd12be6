"""The training ops on a GPU: the Triton launchers, with the signatures of `audiogen_fast.ops.cpu`.

Importing this imports no triton; the first call of an op does.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor


def codebook_embedding(codes: Tensor, tables: Sequence[Tensor], deterministic: bool) -> Tensor:
    # The kernel wants one block of memory; beside the rows looked up, the copy is small.
    return _kernels("codebook_embedding").codebook_embedding(codes, torch.stack(list(tables)))


def codebook_embedding_backward(
    grad: Tensor, codes: Tensor, rows: int, deterministic: bool
) -> Tensor:
    launch = _kernels("codebook_embedding").codebook_embedding_backward
    return launch(grad, codes, rows, deterministic).to(grad.dtype)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    launch = _kernels("add_layer_norm").add_layer_norm
    return launch(x, residual, weight.contiguous(), _contiguous(bias), eps, out_dtype)


def add_layer_norm_backward(
    grad_out: Tensor, grad_sum: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    launch = _kernels("add_layer_norm").add_layer_norm_backward
    return launch(grad_out, grad_sum, total, weight.contiguous(), mean, rstd)


def mlp(x: Tensor, weight1: Tensor, weight2: Tensor) -> tuple[Tensor, Tensor]:
    return _kernels("mlp").mlp(x, weight1, weight2)


def mlp_backward(
    grad: Tensor, x: Tensor, hidden: Tensor, weight1: Tensor, weight2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _kernels("mlp").mlp_backward(grad, x, hidden, weight1, weight2)


def cross_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, n_pad: Tensor
) -> tuple[Tensor, Tensor]:
    q, k, v = _last_stride_1(q), _last_stride_1(k), _last_stride_1(v)
    launch = _kernels("cross_attention_train").cross_attention
    return launch(q, k, v, lengths.contiguous(), n_pad.contiguous())


def cross_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    n_pad: Tensor,
    out: Tensor,
    stats: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _last_stride_1(q), _last_stride_1(k), _last_stride_1(v)
    launch = _kernels("cross_attention_train").cross_attention_backward
    return launch(grad.to(q.dtype), q, k, v, lengths.contiguous(), out, stats)


def codebook_cross_entropy(
    hidden: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    targets: Tensor,
    divisors: Tensor | None,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    launch = _kernels("codebook_cross_entropy").codebook_cross_entropy
    return launch(hidden, weights, biases, targets, divisors, with_gradients)


def rvq_decode(codes: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    tables = [table.detach().contiguous() for table in codebooks[: codes.shape[1]]]
    return _kernels("rvq_decode").rvq_decode(codes, tables)


def _kernels(name: str) -> ModuleType:
    return importlib.import_module(f"audiogen_fast.kernels.{name}")


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _last_stride_1(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
