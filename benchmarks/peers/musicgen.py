"""A transformers model over the weights of one of ours."""

import torch
from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

from audiogen_fast.models.lm import LMModel


def musicgen_twin(lm: LMModel, positions: int = 1024) -> MusicgenForCausalLM:
    """`MusicgenForCausalLM` of the shape of `lm`, whose weights are views of the memory of `lm`.

    Only for the structure of the released model: pre-norm, no biases, sinusoidal positions. The
    model of transformers keeps the projections apart that `lm` packs, so slices are enough.
    """
    layers = lm.transformer.layers
    config = MusicgenDecoderConfig(
        vocab_size=lm.card,
        num_codebooks=lm.n_q,
        hidden_size=lm.dim,
        num_hidden_layers=len(layers),
        num_attention_heads=layers[0].self_attn.num_heads,
        ffn_dim=layers[0].linear1.weight.shape[0],
        activation_function="gelu",
        max_position_embeddings=positions,
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=0,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        twin = MusicgenForCausalLM(config)
    weights = {}
    for k in range(lm.n_q):
        weights[f"model.decoder.embed_tokens.{k}.weight"] = lm.emb[k].weight
        weights[f"lm_heads.{k}.weight"] = lm.linears[k].weight
    weights["model.decoder.layer_norm.weight"] = lm.out_norm.weight
    weights["model.decoder.layer_norm.bias"] = lm.out_norm.bias
    for index, layer in enumerate(layers):
        prefix = f"model.decoder.layers.{index}."
        attentions = {"self_attn": layer.self_attn, "encoder_attn": layer.cross_attention}
        for name, attention in attentions.items():
            parts = attention.in_proj_weight.chunk(3)
            for part, value in zip("qkv", parts, strict=True):
                weights[f"{prefix}{name}.{part}_proj.weight"] = value
            weights[f"{prefix}{name}.out_proj.weight"] = attention.out_proj.weight
        norms = {
            "self_attn_layer_norm": layer.norm1,
            "encoder_attn_layer_norm": layer.norm_cross,
            "final_layer_norm": layer.norm2,
        }
        for name, norm in norms.items():
            weights[f"{prefix}{name}.weight"] = norm.weight
            weights[f"{prefix}{name}.bias"] = norm.bias
        weights[f"{prefix}fc1.weight"] = layer.linear1.weight
        weights[f"{prefix}fc2.weight"] = layer.linear2.weight
    twin.load_state_dict(weights, strict=True, assign=True)
    # The position table is not part of the state and is still on the meta device.
    table = twin.model.decoder.embed_positions
    table.weights = None
    table.weights = table.get_embedding(positions, lm.dim)
    return twin.eval()
