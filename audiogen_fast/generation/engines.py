"""The engines by name."""

from audiogen_fast.errors import check
from audiogen_fast.generation.eager import EagerEngine
from audiogen_fast.generation.job import Engine
from audiogen_fast.models.lm import LMModel

ENGINES = {"eager": EagerEngine}


def make_engine(engine: str | Engine, lm: LMModel) -> Engine:
    """The engine of that name (`auto` for the fastest that fits); an engine is returned as is."""
    if not isinstance(engine, str):
        return engine
    check(
        engine == "auto" or engine in ENGINES,
        f"engine must be 'auto' or one of {sorted(ENGINES)}, got {engine!r}",
    )
    return ENGINES["eager" if engine == "auto" else engine](lm)
