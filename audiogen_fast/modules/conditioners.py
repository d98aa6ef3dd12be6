"""Conditions of a generation: attributes, the provider that encodes them, and their fusion."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.modules.encoder_conditioner import EncoderConditioner
from audiogen_fast.modules.text_conditioners import (
    ConditionType,
    LUTConditioner,
    T5Conditioner,
    TextConditioner,
)
from audiogen_fast.ops.reference import sin_embedding

__all__ = [
    "AttributeDropout",
    "ClassifierFreeGuidanceDropout",
    "ConditionFuser",
    "ConditionType",
    "ConditioningAttributes",
    "ConditioningProvider",
    "EncoderConditioner",
    "LUTConditioner",
    "T5Conditioner",
    "TextConditioner",
    "nullified",
]

ConditionTensors = dict[str, ConditionType]


@dataclass
class ConditioningAttributes:
    """What one sample is conditioned on: text by attribute name; None means absent."""

    text: dict[str, str | None] = field(default_factory=dict)

    @property
    def text_attributes(self) -> Iterable[str]:
        return self.text.keys()


def nullified(samples: Sequence[ConditioningAttributes]) -> list[ConditioningAttributes]:
    """The same samples with every attribute absent: the unconditional half of guidance."""
    return [replace(sample, text=dict.fromkeys(sample.text)) for sample in samples]


class _Dropout(nn.Module):
    """Draws from a private CPU generator, so the global one is left alone."""

    def __init__(self, seed: int = 1234):
        super().__init__()
        self.rng = torch.Generator().manual_seed(seed)

    def _hit(self, p: float) -> bool:
        return torch.rand(1, generator=self.rng).item() < p


class ClassifierFreeGuidanceDropout(_Dropout):
    """In training, drops all attributes of the whole batch with probability `p`."""

    def __init__(self, p: float, seed: int = 1234):
        super().__init__(seed)
        self.p = p

    def forward(self, samples: list[ConditioningAttributes]) -> list[ConditioningAttributes]:
        if not self.training or not self._hit(self.p):
            return samples
        return nullified(samples)


class AttributeDropout(_Dropout):
    """In training, drops single attributes of the whole batch.

    Args:
        p: probabilities by condition type (only `text` exists here) and attribute.
    """

    def __init__(self, p: Mapping[str, Mapping[str, float]], seed: int = 1234):
        super().__init__(seed)
        self.p = dict(p.get("text", {}))

    def forward(self, samples: list[ConditioningAttributes]) -> list[ConditioningAttributes]:
        if not self.training:
            return samples
        dropped = {name: None for name, p in self.p.items() if self._hit(p)}
        return [
            replace(s, text=s.text | {k: v for k, v in dropped.items() if k in s.text})
            for s in samples
        ]


class ConditioningProvider(nn.Module):
    """Encodes the attributes of a batch, one conditioner per attribute."""

    def __init__(self, conditioners: Mapping[str, TextConditioner], device=None):
        super().__init__()
        self.conditioners = nn.ModuleDict(conditioners)

    @property
    def text_conditions(self) -> list[str]:
        return list(self.conditioners)

    def tokenize(self, samples: Sequence[ConditioningAttributes]) -> dict[str, Any]:
        """Tokens by attribute name: everything that may synchronise with the host."""
        check(
            len(samples) > 0 or not self.conditioners,
            f"conditions must not be empty, the model needs {self.text_conditions}",
        )
        for index, sample in enumerate(samples):
            missing = [name for name in self.conditioners if name not in sample.text]
            check(not missing, f"conditions[{index}] lacks the text attributes {missing}")
        return {
            name: conditioner.tokenize([sample.text[name] for sample in samples])
            for name, conditioner in self.conditioners.items()
        }

    def forward(self, tokenized: dict[str, Any]) -> ConditionTensors:
        """Vectors `[B, L, D]` and masks `[B, L]` by attribute name."""
        return {name: self.conditioners[name](inputs) for name, inputs in tokenized.items()}


class ConditionFuser(nn.Module):
    """Brings each condition into the model the way the configuration says.

    Args:
        fuse2cond: method -> attribute names, the methods being `sum` (added to every step),
            `input_interpolate` (stretched over time, then added), `prepend` (put before the
            first step) and `cross` (cross-attention).
        cross_attention_pos_emb: add sinusoidal positions to the cross-attention input.
        cross_attention_pos_emb_scale: their scale.
    """

    METHODS = ("sum", "prepend", "cross", "input_interpolate")

    def __init__(
        self,
        fuse2cond: Mapping[str, Sequence[str]],
        cross_attention_pos_emb: bool = False,
        cross_attention_pos_emb_scale: float = 1.0,
    ):
        super().__init__()
        unknown = sorted(set(fuse2cond) - set(self.METHODS))
        check(not unknown, f"fuser methods must be among {self.METHODS}, got {unknown}")
        self.fuse2cond = {method: list(fuse2cond.get(method, ())) for method in self.METHODS}
        self.cond2fuse = {c: m for m, names in self.fuse2cond.items() for c in names}
        self.cross_attention_pos_emb = cross_attention_pos_emb
        self.cross_attention_pos_emb_scale = cross_attention_pos_emb_scale

    def fuse_input(
        self, x: Tensor, conditions: ConditionTensors, first_step: bool = True
    ) -> Tensor:
        """The input `[B, T, D]` with all conditions but the cross-attention ones.

        A prepended condition makes it longer, at the first step only. While decoding step by
        step an interpolated condition is stretched over the steps of this call, as in the
        original.
        """
        for name, (vectors, _) in conditions.items():
            method = self._method(name)
            if method == "sum":
                x = x + vectors
            elif method == "input_interpolate":
                stretched = F.interpolate(vectors.transpose(1, 2), size=x.shape[1])
                x = x + stretched.transpose(1, 2)
            elif method == "prepend" and first_step:
                x = torch.cat([vectors.to(x.dtype), x], dim=1)
        return x

    def cross_input(self, conditions: ConditionTensors) -> tuple[Tensor, Tensor] | None:
        """Vectors `[B, L, D]` to attend to and their mask `[B, L]`, or None without any."""
        parts = [c for name, c in conditions.items() if self._method(name) == "cross"]
        if not parts:
            return None
        vectors = torch.cat([vectors for vectors, _ in parts], dim=1)
        if self.cross_attention_pos_emb:
            positions = torch.arange(vectors.shape[1], device=vectors.device)
            embedding = sin_embedding(positions, vectors.shape[-1])
            vectors = vectors + self.cross_attention_pos_emb_scale * embedding
        return vectors, torch.cat([mask for _, mask in parts], dim=1)

    def prefix_length(self, conditions: ConditionTensors) -> int:
        """How many positions the prepended conditions take."""
        return sum(conditions[n][0].shape[1] for n in self.fuse2cond["prepend"] if n in conditions)

    def _method(self, name: str) -> str:
        check(
            name in self.cond2fuse,
            f"condition {name!r} is unknown to the fuser, which knows {sorted(self.cond2fuse)}",
        )
        return self.cond2fuse[name]
