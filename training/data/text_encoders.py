"""Text encoders whose results can be kept, because training does not change them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from audiogen_fast.errors import check
from audiogen_fast.models.weights import fingerprint
from audiogen_fast.modules.text_conditioners import T5Conditioner


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


class T5TextEncoder:
    """The T5 of a model's conditioner, before the projection, which training does change."""

    def __init__(self, conditioner: T5Conditioner):
        check(not conditioner.finetune, "the text encoder must be frozen, this one is fine-tuned")
        conditioner.load()
        self.conditioner, self.dim = conditioner, conditioner.dim

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.conditioner.encoder)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `TextEncoder`."""
        inputs = self.conditioner.tokenize(texts)
        vectors = self.conditioner.encoder(**inputs).last_hidden_state.float().cpu().numpy()
        lengths = inputs["attention_mask"].sum(1).tolist()
        return [row[:length] for row, length in zip(vectors, lengths, strict=True)]
