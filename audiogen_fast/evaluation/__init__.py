"""Objective metrics of generated sound. Names are resolved at their first use."""

from importlib import import_module

_SUBMODULES = ("codec", "encoders", "language", "statistics", "visqol")


def __getattr__(name: str):
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
