"""Language models of the released structure, in any size."""

from collections.abc import Mapping
from typing import Any

from audiogen_fast.config import RELEASED_STRUCTURE
from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules.codebooks_patterns import DelayedPatternProvider
from audiogen_fast.modules.conditioners import ConditionFuser, ConditioningProvider


def released_lm(shape: Mapping[str, int], condition: str = "text", **options: Any) -> LMModel:
    """A model of that structure, to be given its conditions as tensors named `condition`.

    Args:
        shape: `dim`, `num_heads`, `num_layers`, `n_q` and `card`.
        options: further arguments of `LMModel`.
    """
    return LMModel(
        DelayedPatternProvider(shape["n_q"]),
        ConditioningProvider({}),
        ConditionFuser({"cross": [condition]}),
        **shape,
        **RELEASED_STRUCTURE,
        **options,
    )
