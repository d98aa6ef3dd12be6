"""The launches of whole decode steps at any size, recorded without computing anything."""

from collections.abc import Mapping

import torch

from audiogen_fast.generation.cuda_graph.fused_step import FusedSteps
from audiogen_fast.generation.cuda_graph.state import DecodeState, StateShape, position_range
from audiogen_fast.generation.cuda_graph.weights import Linear, StepWeights, step_weights
from audiogen_fast.launches.compile import processors_of
from audiogen_fast.launches.record import Launch, recording
from audiogen_fast.models.released import released_lm
from audiogen_fast.ops.weight_formats import QuantizedWeight

META = torch.device("meta")
GROUP = 128


def record_step(
    shape: Mapping[str, int],
    descriptions: int,
    weights: str,
    *,
    capability: int = 90,
    position: int = 251,
    text: int = 16,
    steps: int = 503,
) -> list[Launch]:
    """The launches of one sampled step with guidance, as a GPU of that capability would have them.

    Args:
        shape: `dim`, `num_heads`, `num_layers`, `n_q` and `card` of the model, which has the
            structure of the released one.
        weights: `bfloat16`, `float16`, `float32`, `int8` or `int4`.
        position: of the step, which decides how many positions attention is sized for.
        text: text slots of each description.
        steps: of a clip.
    """
    with torch.no_grad(), processors_of(capability):
        prepared = meta_weights(shape, weights)
        bucket = StateShape.bucketed(descriptions, True, text, steps)
        state = DecodeState(prepared.size, bucket, prepared.dtype, prepared.dtype, META)
        prepared.positions(bucket.positions)
        run = FusedSteps(prepared, state)
        limit = min(position_range(position + 1), bucket.positions)
        with recording(execute=False) as launches:
            run(limit, 1, True)
    return launches


def meta_weights(shape: Mapping[str, int], weights: str) -> StepWeights:
    """Weights of a step in a format, on the meta device."""
    dtype = torch.bfloat16 if weights in ("int8", "int4") else getattr(torch, weights)
    with META:
        lm = released_lm(shape).to(dtype)
    prepared = step_weights(lm)
    if weights in ("int8", "int4"):
        for owner in (*prepared.layers, prepared):
            for linear in vars(owner).values():
                if isinstance(linear, Linear):
                    linear.weight = _packed(linear.weight, weights)
    return prepared


def _packed(weight: torch.Tensor, kind: str) -> QuantizedWeight:
    """What `weight_formats.quantize` makes of a matrix, on the meta device."""
    n, k = weight.shape
    if kind == "int8":
        padded = -(-k // 16) * 16
        data = torch.empty(n, padded, dtype=torch.int8, device=META)
        return QuantizedWeight(kind, data, torch.empty(n, device=META), n, k, padded)
    groups = -(-k // GROUP)
    data = torch.empty(n, groups * GROUP // 2, dtype=torch.uint8, device=META)
    scale = torch.empty(n, groups, dtype=torch.bfloat16, device=META)
    return QuantizedWeight(kind, data, scale, n, k, GROUP)
