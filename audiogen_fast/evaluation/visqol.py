"""ViSQOL, a model of how listeners rate a copy of a recording (Chinen et al. 2020).

The measure itself comes from the package `audio-samples-qoe`.
"""

import importlib.machinery
import importlib.util
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from audiogen_fast.errors import MissingDependencyError, check

_PACKAGE = "audio_samples_qoe"


def visqol(estimate: Tensor, reference: Tensor, sample_rate: int) -> list[float]:
    """Predicted opinion score of each item, 1 to 5, in ViSQOL's audio mode.

    Args:
        estimate, reference: `[B, C, T]` at full scale 1; the channels are averaged.
        sample_rate: in Hz.
    Raises:
        MissingDependencyError: the package is not installed.
    """
    check(
        estimate.ndim == 3 and estimate.shape == reference.shape,
        "estimate and reference must be [B, C, T] of one shape, got "
        f"{tuple(estimate.shape)} and {tuple(reference.shape)}",
    )
    score = load_score()
    pairs = zip(reference, estimate, strict=True)
    arrays = ([x.detach().mean(0).double().cpu().numpy() for x in pair] for pair in pairs)
    return [score(ref, sample_rate, est, sample_rate, "audio") for ref, est in arrays]


def load_score() -> Callable[..., float]:
    """The scoring function of the package's compiled module.

    Raises:
        MissingDependencyError: the package is not installed, or has no such function.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    try:
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(f"no package {_PACKAGE}")
        # Alone: the package around it needs another one that exists for few platforms.
        return _load(Path(spec.submodule_search_locations[0]))._score
    except (ImportError, OSError, AttributeError) as error:
        raise MissingDependencyError(
            "ViSQOL needs audio-samples-qoe: pip install --no-deps --only-binary :all: "
            f"audio-samples-qoe "
            f"(evaluate.visqol=false leaves it out): {error}"
        ) from error


def _load(folder: Path):
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_native{suffix}"
        if path.is_file():
            spec = importlib.util.spec_from_file_location(f"{_PACKAGE}._native", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise ImportError(f"no compiled module in {folder}")
