"""Which backend may be used, and the one place that loads the native module."""

import functools
import importlib
import importlib.util
import os
from types import ModuleType

from audiogen_fast.errors import check

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


@functools.cache
def why_no_triton() -> str | None:
    """None where Triton kernels can be launched, else the reason in words.

    Under `TRITON_INTERPRET=1`, which must be set before triton is imported, they run on a CPU.
    """
    if backend() == "reference":
        return f"turned off by {BACKEND_VARIABLE}=reference"
    # Not imported here: a report does not need it, and it takes a while.
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    import torch

    if not torch.cuda.is_available():
        return "there is no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return f"they need compute capability 8.0, the device has {capability}"
    return None
