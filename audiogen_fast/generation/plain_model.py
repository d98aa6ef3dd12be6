"""Which models the fused engines can run: those built like the released one."""

import torch

from audiogen_fast.models.lm import LMModel


def why_not_plain(lm: LMModel) -> str | None:
    """None for a model of the released structure, else what it would need to be one."""
    transformer, layer = lm.transformer, lm.transformer.layers[0]
    attention, cross = layer.self_attn, layer.cross_attention
    needs = {
        "norm_first": layer.norm_first and lm.out_norm is not None,
        "gelu": layer.activation is torch.nn.functional.gelu,
        "sinusoidal positions": transformer.positional_embedding == "sin",
        "plain heads": attention.q_layer_norm is None and attention.rope is None,
        "one key head per query head": attention.kv_heads == attention.num_heads,
        "an unlimited past": attention.past_context is None,
        "no layer scale": layer.layer_scale_1 is None,
        "causal attention": attention.causal,
        "text by cross-attention only": not any(
            names for method, names in lm.fuser.fuse2cond.items() if method != "cross"
        ),
        "plain cross-attention heads": cross is None or cross.q_layer_norm is None,
    }
    missing = [name for name, holds in needs.items() if not holds]
    return f"it needs {', '.join(missing)}" if missing else None
