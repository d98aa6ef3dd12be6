"""Scale-invariant signal-to-noise ratio (Le Roux et al. 2019, arXiv 1811.02508, section 2)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.errors import check


class SISNR(nn.Module):
    """Minus the scale-invariant SNR in dB, so that lower is better; the mean over segments.

    A segment of the estimate is split into its projection on the reference (both without their
    mean) and the rest; the ratio is `10 log10(|projection|^2 / |rest|^2)`, each power with
    `epsilon * samples` added. Without the constants it does not depend on the estimate's scale.

    Args:
        sample_rate: in Hz.
        segment: length of a segment in seconds, None for the whole recording. A segment starts at
            every step before the end; those that reach beyond are completed with silence.
        overlap: share of a segment that the next one covers again, in [0, 1).
        epsilon: per sample.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        segment: float | None = 20.0,
        overlap: float = 0.5,
        epsilon: float = torch.finfo(torch.float32).eps,
    ):
        super().__init__()
        check(0 <= overlap < 1, f"overlap must lie in [0, 1), got {overlap}")
        check(
            segment is None or int(segment * sample_rate * (1 - overlap)) > 0,
            f"segment must advance by a sample at {sample_rate} Hz, got {segment} s",
        )
        self.sample_rate, self.segment, self.overlap = sample_rate, segment, overlap
        self.epsilon = epsilon

    def ratios(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """The ratio of every segment in dB, `[B, C, segments]`, of audio `[B, C, T]`."""
        check(
            estimate.ndim == 3 and estimate.shape == reference.shape,
            "estimate and reference must be [B, C, T] of one shape, got "
            f"{tuple(estimate.shape)} and {tuple(reference.shape)}",
        )
        length = estimate.shape[-1]
        frame = length if self.segment is None else int(self.segment * self.sample_rate)
        stride = frame if self.segment is None else int(frame * (1 - self.overlap))
        epsilon = self.epsilon * frame
        x, y = (_centred(_segments(a, frame, stride)) for a in (estimate, reference))
        scale = (x * y).sum(-1, keepdim=True) / (epsilon + y.square().sum(-1, keepdim=True))
        projection = scale * y
        signal = epsilon + projection.square().sum(-1)
        noise = epsilon + (x - projection).square().sum(-1)
        return 10 * (signal.log10() - noise.log10())

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """Minus the mean ratio, a scalar, in dB."""
        return -self.ratios(estimate, reference).mean()


def _segments(x: Tensor, frame: int, stride: int) -> Tensor:
    """Pieces `[B, C, n, frame]` of audio `[B, C, T]`, the last one completed with zeros."""
    count = math.ceil(x.shape[-1] / stride)
    total = (count - 1) * stride + frame
    return F.pad(x, (0, total - x.shape[-1])).unfold(-1, frame, stride)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True)
