"""Which backend may be used, and the one place that loads the native module."""

import functools
import importlib
import importlib.util
import os
from types import ModuleType
from typing import TYPE_CHECKING

from audiogen_fast.errors import check

if TYPE_CHECKING:
    import torch

BACKEND_VARIABLE = "AUDIOGEN_FAST_BACKEND"
_BACKENDS = ("auto", "reference")
_NOT_BUILT = (
    "the package was installed without its native module (no C++ compiler or CMake then, or "
    "AUDIOGEN_FAST_NATIVE=0); reinstall it with AUDIOGEN_FAST_NATIVE=require to see what fails"
)


def backend() -> str:
    """Value of `AUDIOGEN_FAST_BACKEND`: 'auto' (the default) or 'reference', no fast path at all.

    Raises:
        InvalidInputError: any other value.
    """
    value = os.environ.get(BACKEND_VARIABLE, "") or "auto"
    check(
        value in _BACKENDS, f"{BACKEND_VARIABLE} must be one of {', '.join(_BACKENDS)}, got {value}"
    )
    return value


@functools.cache
def load_native() -> tuple[ModuleType | None, str | None]:
    """The native module and None, or None and the reason why it cannot be used.

    `AUDIOGEN_FAST_NATIVE_FILE` names another build of it to load, such as one with sanitizers.
    """
    file = os.environ.get("AUDIOGEN_FAST_NATIVE_FILE")
    try:
        if file:
            spec = importlib.util.spec_from_file_location("audiogen_fast._native", file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module, None
        return importlib.import_module("audiogen_fast._native"), None
    except ModuleNotFoundError as error:
        return None, f"{error}: {_NOT_BUILT}"
    except (ImportError, OSError) as error:
        return None, f"{type(error).__name__}: {error}"


def why_no_triton(device: "torch.device | None" = None) -> str | None:
    """None where Triton kernels can be launched, else the reason in words.

    Under `TRITON_INTERPRET=1`, which must be set before triton is imported, they run on a CPU.

    Args:
        device: of the tensors; None for the current CUDA device. Those of one machine may differ.
    """
    reason = _why_no_triton_anywhere()
    if reason is not None or interprets_triton():
        return reason
    if device is not None and device.type != "cuda":
        return f"the model is on {device}"
    capability = cuda_capability(device)
    if capability < (8, 0):
        return f"they need compute capability 8.0, the device has {capability}"
    return None


def interprets_triton() -> bool:
    """Whether Triton's interpreter runs its kernels, on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _why_no_triton_anywhere() -> str | None:
    if backend() == "reference":
        return f"turned off by {BACKEND_VARIABLE}=reference"
    # Not imported here: a report does not need it, and it takes a while.
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    import torch

    if not interprets_triton() and not torch.cuda.is_available():
        return "there is no CUDA device"
    return None


def cuda_capability(device: "torch.device | None" = None) -> tuple[int, int]:
    """Compute capability of a CUDA device; None, or no index, for the current one."""
    import torch

    index = None if device is None else device.index
    return _capability(torch.cuda.current_device() if index is None else index)


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability(index)


def forget() -> None:
    """Find out again; for tests, which change the environment and the devices."""
    _why_no_triton_anywhere.cache_clear()
    _capability.cache_clear()
