"""Which step decodes: the fused one by Triton kernels, or the one in plain torch."""

import functools
from collections.abc import Callable

import torch

from audiogen_fast.errors import check
from audiogen_fast.generation.cuda_graph.fused_step import FusedSteps, why_not_fused
from audiogen_fast.generation.cuda_graph.state import DecodeState
from audiogen_fast.generation.cuda_graph.torch_step import torch_steps
from audiogen_fast.generation.cuda_graph.weights import StepWeights

STEPS = ("auto", "fused", "torch")

Steps = Callable[[int, int, bool], None]
"""`(limit, count, sampled)`: see `torch_step.torch_steps`."""


def check_step(step: str, device: torch.device) -> None:
    """Raise `InvalidInputError` unless it names a step that can run there."""
    check(step in STEPS, f"step must be one of {STEPS}, got {step!r}")
    reason = why_not_fused(1, device) if step == "fused" else None
    check(reason is None, f"the fused step cannot run: {reason}")


def make_steps(step: str, weights: StepWeights, state: DecodeState) -> Steps:
    """The steps of a state; `auto` is the fused one where its kernels can run and suit."""
    if step == "auto":
        step = "torch" if why_not_fused(state.shape.rows, state.device) else "fused"
    if step == "fused":
        return FusedSteps(weights, state)
    return functools.partial(torch_steps, weights, state)
