"""Models and how to get them; `AudioGen` is importable from here as from the original."""

from typing import TYPE_CHECKING

from audiogen_fast.models.encodec import CompressionModel, EncodecModel
from audiogen_fast.models.lm import LMModel

if TYPE_CHECKING:
    from audiogen_fast.api import AudioGen

__all__ = ["AudioGen", "CompressionModel", "EncodecModel", "LMModel"]


def __getattr__(name: str):
    # `AudioGen` stands above the models and imports them.
    if name == "AudioGen":
        from audiogen_fast.api import AudioGen

        return AudioGen
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
