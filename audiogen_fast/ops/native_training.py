"""The native module's part of training on a CPU: float32 products and attention.

Tensors are checked here, the loops are C++ on the threads of torch. `available()` is false without
the module, without AVX-512, or with `AUDIOGEN_FAST_BACKEND=reference`.
"""

import functools
import re
from pathlib import Path

import torch
from torch import Tensor

from audiogen_fast._backend import load_native
from audiogen_fast.errors import MissingDependencyError, check
from audiogen_fast.ops import native


@functools.cache
def _supported() -> bool:
    module = load_native()[0]
    return module is not None and module.training_ops_available()


def available() -> bool:
    """Whether the functions below can be used here."""
    return native.available() and _supported()


@functools.cache
def is_amd() -> bool:
    """Whether the processor is one of AMD's, on which MKL does not run at its best."""
    try:
        vendor = re.search(r"vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        return False
    return vendor is not None and vendor[1] == "AuthenticAMD" and torch.backends.mkl.is_available()


def product(
    a: Tensor, b: Tensor, out: Tensor | None = None, alpha: float = 1.0, add: bool = False
) -> Tensor:
    """`alpha * a @ b`, added to `out` with `add`.

    The sums are taken in the same order whatever the number of threads.

    Args:
        a, b: float32 `[M, K]` and `[K, N]` on the CPU, of any strides; transposed matrices are
            read as they lie.
        out: float32 `[M, N]` with contiguous rows to write to; None for a new one.
    Returns:
        `out`.
    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit.
        MissingDependencyError: not `available()`.
    """
    module = _module()
    _check("a", a, 2)
    _check("b", b, 2)
    check(
        a.shape[1] == b.shape[0],
        f"b must have {a.shape[1]} rows, the columns of a, got the shape {tuple(b.shape)}",
    )
    check(out is not None or not add, "out must be given with add=True, got None")
    shape = (a.shape[0], b.shape[1])
    if out is None:
        out = torch.empty(shape)
    _check("out", out, 2)
    fits = out.shape == shape and (out.stride(1) == 1 or out.shape[1] <= 1)
    check(
        fits,
        f"out must be {shape} with contiguous rows, got {tuple(out.shape)} with the strides "
        f"{out.stride()}",
    )
    a, b = (x if 1 in x.stride() else x.contiguous() for x in (a, b))
    module.product(
        *shape,
        a.shape[1],
        a.data_ptr(),
        *a.stride(),
        b.data_ptr(),
        *b.stride(),
        out.data_ptr(),
        out.stride(0),
        alpha,
        add,
        torch.get_num_threads(),
    )
    return out


def attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None = None, n_pad: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`softmax(q k^T / sqrt(d)) v`: causal, or over a text of which each row has its own length.

    Args:
        q: float32 `[B, H, T, d]` on the CPU; k, v: the same shape, or `[B, H, L, d]` with lengths.
        lengths, n_pad: int64 `[B]`, see `reference.cross_attention`; None for causal attention.
    Returns:
        `[B, H, T, d]`, laid out as `[B, T, H, d]`, and the logarithm of the denominators of the
        softmax `[B, H, T]`.
    Raises:
        InvalidInputError: shapes, dtypes, devices or lengths that do not fit.
        MissingDependencyError: not `available()`.
    """
    module = _module()
    heads = _heads(q, k, v, lengths is None)
    shape, limits = _limits(q, k, lengths, n_pad)
    B, H, T, d = q.shape
    out, log_sums = torch.empty(B, T, H, d), torch.empty(B, H, T)
    if out.numel():
        module.attention(
            shape,
            [0 if x is None else x.data_ptr() for x in limits],
            *(value for x in heads for value in _address(x)),
            out.data_ptr(),
            log_sums.data_ptr(),
            torch.get_num_threads(),
        )
    return out.transpose(1, 2), log_sums


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_sums: Tensor,
    lengths: Tensor | None = None,
    n_pad: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, laid out as the result of `attention`.

    Args:
        grad: of that result; the others as there.
        log_sums: float32 `[B, H, T]`, its second result.
    Raises:
        InvalidInputError: shapes, dtypes, devices or lengths that do not fit.
        MissingDependencyError: not `available()`.
    """
    module = _module()
    q, k, v = _heads(q, k, v, lengths is None)
    (grad,) = _heads(grad)
    shape, limits = _limits(q, k, lengths, n_pad)
    B, H, T, d = q.shape
    check(grad.shape == q.shape, f"grad must be {tuple(q.shape)}, got {tuple(grad.shape)}")
    _check("log_sums", log_sums, 3)
    check(
        log_sums.shape == (B, H, T),
        f"log_sums must be {(B, H, T)}, got the shape {tuple(log_sums.shape)}",
    )
    if q.numel() == 0:
        return tuple(torch.zeros(B, x.shape[2], H, d).transpose(1, 2) for x in (q, k, v))
    grads = [torch.empty(B, x.shape[2], H, d) for x in (q, k, v)]
    log_sums = log_sums.contiguous()
    module.attention_backward(
        shape,
        [0 if x is None else x.data_ptr() for x in limits],
        *(value for x in (q, k, v, grad) for value in _address(x)),
        log_sums.data_ptr(),
        *(x.data_ptr() for x in grads),
        torch.get_num_threads(),
    )
    return tuple(x.transpose(1, 2) for x in grads)


def _heads(q: Tensor, k: Tensor | None = None, v: Tensor | None = None, same: bool = False):
    """The tensors with a contiguous last dimension."""
    given = {name: x for name, x in (("q", q), ("k", k), ("v", v)) if x is not None}
    for name, x in given.items():
        _check(name, x, 4)
        shape = tuple(q.shape) if same or k is None else (*q.shape[:2], k.shape[2], q.shape[3])
        fits = name == "q" or tuple(x.shape) == shape
        check(fits, f"{name} must be {shape}, to fit q, got {tuple(x.shape)}")
    return [x if x.stride(3) == 1 else x.contiguous() for x in given.values()]


def _limits(q: Tensor, k: Tensor, lengths: Tensor | None, n_pad: Tensor | None):
    """The shape, and the lengths and pads that the C++ reads."""
    shape = [*q.shape, k.shape[2]]
    if lengths is None:
        return shape, (None, None)
    for name, x in (("lengths", lengths), ("n_pad", n_pad)):
        fits = x is not None and x.shape == q.shape[:1] and x.dtype == torch.int64
        check(fits, f"{name} must be int64 [{q.shape[0]}], got {x}")
    if len(lengths):
        low, high = (int(x) for x in torch.aminmax(lengths))
        check(
            0 <= low and high <= k.shape[2],
            f"lengths must be in [0, {k.shape[2]}], the slots of k, got {low} to {high}",
        )
        least = int(n_pad.min())
        check(least >= 0, f"n_pad must be at least 0, got {least}")
    return shape, (lengths.contiguous(), n_pad.contiguous())


def _address(x: Tensor) -> tuple[int, tuple[int, int, int]]:
    return x.data_ptr(), x.stride()[:3]


def _check(name: str, x: Tensor, dims: int) -> None:
    fits = x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == dims
    check(
        fits,
        f"{name} must be float32 on the CPU with {dims} dimensions, got {x.dtype} on {x.device} "
        f"with the shape {tuple(x.shape)}",
    )


def _module():
    if not available():
        reason = native.why_unavailable() or "they need a processor with AVX-512"
        raise MissingDependencyError(f"the native training ops are not available: {reason}")
    return load_native()[0]
