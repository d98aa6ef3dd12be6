"""The engines by name."""

import torch

from audiogen_fast.errors import check
from audiogen_fast.generation import native, native_weights
from audiogen_fast.generation.cuda_graph import support as graph
from audiogen_fast.generation.cuda_graph.engine import CudaGraphEngine
from audiogen_fast.generation.eager import EagerEngine
from audiogen_fast.generation.job import Engine
from audiogen_fast.generation.native import NativeEngine
from audiogen_fast.memory import free_memory
from audiogen_fast.models.lm import LMModel
from audiogen_fast.ops.weight_formats import FORMATS as QUANTIZED

ENGINES = {"cuda_graph": CudaGraphEngine, "eager": EagerEngine, "native": NativeEngine}
# Share of the free memory that packed weights may take without being asked for.
_SHARE = 0.8


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


def choose(
    engine: str,
    lm: LMModel,
    quantize: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> str:
    """Name of the engine that `auto` stands for; another name is returned as is.

    On a CUDA device that is `cuda_graph`, on a CPU `native`, if they can run the model and, for the
    copy of the weights that the native one packs, there is memory; else `eager`.

    Args:
        dtype: that the model was asked for in, if not the one its weights have.
        device: where the model will be, if it is not there yet.
    """
    if engine != "auto":
        return engine
    if graph.why_unsupported(lm) is None:
        return "cuda_graph"
    if quantize is not None or lm.packed is not None:
        return "native"
    weights = _native_weights(lm, dtype)
    if weights is None or native.why_unsupported(lm, device) is not None:
        return "eager"
    return "native" if native_weights.packed_size(lm, weights) < _SHARE * free_memory() else "eager"


def _native_weights(lm: LMModel, dtype: torch.dtype | None) -> str | None:
    """The native engine's format for weights of that dtype, if it has one."""
    dtype = dtype or lm.transformer.layers[0].linear1.weight.dtype
    return {torch.float32: "float32", torch.bfloat16: "bfloat16"}.get(dtype)


def make_engine(
    engine: str | Engine,
    lm: LMModel,
    quantize: str | None = None,
    dtype: torch.dtype | None = None,
) -> Engine:
    """The engine of that name (see `choose`); an engine is returned as is."""
    check_choice(engine, quantize)
    if not isinstance(engine, str):
        return engine
    engine = choose(engine, lm, quantize, dtype)
    if engine == "cuda_graph":
        reason = graph.why_unsupported(lm)
        check(reason is None, f"the cuda_graph engine cannot run this model: {reason}")
        return CudaGraphEngine(lm, quantize)
    if engine == "eager":
        return EagerEngine(lm)
    weights = quantize
    if weights is None and lm.packed is None:
        weights = _native_weights(lm, dtype)
    return NativeEngine(lm, weights)


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
    its graphs are not captured again at every call, and `auto` is else the eager engine: a single
    call is not worth packing the weights for."""
    can_capture = graph.why_unsupported(lm) is None
    if engine == "auto" and not can_capture and lm.packed is None:
        engine = "eager"
    if isinstance(engine, str) and engine in ("auto", "cuda_graph") and can_capture:
        kept = lm.__dict__.setdefault("_kept_engine", _Kept())
        if kept.engine is None or kept.engine.device != lm.device:
            kept.engine = make_engine("cuda_graph", lm)
        return kept.engine
    return make_engine(engine, lm)
