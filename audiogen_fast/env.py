"""What this installation has: one report for bug reports and for choosing a backend.

Nothing here reaches the network, and of the heavy packages only torch is imported.
"""

import os
import platform
from importlib import metadata
from typing import Any

from audiogen_fast import __version__
from audiogen_fast._attention import ATTENTION_VARIABLE, choose_attention
from audiogen_fast._backend import BACKEND_VARIABLE, backend, load_native, why_no_triton
from audiogen_fast.errors import InvalidInputError, MissingDependencyError

_PACKAGES = ("torch", "triton", "transformers", "flash-attn")
_VARIABLES = (
    BACKEND_VARIABLE,
    "AUDIOGEN_FAST_CUDA_GRAPH",
    ATTENTION_VARIABLE,
    "AUDIOGEN_FAST_THREADS",
    "AUDIOGEN_FAST_ISA",
    "AUDIOGEN_FAST_NATIVE_FILE",
    "AUDIOGEN_FAST_CACHE_DIR",
    "AUDIOCRAFT_CACHE_DIR",
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
)


def get_env() -> dict[str, Any]:
    """Versions, devices, backends and the environment variables that are honoured.

    Returns:
        A dictionary that `json` can write: `versions` (name to version, None when not installed),
        `platform`, `devices` (one line each), `backend`, `kernels` (whether Triton's are used,
        and why not), `attention` (what reads a prompt on a GPU, and why), `native` (`available`,
        `detail`, and `cpu_features`, the names of the instruction sets found), `environment`
        (variable to value, None when not set).
    """
    versions: dict[str, str | None] = {
        "audiogen_fast": __version__,
        "python": platform.python_version(),
    }
    import torch

    versions.update({name: _version(name) for name in _PACKAGES})
    versions["torch"] = str(torch.__version__)  # which CUDA it is for is not in its metadata
    return {
        "versions": versions,
        "platform": platform.platform(),
        "devices": _devices(),
        "backend": _backend(),
        "kernels": _kernels(),
        "attention": _attention(),
        "native": _native(),
        "environment": {name: os.environ.get(name) for name in _VARIABLES},
    }


def show_env() -> str:
    """The report of `get_env` as lines of text."""
    env = get_env()
    native = env["native"]
    lines = [f"{name}: {version or 'not installed'}" for name, version in env["versions"].items()]
    lines.append(f"platform: {env['platform']}")
    lines += [f"device: {device}" for device in env["devices"]]
    lines.append(f"backend: {env['backend']}")
    lines.append(f"triton kernels: {env['kernels']}")
    lines.append(f"attention: {env['attention']}")
    state = "available" if native["available"] else "not available"
    lines.append(f"native module: {state} ({native['detail']})")
    lines.append(f"cpu features: {' '.join(native['cpu_features']) or 'unknown'}")
    lines += [f"{name}: {value or 'not set'}" for name, value in env["environment"].items()]
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    devices = [f"cpu, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            name = torch.cuda.get_device_name(index)
            devices.append(f"cuda:{index}, {name}, CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def _backend() -> str:
    try:
        return backend()
    except InvalidInputError as error:
        return f"invalid: {error}"


def _kernels() -> str:
    try:
        reason = why_no_triton()
    except InvalidInputError as error:
        return f"invalid: {error}"
    return "used" if reason is None else f"not used ({reason})"


def _attention() -> str:
    try:
        name, reason = choose_attention()
    except (InvalidInputError, MissingDependencyError) as error:
        return f"invalid: {error}"
    return f"{name} ({reason})"


def _native() -> dict[str, Any]:
    module, reason = load_native()
    if module is None:
        return {"available": False, "detail": reason, "cpu_features": []}
    features = [name for name, present in module.cpu_features().items() if present]
    build = module.build_info()
    detail = f"{build['compiler']}, C++ {build['standard']}, {build['flags']}"
    return {"available": True, "detail": detail, "cpu_features": features}
