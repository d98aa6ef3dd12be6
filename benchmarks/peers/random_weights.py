"""Random models of the original implementation, and their files (run in the peer environment)."""

from pathlib import Path

import torch
from audiocraft.models import builders
from omegaconf import OmegaConf


def random_lm(config: dict, g: torch.Generator) -> torch.nn.Module:
    """A language model with weights large enough that greedy tokens depend on their inputs."""
    lm = builders.get_lm_model(OmegaConf.create(config)).eval()
    for name, parameter in lm.named_parameters():
        noise = torch.randn(parameter.shape, generator=g)
        kind = name.split(".")[-1]
        if kind == "scale":  # layer scale
            value = parameter.data * (1 + 0.2 * noise)
        elif "norm" in name:
            value = 1 + 0.1 * noise if kind == "weight" else 0.05 * noise
        elif "bias" in kind:
            value = 0.1 * noise
        elif name.startswith("emb."):
            value = 1.2 * noise
            value[-1] *= 0.2  # the special token, which would dominate sparse patterns
        elif ".embed." in name:
            value = 0.8 * noise
        else:
            # A strong condition gives every step the same direction: stuck greedy tokens.
            gain = 0.5 if "cross_attention.out_proj" in name or "output_proj" in name else 2.0
            value = gain * noise / parameter.shape[-1] ** 0.5
        parameter.data.copy_(value)
    return lm


def random_codec(config: dict, g: torch.Generator) -> torch.nn.Module:
    """A codec with audible output and with codebooks as large as the residuals they quantise."""
    state = torch.get_rng_state()
    torch.manual_seed(int(torch.randint(0, 2**31, (), generator=g)))
    codec = builders.get_compression_model(OmegaConf.create(config)).eval()
    torch.set_rng_state(state)
    for name, parameter in codec.named_parameters():
        if name.endswith(("weight_g", "conv.weight", "convtr.weight", "weight_orig")):
            parameter.data.mul_(1.6)
    wav = 0.5 * torch.randn(2, codec.channels, 100 * int(codec.encoder.hop_length), generator=g)
    residual = codec.encoder(codec.preprocess(wav)[0]).transpose(1, 2).flatten(0, 1)
    for layer in codec.quantizer.vq.layers:
        book = layer._codebook
        embed = residual.std(0) * torch.randn(book.embed.shape, generator=g) + residual.mean(0)
        book.embed.copy_(embed)
        book.embed_avg.copy_(embed)
        book.inited.fill_(1)
        residual = residual - book.dequantize(book.quantize(residual))
    return codec


def save_checkpoint(model: torch.nn.Module, config: dict, path: Path) -> None:
    """Write a model in the layout of a released file: weights beside the YAML configuration."""
    package = {
        "best_state": model.state_dict(),
        "xp.cfg": OmegaConf.to_yaml(OmegaConf.create(config)),
        "version": "1.3.0",
        "exported": True,
    }
    torch.save(package, path)
