"""Measures of a codec: closeness of its output, and use of its codebooks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from audiogen_fast.data.mel import MelSpectrogram
from audiogen_fast.errors import check
from audiogen_fast.evaluation.sisnr import SISNR

_FLOOR = 1e-5


def si_sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, higher is better (arXiv 1811.02508).

    Args:
        estimate, reference: `[B, C, T]`.
    Returns:
        `[B]`, the mean over the channels; see `SISNR` for the formula.
    """
    return SISNR(segment=None).ratios(estimate, reference).mean(dim=(1, 2))


class MelDistance(nn.Module):
    """Mean absolute difference of log-mel spectrograms in dB, over several resolutions.

    `mean |10 log10(1e-5 + a) - 10 log10(1e-5 + b)|` of mel power spectrograms divided by the
    energy of their windows, with transforms of 128, 256, 512, 1024 and 2048 samples, hops of a
    quarter of that, and 5, 10, 20, 40 and 80 bands.

    Args:
        sample_rate: in Hz.
    """

    def __init__(self, sample_rate: int):
        super().__init__()
        self.mels = nn.ModuleList(
            MelSpectrogram(sample_rate, 2**i, 2**i // 4, 5 * 2 ** (i - 7), normalized=True)
            for i in range(7, 12)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of each item, `[B]`, of audio `[B, C, T]`, both of one shape."""
        check(
            x.ndim == 3 and x.shape == y.shape,
            f"x and y must be [B, C, T] of one shape, got {tuple(x.shape)} and {tuple(y.shape)}",
        )
        total = torch.zeros(len(x), device=x.device)
        for mel in self.mels:
            a, b = (10 * (_FLOOR + mel(signal)).log10() for signal in (x, y))
            total += (a - b).abs().unflatten(0, x.shape[:2]).mean(dim=(1, 2, 3))
        return total / len(self.mels)


class CodebookUsage:
    """How often each entry of each codebook was chosen.

    Args:
        n_q, card: number of codebooks, and of entries in each.
    """

    def __init__(self, n_q: int, card: int, device: torch.device | str = "cpu"):
        self.counts = torch.zeros(n_q, card, device=device)

    def update(self, codes: Tensor) -> None:
        """Count codes `[B, K, T]` of the first K codebooks."""
        rows = codes.transpose(0, 1).flatten(1)
        self.counts[: len(rows)].scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float32))

    def perplexities(self) -> Tensor:
        """`exp(-sum p log p)` of each codebook, `[n_q]`, with p the share of each entry.

        1 where one entry is all that is chosen, the number of entries where all are chosen alike.
        """
        shares = self.counts / self.counts.sum(dim=1, keepdim=True).clamp(min=1)
        return (-torch.special.xlogy(shares, shares).sum(dim=1)).exp()

    def metrics(
        self, total: Callable[[Tensor], Tensor] = lambda counts: counts
    ) -> dict[str, float]:
        """Of each codebook, from 1 on.

        Args:
            total: sums a tensor over processes, which then all call this; None for one process.
        Returns:
            `usage_qK`, the share of entries that were chosen at all, and `perplexity_qK`.
        """
        if total is not None:
            self.counts = total(self.counts.clone())
        usage = (self.counts > 0).float().mean(dim=1).tolist()
        perplexities = self.perplexities().tolist()
        found = {f"usage_q{k}": value for k, value in enumerate(usage, 1)}
        return found | {f"perplexity_q{k}": value for k, value in enumerate(perplexities, 1)}
