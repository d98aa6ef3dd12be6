"""The native module's part of training on a CPU: float32 products and causal attention.

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


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`softmax(q k^T / sqrt(d)) v`, each step seeing itself and the past.

    Args:
        q, k, v: float32 `[B, H, T, d]` on the CPU.
    Returns:
        `[B, H, T, d]`, laid out as `[B, T, H, d]`, and the logarithm of the denominators of the
        softmax `[B, H, T]`.
    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit.
        MissingDependencyError: not `available()`.
    """
    module = _module()
    arguments = _heads(q, k, v)
    B, H, T, d = q.shape
    out, log_sums = torch.empty(B, T, H, d), torch.empty(B, H, T)
    if out.numel():
        module.causal_attention(
            (B, H, T, d),
            *(value for x in arguments for value in _address(x)),
            out.data_ptr(),
            log_sums.data_ptr(),
            torch.get_num_threads(),
        )
    return out.transpose(1, 2), log_sums


def causal_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, laid out as the result of `causal_attention`.

    Args:
        grad: of that result; the others as there.
        log_sums: float32 `[B, H, T]`, its second result.
    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit.
        MissingDependencyError: not `available()`.
    """
    module = _module()
    q, k, v, grad = _heads(q, k, v, grad)
    _check("log_sums", log_sums, 3)
    B, H, T, d = q.shape
    check(
        log_sums.shape == (B, H, T),
        f"log_sums must be {(B, H, T)}, got the shape {tuple(log_sums.shape)}",
    )
    grads = [torch.empty(B, T, H, d) for _ in range(3)]
    if q.numel():
        log_sums = log_sums.contiguous()
        module.causal_attention_backward(
            (B, H, T, d),
            *(value for x in (q, k, v, grad) for value in _address(x)),
            log_sums.data_ptr(),
            *(x.data_ptr() for x in grads),
            torch.get_num_threads(),
        )
    return tuple(x.transpose(1, 2) for x in grads)


def _heads(*tensors: Tensor) -> list[Tensor]:
    """The tensors, all of one shape, with a contiguous last dimension."""
    for name, x in zip(("q", "k", "v", "grad"), tensors, strict=False):
        _check(name, x, 4)
        shape = tuple(tensors[0].shape)
        check(x.shape == shape, f"{name} must be {shape}, as q is, got {tuple(x.shape)}")
    return [x if x.stride(3) == 1 else x.contiguous() for x in tensors]


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
