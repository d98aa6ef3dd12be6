"""The engines by name."""

from audiogen_fast.errors import check
from audiogen_fast.generation.cuda_graph.engine import CudaGraphEngine
from audiogen_fast.generation.cuda_graph.support import why_unsupported
from audiogen_fast.generation.eager import EagerEngine
from audiogen_fast.generation.job import Engine
from audiogen_fast.generation.native import NativeEngine
from audiogen_fast.models.lm import LMModel

ENGINES = {"cuda_graph": CudaGraphEngine, "eager": EagerEngine, "native": NativeEngine}
QUANTIZED = ("int8", "int4")


def check_choice(engine: str | Engine, quantize: str | None = None) -> None:
    """Raise `InvalidInputError` unless `make_engine` knows these names."""
    check(
        not isinstance(engine, str) or engine == "auto" or engine in ENGINES,
        f"engine must be 'auto' or one of {sorted(ENGINES)}, got {engine!r}",
    )
    check(
        quantize is None or quantize in QUANTIZED,
        f"quantize must be one of {QUANTIZED} or None, got {quantize!r}",
    )
    check(
        quantize is None or engine in ("auto", "native", "cuda_graph"),
        f"quantize needs the engine native (CPU) or cuda_graph (CUDA), got engine={engine!r}",
    )


def make_engine(engine: str | Engine, lm: LMModel, quantize: str | None = None) -> Engine:
    """The engine of that name; an engine is returned as is.

    `auto` is `cuda_graph` for a model on a CUDA device that it supports, and else the eager engine:
    the native one keeps a second copy of the weights, which only the caller can say there is room
    for. With `quantize`, which asks for such a copy, it is `native` on a CPU.
    """
    check_choice(engine, quantize)
    if not isinstance(engine, str):
        return engine
    graph_reason = why_unsupported(lm)
    if engine == "auto":
        other = "eager" if quantize is None else "native"
        engine = other if graph_reason else "cuda_graph"
    if engine == "cuda_graph":
        check(graph_reason is None, f"the cuda_graph engine cannot run this model: {graph_reason}")
        return CudaGraphEngine(lm, quantize)
    if quantize is not None:
        return NativeEngine(lm, quantize, kv="bfloat16")
    return ENGINES[engine](lm)


class _Kept:
    """An engine kept with its model; copies of the model start without one."""

    def __init__(self, engine: Engine | None = None):
        self.engine = engine

    def __deepcopy__(self, memo: dict) -> "_Kept":
        return _Kept()

    def __reduce__(self) -> tuple:
        return _Kept, ()


def shared_engine(engine: str | Engine, lm: LMModel) -> Engine:
    """`make_engine`, but a `cuda_graph` engine is made once for a model and kept with it, so that
    its graphs are not captured again at every call."""
    if isinstance(engine, str) and engine in ("auto", "cuda_graph") and not why_unsupported(lm):
        kept = lm.__dict__.setdefault("_kept_engine", _Kept())
        if kept.engine is None or kept.engine.device != lm.device:
            kept.engine = make_engine("cuda_graph", lm)
        return kept.engine
    return make_engine(engine, lm)
