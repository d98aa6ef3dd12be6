"""What a quantiser is, and the one that does nothing."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class QuantizedResult:
    """Result of a quantiser or codec in training.

    `x`: quantised latents or decoded audio; `codes` `[B, K, T]`; `bandwidth` in kb/s; `penalty`:
    loss term of the quantiser; `metrics`: anything to log.
    """

    x: Tensor
    codes: Tensor
    bandwidth: Tensor
    penalty: Tensor | None = None
    metrics: dict = field(default_factory=dict)


class BaseQuantizer(nn.Module):
    """Interface of a quantiser of latents `[B, D, T]`."""

    total_codebooks: int
    num_codebooks: int

    def forward(self, x: Tensor, frame_rate: float) -> QuantizedResult:
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        raise NotImplementedError

    def set_num_codebooks(self, n: int) -> None:
        raise NotImplementedError


class DummyQuantizer(BaseQuantizer):
    """Passes latents through: the codes are the latents themselves, `[B, 1, D, T]`."""

    total_codebooks = 1
    num_codebooks = 1

    def forward(self, x: Tensor, frame_rate: float) -> QuantizedResult:
        q = x.unsqueeze(1)
        bandwidth = torch.tensor(q.numel() * 32 * frame_rate / 1000 / len(x)).to(x)
        return QuantizedResult(x, q, bandwidth)

    def encode(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.squeeze(1)

    def set_num_codebooks(self, n: int) -> None:
        raise AttributeError("the dummy quantizer has exactly one codebook")
