"""Records of Triton launches: the kernel and everything that decides how it is compiled.

A record is plain data, because kernels are recorded in a process where they are interpreted and
compiled in one where they are not: Triton chooses when a kernel is decorated.
"""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction, KernelInterface


@dataclass(frozen=True)
class Pointer:
    """A tensor argument."""

    dtype: str
    """Name of its torch dtype: 'float16'."""
    misalignment: int
    """Its address modulo 16."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes from its first to its last element, at most those of a contiguous tensor."""
        if 0 in self.shape:
            return 0
        elements = 1
        for size, stride in zip(self.shape, self.strides, strict=True):
            elements *= size if stride else 1
        return elements * torch.empty((), dtype=getattr(torch, self.dtype)).element_size()


@dataclass(frozen=True)
class Named:
    """An argument that is a Triton type or another kernel, known by its name."""

    kind: str
    """'dtype' or 'kernel'."""
    name: str


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel."""

    kernel: str
    """`module:name`."""
    arguments: dict[str, Any]
    """By name, in the order of the signature: Pointer, Named, tuple, int, float, bool, None."""
    options: dict[str, Any]
    """num_warps, num_stages and the like, as far as the launcher gave them."""
    grid: tuple[int, int, int]

    @property
    def name(self) -> str:
        """The kernel without its module."""
        return self.kernel.rsplit(":", 1)[1]

    @property
    def pointers(self) -> dict[str, Pointer]:
        """Tensors among the arguments; of a tuple, which is of one kind, the first."""
        firsts = {
            name: value[0] if isinstance(value, tuple) and value else value
            for name, value in self.arguments.items()
        }
        return {name: value for name, value in firsts.items() if isinstance(value, Pointer)}

    def to_json(self) -> dict[str, Any]:
        """A form that json can write and `from_json` reads."""
        arguments = {name: _encode(value) for name, value in self.arguments.items()}
        return {**asdict(self), "arguments": arguments}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Launch":
        arguments = {name: _decode(value) for name, value in data["arguments"].items()}
        return Launch(data["kernel"], arguments, data["options"], tuple(data["grid"]))


@contextlib.contextmanager
def recording(*, execute: bool) -> Iterator[list[Launch]]:
    """Record every launch in the block, in order.

    Args:
        execute: also run the kernels (interpreted, or on a GPU). If false nothing is computed, so
            that tensors on the meta device will do and any size is quick.
    """
    launches: list[Launch] = []

    def intercept(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(kernel: KernelInterface, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            if not warmup:
                launches.append(_describe(kernel, args, grid, kwargs))
            if execute or warmup:
                return original(kernel, *args, grid=grid, warmup=warmup, **kwargs)
            return None

        return run

    originals = {kind: kind.run for kind in (JITFunction, InterpretedFunction)}
    for kind, original in originals.items():
        kind.run = intercept(original)
    try:
        yield launches
    finally:
        for kind, original in originals.items():
            kind.run = original


def find_kernel(name: str) -> Any:
    """The kernel of a record: `module:name`, imported."""
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def _describe(
    kernel: KernelInterface, args: tuple[Any, ...], grid: Any, kwargs: dict[str, Any]
) -> Launch:
    signature = inspect.signature(kernel.fn)
    names = set(signature.parameters)
    bound = signature.bind(*args, **{k: v for k, v in kwargs.items() if k in names})
    bound.apply_defaults()
    if callable(grid):
        grid = grid(dict(bound.arguments))
    return Launch(
        kernel=_name(kernel),
        arguments={name: _plain(value) for name, value in bound.arguments.items()},
        options={k: v for k, v in kwargs.items() if k not in names},
        grid=(*grid, 1, 1)[:3],
    )


def _name(kernel: KernelInterface) -> str:
    return f"{kernel.fn.__module__}:{kernel.fn.__name__}"


def _plain(value: Any) -> Any:
    if isinstance(value, tl.constexpr):
        return _plain(value.value)
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return Pointer(dtype, value.data_ptr() % 16, tuple(value.shape), value.stride())
    if isinstance(value, tl.dtype):
        return Named("dtype", value.name)
    if isinstance(value, KernelInterface):
        return Named("kernel", _name(value))
    if isinstance(value, tuple | list):
        return tuple(_plain(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a launch argument of the type {type(value).__name__} cannot be recorded")


def _encode(value: Any) -> Any:
    if isinstance(value, Pointer | Named):
        return {"class": type(value).__name__, **asdict(value)}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        kind = {"Pointer": Pointer, "Named": Named}[fields.pop("class")]
        return kind(**fields)
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    return value


def launch_value(value: Any) -> Any:
    """What to pass to a kernel for a recorded argument when it is only to be compiled."""
    if isinstance(value, Pointer):
        return _Address(value)
    if isinstance(value, Named):
        return tl.dtype(value.name) if value.kind == "dtype" else find_kernel(value.name)
    if isinstance(value, tuple):
        return tuple(launch_value(item) for item in value)
    return value


class _Address:
    """Looks to Triton like a tensor of that dtype and alignment; there is no memory behind it."""

    def __init__(self, pointer: Pointer):
        self.dtype = getattr(torch, pointer.dtype)
        self._address = pointer.misalignment

    def data_ptr(self) -> int:
        return self._address
