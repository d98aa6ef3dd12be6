"""Objective metrics of generated sound. Names are resolved at their first use."""

from importlib import import_module

_SUBMODULES = ("codec", "encoders", "language", "statistics", "visqol")
_HOME = {
    "Report": "results",
    "Sampling": "systems",
    "evaluate": "run",
    "read_report": "results",
}


def __getattr__(name: str):
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES, *_HOME])
