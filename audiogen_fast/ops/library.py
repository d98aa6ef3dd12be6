"""The training ops as operators of torch, `torch.ops.audiogen_fast.*`: kernels, shapes, gradients.

Every operator has a CPU kernel (`audiogen_fast.ops.cpu`), a CUDA kernel (`audiogen_fast.ops.cuda`)
where torch's own is not what is used there, a shape function for tracing, and its gradient where it
has one; the gradients are operators too.
Call them through `audiogen_fast.ops.autograd`, which checks arguments and knows when to take the
plain definition.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from audiogen_fast.ops import cpu, cuda


def _define(name: str, shapes: Callable[..., Any]) -> Any:
    """The operator of that name, with the schema of its CPU kernel."""
    operator = torch.library.custom_op(
        f"audiogen_fast::{name}", getattr(cpu, name), mutates_args=(), device_types="cpu"
    )
    if hasattr(cuda, name):
        operator.register_kernel("cuda")(getattr(cuda, name))
    operator.register_fake(shapes)
    return operator


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _heads_last(x):
    """Like `[B, H, T, d]`, laid out as `[B, T, H, d]`."""
    B, H, T, d = x.shape
    return x.new_empty(B, T, H, d).transpose(1, 2)


def _embedding_shape(codes, tables, deterministic):
    B, _, S = codes.shape
    return tables[0].new_empty(B, S, tables[0].shape[1], dtype=_wide(tables[0].dtype))


def _embedding_backward_shape(grad, codes, rows, deterministic):
    return grad.new_empty(codes.shape[1], rows, grad.shape[-1])


def _embedding_context(ctx, inputs, output):
    codes, tables, ctx.deterministic = inputs
    ctx.save_for_backward(codes)
    ctx.rows, ctx.dtype = tables[0].shape[0], tables[0].dtype


def _embedding_gradient(ctx, grad):
    (codes,) = ctx.saved_tensors
    grads = codebook_embedding_backward(grad, codes, ctx.rows, ctx.deterministic)
    return None, list(grads.to(ctx.dtype).unbind()), None


codebook_embedding = _define("codebook_embedding", _embedding_shape)
codebook_embedding_backward = _define("codebook_embedding_backward", _embedding_backward_shape)
codebook_embedding.register_autograd(_embedding_gradient, setup_context=_embedding_context)


def _norm_shape(x, residual, weight, bias, eps, out_dtype):
    rows = residual.numel() // residual.shape[-1]
    statistic = residual.new_empty(rows, dtype=_wide(residual.dtype))
    total = residual.new_empty(residual.shape)
    return torch.empty_like(total, dtype=out_dtype), total, statistic, torch.empty_like(statistic)


def _norm_backward_shape(grad_out, grad_sum, total, weight, mean, rstd):
    affine = mean.new_empty(weight.shape)
    return torch.empty_like(total), affine, torch.empty_like(affine)


def _norm_context(ctx, inputs, output):
    x, residual, weight, bias, _, _ = inputs
    _, total, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(total, weight, mean, rstd)
    ctx.x_dtype, ctx.bias_dtype = x.dtype, None if bias is None else bias.dtype


def _norm_gradient(ctx, grad_out, grad_sum, _mean, _rstd):
    total, weight, mean, rstd = ctx.saved_tensors
    grad, weight_grad, bias_grad = add_layer_norm_backward(
        grad_out, grad_sum, total, weight, mean, rstd
    )
    bias_grad = None if ctx.bias_dtype is None else bias_grad.to(ctx.bias_dtype)
    return grad.to(ctx.x_dtype), grad, weight_grad.to(weight.dtype), bias_grad, None, None


add_layer_norm = _define("add_layer_norm", _norm_shape)
add_layer_norm_backward = _define("add_layer_norm_backward", _norm_backward_shape)
add_layer_norm.register_autograd(_norm_gradient, setup_context=_norm_context)


def _linear_shape(x, weight):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _linear_backward_shape(grad, x, weight, wants_x, wants_weight):
    return (
        x.new_empty(x.shape if wants_x else 0),
        weight.new_empty(weight.shape if wants_weight else 0),
    )


def _linear_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _linear_gradient(ctx, grad):
    wanted = ctx.needs_input_grad
    grads = linear_backward(grad, *ctx.saved_tensors, *wanted)
    return tuple(g if w else None for g, w in zip(grads, wanted, strict=True))


linear = _define("linear", _linear_shape)
linear_backward = _define("linear_backward", _linear_backward_shape)
linear.register_autograd(_linear_gradient, setup_context=_linear_context)


def _causal_shape(q, k, v):
    return _heads_last(q), q.new_empty(q.shape[:3], dtype=_wide(q.dtype))


def _causal_backward_shape(grad, q, k, v, out, log_sum):
    return _heads_last(q), _heads_last(k), _heads_last(v)


def _causal_context(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _causal_gradient(ctx, grad, _log_sum):
    return causal_attention_backward(grad, *ctx.saved_tensors)


causal_attention = _define("causal_attention", _causal_shape)
causal_attention_backward = _define("causal_attention_backward", _causal_backward_shape)
causal_attention.register_autograd(_causal_gradient, setup_context=_causal_context)


def _mlp_shape(x, weight1, weight2):
    rows = x.numel() // x.shape[-1]
    return (
        x.new_empty(*x.shape[:-1], weight2.shape[0]),
        x.new_empty(rows, weight1.shape[0]),
    )


def _mlp_backward_shape(grad, x, hidden, weight1, weight2):
    return x.new_empty(x.shape), weight1.new_empty(weight1.shape), weight2.new_empty(weight2.shape)


def _mlp_context(ctx, inputs, output):
    x, weight1, weight2 = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], weight1, weight2)


def _mlp_gradient(ctx, grad, _hidden):
    return mlp_backward(grad, *ctx.saved_tensors)


mlp = _define("mlp", _mlp_shape)
mlp_backward = _define("mlp_backward", _mlp_backward_shape)
mlp.register_autograd(_mlp_gradient, setup_context=_mlp_context)


def _attention_shape(q, k, v, lengths, n_pad):
    # A kernel of its own kind on each device, with its own statistics of the softmax.
    kinds = 2 if q.device.type == "cuda" else 1
    return _heads_last(q), q.new_empty(kinds, *q.shape[:3], dtype=_wide(q.dtype))


def _attention_backward_shape(grad, q, k, v, lengths, n_pad, out, stats):
    return _heads_last(q), _heads_last(k), _heads_last(v)


def _attention_context(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _attention_gradient(ctx, grad, _stats):
    return *cross_attention_backward(grad, *ctx.saved_tensors), None, None


cross_attention = _define("cross_attention", _attention_shape)
cross_attention_backward = _define("cross_attention_backward", _attention_backward_shape)
cross_attention.register_autograd(_attention_gradient, setup_context=_attention_context)


def _entropy_shape(hidden, weights, biases, targets, divisors, with_gradients):
    K, wide = len(weights), _wide(weights[0].dtype)
    card, dim = weights[0].shape
    B, S, _ = hidden.shape
    loss = hidden.new_empty((), dtype=wide)
    return (
        loss,
        hidden.new_empty(K, dtype=wide),
        torch.empty_like(loss),
        hidden.new_empty(B if with_gradients else 0, S, dim),
        hidden.new_empty(K if with_gradients else 0, card, dim, dtype=wide),
        hidden.new_empty(K if with_gradients and biases else 0, card, dtype=wide),
    )


def _entropy_context(ctx, inputs, output):
    _, weights, ctx.biases, _, _, _ = inputs
    ctx.biases, ctx.heads, ctx.dtype = len(ctx.biases), len(weights), weights[0].dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[2:])


def _entropy_gradient(ctx, grad, *_):
    scale, *grads = ctx.saved_tensors
    hidden, weights, biases = codebook_cross_entropy_backward(grad, scale, *grads)
    biases = list(biases.to(ctx.dtype).unbind())[: ctx.biases]
    return hidden, list(weights.to(ctx.dtype).unbind()), biases, None, None, None


def _scaled(
    grad: Tensor, scale: Tensor, hidden: Tensor, weights: Tensor, biases: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    # An operator of its own, so that a gradient of this gradient is an error and not a wrong one.
    factor = grad * scale
    return tuple((t * factor).to(t.dtype) for t in (hidden, weights, biases))


codebook_cross_entropy = _define("codebook_cross_entropy", _entropy_shape)
codebook_cross_entropy.register_autograd(_entropy_gradient, setup_context=_entropy_context)
codebook_cross_entropy_backward = torch.library.custom_op(
    "audiogen_fast::codebook_cross_entropy_backward", _scaled, mutates_args=()
)
codebook_cross_entropy_backward.register_fake(
    lambda grad, scale, *grads: tuple(torch.empty_like(t) for t in grads)
)
