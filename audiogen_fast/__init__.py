"""AudioGen, text to sound: a drop-in for `audiocraft` that is fast on today's torch.

Importing the package loads nothing heavy; names are resolved at their first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audiogen_fast.api import AudioGen
    from audiogen_fast.data.audio import audio_info, audio_read, audio_write
    from audiogen_fast.env import show_env
    from audiogen_fast.errors import (
        AudioGenFastError,
        CheckpointError,
        DeviceMemoryError,
        GenerationCancelled,
        InvalidInputError,
    )

__version__ = "0.1.0"

_HOME = {
    "AudioGen": "api",
    "AudioGenFastError": "errors",
    "CheckpointError": "errors",
    "DeviceMemoryError": "errors",
    "GenerationCancelled": "errors",
    "InvalidInputError": "errors",
    "audio_info": "data.audio",
    "audio_read": "data.audio",
    "audio_write": "data.audio",
    "show_env": "env",
}
__all__ = [
    "AudioGen",
    "AudioGenFastError",
    "CheckpointError",
    "DeviceMemoryError",
    "GenerationCancelled",
    "InvalidInputError",
    "audio_info",
    "audio_read",
    "audio_write",
    "show_env",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
