"""What a run of the language model takes, reckoned from models without memory."""

from pathlib import Path

import torch

from audiogen_fast.models import builders
from audiogen_fast.training import lora
from audiogen_fast.training.config_lm import LMConfig
from audiogen_fast.training.loaders import batch_of_process
from audiogen_fast.training.parallel import DTYPES

_HOP = 320
"""Samples of a frame of AudioGen's codec."""


def dry_run(config: LMConfig, world_size: int) -> dict[str, str]:
    """Sizes, name to value. The activations are an estimate, the rest is counted.

    The architecture is that of the recipe; a checkpoint to continue from is not read.
    """
    mode = config.parallel.mode
    if mode == "auto":
        mode = "ddp" if world_size > 1 else "single"
    parts = world_size * config.optim.accumulate
    effective = world_size * batch_of_process(config, "train", world_size)
    encoders = None if config.text_encoders is None else Path(config.text_encoders)
    with torch.device("meta"):
        lm = builders.get_lm_model(config.xp_cfg(), encoders)
        if config.lora.rank:
            lora.add_adapters(lm, config.lora.rank, config.lora.alpha, config.lora.targets)
    total = sum(p.numel() for p in lm.parameters())
    trained = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    shards = world_size if mode == "fsdp" else 1
    frames = int(config.dataset.segment_duration * config.sample_rate / _HOP)
    ema = 4 * trained * config.optim.ema.use
    itemsize = torch.empty((), dtype=DTYPES[config.parallel.dtype]).element_size()
    layer = max(sum(p.numel() for p in one.parameters()) for one in lm.transformer.layers)
    if mode == "fsdp":
        gathered = 2 * layer * itemsize  # one in use, one under way
    else:
        gathered = total * itemsize if itemsize < 4 else 0
    activations = _activations(config, effective // parts, frames, itemsize)
    sums = {
        "weights": 4 * total // shards,
        "gradients": 4 * trained // shards,
        "optimiser": 8 * trained // shards,
        "average": ema // shards,
        "weights for products": gathered,
        "activations (estimate)": activations,
    }
    facts = {
        "parameters": f"{total:,}",
        "trained": f"{trained:,}",
        "mode": f"{mode}, {world_size} processes, {config.parallel.dtype}",
        "batch": f"{effective} sounds in {parts} parts of {effective // parts}",
        "tokens per step": f"{effective * frames * config.transformer_lm.n_q:,} "
        f"({frames} frames of {config.transformer_lm.n_q} codes a sound)",
        "updates": f"{config.optim.total_updates:,}",
    }
    facts |= {f"memory: {name}": _size(value) for name, value in sums.items()}
    facts["memory per process"] = _size(sum(sums.values())) + " and text encoder, codec"
    return facts


def _activations(config: LMConfig, batch: int, frames: int, itemsize: int) -> int:
    """Bytes that the backward pass keeps.

    A layer keeps its residual stream and norms in float32 and what goes into and out of its
    products in their dtype (q, k, v, attention, both sides of the activation, branches); the heads
    keep logits and their gradient in float32.
    """
    model = config.transformer_lm
    rows = batch * (frames + 1)
    hidden = int(model.hidden_scale * model.dim)
    layer = rows * (24 * model.dim + itemsize * (9 * model.dim + 2 * hidden))
    kept = 4 * rows * model.dim
    layers = model.num_layers
    body = layers * kept + layer if model.checkpointing != "none" else layers * layer
    return body + 2 * 4 * rows * model.n_q * model.card


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"
