"""Observe the decisions of the original while it runs (run in the peer environment)."""

import torch
from audiocraft.quantization.core_vq import EuclideanCodebook


class Watch:
    """Context that records the logits of greedy steps and the smallest margin of any decision.

    Attributes:
        steps: logits [B, K, card] given to each `torch.argmax` call, after guidance.
        margin: smallest gap between the best and the second choice: of logits, and of squared
            distances to the entries of a codebook relative to the second distance.
    """

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []
        self.margin = float("inf")

    def __enter__(self) -> "Watch":
        self._argmax, self._quantize = torch.argmax, EuclideanCodebook.quantize

        def argmax(logits: torch.Tensor, **kwargs):
            self.steps.append(logits.clone())
            best = logits.topk(2, dim=-1).values
            self._note(best[..., 0] - best[..., 1])
            return self._argmax(logits, **kwargs)

        def quantize(book: EuclideanCodebook, x: torch.Tensor):
            distances = torch.cdist(x[None], book.embed[None])[0].square()
            best = distances.topk(2, largest=False).values
            self._note((best[..., 1] - best[..., 0]) / best[..., 1])
            return self._quantize(book, x)

        torch.argmax, EuclideanCodebook.quantize = argmax, quantize
        return self

    def __exit__(self, *exc) -> None:
        torch.argmax, EuclideanCodebook.quantize = self._argmax, self._quantize

    def _note(self, gaps: torch.Tensor) -> None:
        self.margin = min(self.margin, gaps.min().item())
