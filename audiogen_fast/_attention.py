"""Which code computes the attention of a prompt on a GPU, and why.

torch's own `scaled_dot_product_attention` is always there. The package flash-attn (version 2) is
used where it is installed and the device can run it. `FA3` and `FA4` are newer ones that torch can
activate in its own function, for the whole process: only done when asked for.
"""

import functools
import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from audiogen_fast._backend import BACKEND_VARIABLE, backend, cuda_capability
from audiogen_fast.errors import InvalidInputError, MissingDependencyError, check

if TYPE_CHECKING:
    import torch

ATTENTION_VARIABLE = "AUDIOGEN_FAST_ATTENTION"
_CHOICES = ("auto", "sdpa", "flash-attn", "FA3", "FA4")
# flash-attn 2 runs on compute capability 8.0 and above.
_FLASH_ATTN_CAPABILITY = (8, 0)


def choose_attention(device: "torch.device | None" = None) -> tuple[str, str]:
    """Name and reason: 'sdpa', 'flash-attn', or 'FA3' or 'FA4', which it activates in torch.

    Args:
        device: of the tensors; None for the current CUDA device. Those of one machine may differ.
    Raises:
        InvalidInputError: `AUDIOGEN_FAST_ATTENTION` has an unknown value, or names something that
            this torch or this device does not have.
        MissingDependencyError: what it names is not installed.
    """
    value, chosen = _choose_for_all()
    if chosen is not None:
        return chosen
    capability, asked = cuda_capability(device), value != "auto"
    if capability < _FLASH_ATTN_CAPABILITY:
        reason = f"flash-attn needs compute capability 8.0, the device has {capability}"
        check(not asked, f"{ATTENTION_VARIABLE}=flash-attn: {reason}")
        return "sdpa", reason
    function, reason = load_flash_attn()
    if function is None:
        if asked:
            raise MissingDependencyError(
                f"{ATTENTION_VARIABLE}=flash-attn: {reason}; "
                "pip install 'audiogen-fast[flash-attn]'"
            )
        return "sdpa", reason
    return "flash-attn", f"installed, and the device has compute capability {capability}"


@functools.cache
def _choose_for_all() -> tuple[str, tuple[str, str] | None]:
    """What is asked for, and the choice, or None where that depends on the device."""
    import torch

    value = os.environ.get(ATTENTION_VARIABLE, "") or "auto"
    check(
        value in _CHOICES,
        f"{ATTENTION_VARIABLE} must be one of {', '.join(_CHOICES)}, got {value}",
    )
    if value == "sdpa":
        return value, ("sdpa", f"asked for by {ATTENTION_VARIABLE}")
    if backend() == "reference":
        return value, ("sdpa", f"{BACKEND_VARIABLE}=reference")
    if not torch.cuda.is_available():
        check(value == "auto", f"{ATTENTION_VARIABLE}={value} needs a CUDA device, there is none")
        return value, ("sdpa", "there is no CUDA device")
    if value in ("FA3", "FA4"):
        _activate(value)
        return value, (value, f"activated in torch, asked for by {ATTENTION_VARIABLE}")
    return value, None


def forget() -> None:
    """Choose again; for tests, which change the environment and the devices."""
    _choose_for_all.cache_clear()
    load_flash_attn.cache_clear()


@functools.cache
def load_flash_attn() -> tuple[Callable | None, str | None]:
    """`flash_attn_func` and None, or None and the reason why there is none."""
    try:
        return importlib.import_module("flash_attn").flash_attn_func, None
    except ModuleNotFoundError:
        return None, "flash-attn is not installed"
    except (ImportError, OSError, AttributeError) as error:
        return None, f"flash-attn does not load: {type(error).__name__}: {error}"


def _activate(name: str) -> None:
    attention = importlib.import_module("torch.nn.attention")
    activate = getattr(attention, "activate_flash_attention_impl", None)
    check(
        activate is not None,
        f"{ATTENTION_VARIABLE}={name}: this torch cannot activate other flash attentions",
    )
    try:
        activate(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"{ATTENTION_VARIABLE}={name}: its package is not installed: {error}"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidInputError(f"{ATTENTION_VARIABLE}={name}: {error}") from error
