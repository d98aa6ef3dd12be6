"""Which models the `cuda_graph` engine can run."""

import torch

from audiogen_fast.generation.plain_model import why_not_plain
from audiogen_fast.models.lm import LMModel


def why_unsupported(lm: LMModel) -> str | None:
    """None if the engine can run this model where it is, else the reason in words."""
    if lm.device.type != "cuda":
        return f"it needs a CUDA device, the model is on {lm.device}"
    return why_unsupported_model(lm)


def why_unsupported_model(lm: LMModel) -> str | None:
    """None if the steps of the engine can compute this model, else what it would need."""
    attention = lm.transformer.layers[0].self_attn
    if attention.attention_as_float32 and attention.in_proj_weight.dtype != torch.float32:
        return "it needs attention in the dtype of the weights"
    return why_not_plain(lm)
