"""What an encoder has to offer, and checks that all of them share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from audiogen_fast.errors import InvalidInputError, check


class AudioEncoder(ABC):
    """Turns sounds into vectors: one row for each, which does not depend on the others."""

    name: str
    """For tables and folders: lower case, digits and hyphens."""
    version: str
    """Differs between weights, and between conventions, that give different vectors."""
    sample_rate: int
    """In Hz, of the sounds it takes."""

    @abstractmethod
    def encode(self, waves: Sequence[Tensor]) -> dict[str, Tensor]:
        """All that one pass gives.

        Args:
            waves: float32 `[T]` each, mono at `sample_rate`, full scale 1.
        Returns:
            `embedding`, float32 `[N, dim]` on the CPU, and, where the encoder knows labels,
            `posteriors`, float32 `[N, classes]`, whose rows sum to 1.
        Raises:
            InvalidInputError: a wave is not mono, is empty, or has values that are not finite.
        """

    def embed(self, waves: Sequence[Tensor]) -> Tensor:
        """Vectors of the sounds, float32 `[N, dim]`; see `encode`."""
        return self.encode(waves)["embedding"]

    def posteriors(self, waves: Sequence[Tensor]) -> Tensor:
        """Probabilities of the labels, float32 `[N, classes]`; see `encode`.

        Raises:
            InvalidInputError: the encoder knows no labels.
        """
        found = self.encode(waves)
        if "posteriors" not in found:
            raise InvalidInputError(f"the encoder {self.name} knows no labels")
        return found["posteriors"]


class TextEncoder(ABC):
    """Turns texts into vectors. An encoder of both kinds puts them into one space."""

    name: str
    version: str

    @abstractmethod
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors of the texts, float32 `[N, dim]` on the CPU, of length 1 each."""


def check_waves(waves: Sequence[Tensor]) -> None:
    """Raise `InvalidInputError`, with the index, for a sound that no encoder can take."""
    check(len(waves) > 0, "waves must have at least 1 sound, got 0")
    for i, wave in enumerate(waves):
        check(
            wave.ndim == 1 and wave.is_floating_point(),
            f"waves[{i}] must be [T], floating point, got {list(wave.shape)}, {wave.dtype}",
        )
        check(len(wave) > 0, f"waves[{i}] must have at least 1 sample, got 0")
        check(bool(torch.isfinite(wave).all()), f"waves[{i}] must be finite")
