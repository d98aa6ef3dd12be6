"""Audio files and their conversion. Submodules are loaded on first use, soundfile with them."""

from importlib import import_module
from types import ModuleType

_SUBMODULES = ("audio", "audio_utils")


def __getattr__(name: str) -> ModuleType:
    # `audiogen_fast.data.audio` works after a plain `import audiogen_fast.data`
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
