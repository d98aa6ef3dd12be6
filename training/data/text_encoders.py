"""Text encoders whose results can be kept, because training does not change them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from audiogen_fast.errors import check
from audiogen_fast.models.weights import fingerprint
from audiogen_fast.modules.encoder_conditioner import EncoderConditioner
from audiogen_fast.modules.text_conditioners import PretrainedTextConditioner


class TextEncoder(Protocol):
    """What turns texts into vectors."""

    dim: int

    @property
    def fingerprint(self) -> str:
        """Differs from that of any other encoder."""
        ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """float32 `[L, dim]` for each text, L being its own number of tokens."""
        ...


class FrozenTextEncoder:
    """The encoder of a model's conditioner, before the projection, which training does change."""

    def __init__(self, conditioner: PretrainedTextConditioner):
        check(not conditioner.finetune, "the text encoder must be frozen, this one is fine-tuned")
        conditioner.load()
        self.conditioner, self.dim = conditioner, conditioner.dim

    @property
    def fingerprint(self) -> str:
        weights = fingerprint(self.conditioner.encoder)
        if isinstance(self.conditioner, EncoderConditioner):
            # Weights that are the same may come with another vocabulary or limit.
            return f"{weights} {self.conditioner.tokenizer_fingerprint}"
        return weights

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `TextEncoder`."""
        inputs = self.conditioner.tokenize(texts)
        vectors = self.conditioner.encode(inputs).float().cpu().numpy()
        lengths = inputs["attention_mask"].sum(1).tolist()
        return [row[:length] for row, length in zip(vectors, lengths, strict=True)]
