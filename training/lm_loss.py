"""The language model together with its loss, as the one module whose forward pass is trained.

DDP and FSDP act around the forward pass of the module they wrap, so everything that touches a
weight has to happen in it: the projection of the text, the model and its heads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules.conditioners import (
    ConditioningAttributes,
    ConditioningProvider,
    ConditionTensors,
)
from audiogen_fast.training.lm_caches import takes_encoded_text

Inputs = dict[str, dict[str, Tensor]]
"""By attribute: tensors `[B, L, ...]`, of tokens or (`vectors`, `mask`) of encoded text."""


class LMLoss(nn.Module):
    """Cross entropy of each codebook, for codes and encoded or tokenised text."""

    def __init__(self, lm: LMModel):
        super().__init__()
        self.lm = lm

    def forward(
        self,
        codes: Tensor,
        inputs: Inputs,
        valid: Tensor | None = None,
        divisors: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss, and cross entropy of each codebook `[K]` in nats; see `LMModel.compute_loss`.

        Args:
            codes: int64 `[B, K, T]`; the special token where `valid` is False.
            inputs: see `Inputs`.
            valid: bool `[B, T]`, frames that count; None for all.
            divisors: float `[K]`, what each codebook's sum is divided by; None for its own count.
        """
        conditions = encode(self.lm.condition_provider, inputs)
        return self.lm.compute_loss(codes, [], conditions, valid, divisors)


def tokenize(
    provider: ConditioningProvider,
    samples: Sequence[ConditioningAttributes],
    embeddings: Tensor | None = None,
    mask: Tensor | None = None,
) -> Inputs:
    """Inputs of a batch.

    Args:
        embeddings, mask: `[B, L, D]` and `[B, L]`, the encoded `description` where it is cached;
            rows of samples whose description was dropped are masked here. A conditioner that
            cannot use them takes the texts.
    """
    inputs: Inputs = {}
    for name, conditioner in provider.conditioners.items():
        texts = [sample.text.get(name) for sample in samples]
        encoded = embeddings is not None and name == "description"
        if encoded and takes_encoded_text(conditioner):
            device = conditioner.output_proj.weight.device
            kept = torch.tensor([text is not None for text in texts]).unsqueeze(1)
            mask = mask * kept
            longest = max(1, int(mask.sum(dim=1).max()))
            inputs[name] = {
                "vectors": embeddings[:, :longest].to(device),
                "mask": mask[:, :longest].to(device),
            }
            continue
        tokens: Any = conditioner.tokenize(texts)
        if not isinstance(tokens, Mapping):
            tokens = {"tokens": tokens[0], "token_mask": tokens[1]}
        inputs[name] = dict(tokens)
    return inputs


def lengths(inputs: Inputs) -> dict[str, int]:
    """Positions of each attribute."""
    return {name: next(iter(tensors.values())).shape[1] for name, tensors in inputs.items()}


def pad(inputs: Inputs, to: Mapping[str, int]) -> Inputs:
    """The inputs with that many positions; added ones are masked.

    Padding weakens attention in this model, as in the original, so all parts of a batch need the
    same length for their loss to be that of the whole.
    """
    return {
        name: {
            key: F.pad(t, (0, 0) * (t.dim() - 2) + (0, to[name] - t.shape[1]))
            for key, t in tensors.items()
        }
        for name, tensors in inputs.items()
    }


def rows(inputs: Inputs, part: slice) -> Inputs:
    """The inputs of some samples."""
    return {name: {key: t[part] for key, t in tensors.items()} for name, tensors in inputs.items()}


def encode(provider: ConditioningProvider, inputs: Inputs) -> ConditionTensors:
    """Condition vectors and masks of inputs."""
    conditions: ConditionTensors = {}
    for name, tensors in inputs.items():
        conditioner = provider.conditioners[name]
        if "vectors" in tensors:
            conditions[name] = conditioner.project(tensors["vectors"], tensors["mask"])
        elif "tokens" in tensors:
            conditions[name] = conditioner((tensors["tokens"], tensors["token_mask"]))
        else:
            conditions[name] = conditioner(tensors)
    return conditions
