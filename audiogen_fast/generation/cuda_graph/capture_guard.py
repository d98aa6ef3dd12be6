"""A guard that refuses what a CUDA graph cannot capture, on any machine.

Run a step under it, best on fake CUDA tensors (`torch._subclasses.FakeTensorMode`), which need no
GPU and know their device.
"""

import gc
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Methods that hand values to Python; some of them reach no dispatcher.
_READS = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")
_READING_METHODS = {getattr(Tensor, name) for name in _READS}
# Wait for the device on CUDA, though their tags do not say so.
_WAITING_OPS = ("multinomial", "is_nonzero", "_local_scalar_dense", "equal", "unique_dim")
# Shapes depend on data only if an index is a mask.
_INDEXING_OPS = ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_")
_WAITING_CALLS = (
    (torch.cuda, "synchronize"),
    (torch.cuda.Stream, "synchronize"),
    (torch.cuda.Event, "synchronize"),
)


class CaptureError(AssertionError):
    """What ran cannot be captured; the message says which call and why."""


class CaptureGuard:
    """Context in which each of these raises `CaptureError`:

    - reading a value on the host, or waiting for the device;
    - an op whose result's shape depends on data;
    - a copy between devices, or a new tensor on another device than `device`;
    - a tensor made inside that is still alive at the end: a replay would write to memory that the
      pool has given to something else;
    - with `allocations=False`, any new tensor at all.

    `allocated` names, after the context, the ops that made tensors.

    Args:
        device: type of the device that is captured. With `cpu` the copies and host tensors of a
            real capture cannot be told apart; new tensors of Python numbers are still refused.
        allocations: whether tensors may be made inside, from the pool of the graph.
    """

    def __init__(self, device: str = "cuda", allocations: bool = True):
        self.device, self.allocations = device, allocations
        self.allocated: set[str] = set()
        self._made: list[tuple[str, weakref.ref]] = []
        self._modes = (_Methods(), _Ops(self))

    def __enter__(self) -> "CaptureGuard":
        self._calls = [(owner, name, getattr(owner, name)) for owner, name in _WAITING_CALLS]
        for owner, name, _ in self._calls:
            setattr(owner, name, _refuse_wait)
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, kind, value, traceback) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, value, traceback)
        for owner, name, original in self._calls:
            setattr(owner, name, original)
        if kind is None:
            gc.collect()
            alive = sorted({name for name, made in self._made if made() is not None})
            _require(not alive, f"tensors outlive the captured work, made by {alive}")

    def check(self, func: Any, args: tuple, kwargs: dict) -> None:
        """Raise if an op may not run."""
        name = func.overloadpacket.__name__
        _require(name not in _WAITING_OPS, f"{name} waits for the device")
        _require(name != "lift_fresh", "a tensor is made of Python numbers on the host")
        if name in _INDEXING_OPS:
            masks = [t for t in tree_leaves(args[1]) if isinstance(t, Tensor)]
            dynamic = any(t.dtype in (torch.bool, torch.uint8) for t in masks)
        else:
            dynamic = torch.Tag.dynamic_output_shape in func.tags
        _require(not dynamic, f"the shape of the result of {name} depends on data")
        _require(
            torch.Tag.data_dependent_output not in func.tags, f"{name} gives a value to the host"
        )
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        # A tensor without dimensions stands for a number, which is an argument of the launch.
        elsewhere = {t.device.type for t in tensors if t.dim() or name in ("copy_", "_to_copy")}
        _require(elsewhere <= {self.device}, f"{name} reads tensors on {sorted(elsewhere)}")

    def note(self, func: Any, result: Any) -> None:
        """Remember what an op has made."""
        name = func.overloadpacket.__name__
        returns = func._schema.returns
        results = result if isinstance(result, tuple) else (result,)
        for one, declared in zip(results, returns, strict=False):
            if declared.alias_info is not None:
                continue
            for tensor in tree_leaves(one):
                if isinstance(tensor, Tensor):
                    _require(
                        tensor.device.type == self.device,
                        f"{name} makes a tensor on {tensor.device.type}",
                    )
                    _require(self.allocations, f"{name} allocates {tuple(tensor.shape)}")
                    self.allocated.add(name)
                    self._made.append((name, weakref.ref(tensor.untyped_storage())))


class _Methods(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        _require(func not in _READING_METHODS, f"{func.__name__} gives a value to the host")
        if func is Tensor.copy_:
            func = torch.ops.aten.copy_.default  # the method itself wants a CUDA build
        return func(*args, **(kwargs or {}))


class _Ops(TorchDispatchMode):
    def __init__(self, guard: CaptureGuard):
        super().__init__()
        self.guard = guard

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks a fake tensor for its device
            return func(*args, **kwargs)
        self.guard.check(func, args, kwargs)
        result = func(*args, **kwargs)
        self.guard.note(func, result)
        return result


def _refuse_wait(*args, **kwargs):
    raise CaptureError("synchronize waits for the device")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CaptureError(message)
