"""Stereo from a mono codec: both channels coded apart, their codes interleaved."""

import torch
from torch import Tensor

from audiogen_fast.errors import check
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.quantization import QuantizedResult


class InterleaveStereoCompressionModel(CompressionModel):
    """Codes left and right with a mono codec.

    Args:
        model: the mono codec.
        per_timestep: interleave over time (`[B, K, 2 T]`), else over codebooks (`[B, 2 K, T]`).
    """

    channels = 2

    def __init__(self, model: CompressionModel, per_timestep: bool = False):
        super().__init__()
        check(model.channels == 1, f"the wrapped codec must be mono, got {model.channels} channels")
        self.model, self.per_timestep = model, per_timestep

    @property
    def total_codebooks(self) -> int:
        return self.model.total_codebooks

    @property
    def num_codebooks(self) -> int:
        """After interleaving."""
        return self.model.num_codebooks * (1 if self.per_timestep else 2)

    def set_num_codebooks(self, n: int) -> None:
        """Before interleaving."""
        self.model.set_num_codebooks(n)

    @property
    def num_virtual_steps(self) -> int:
        return 2 if self.per_timestep else 1

    @property
    def frame_rate(self) -> float:
        return self.model.frame_rate * self.num_virtual_steps

    @property
    def sample_rate(self) -> int:
        return self.model.sample_rate

    @property
    def cardinality(self) -> int:
        return self.model.cardinality

    @property
    def _interleaved_dim(self) -> int:
        return 2 if self.per_timestep else 1

    def forward(self, x: Tensor) -> QuantizedResult:
        raise NotImplementedError("train the mono codec itself")

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        check(x.dim() == 3 and x.shape[1] == 2, f"audio must be [B, 2, T], got {tuple(x.shape)}")
        (left, scale_left), (right, scale_right) = (
            self.model.encode(x[:, channel : channel + 1]) for channel in (0, 1)
        )
        dim = self._interleaved_dim
        codes = torch.stack([left, right], dim=dim + 1).flatten(dim, dim + 1)
        scale = None if scale_left is None else torch.stack([scale_left, scale_right], dim=1)
        return codes, scale

    def get_left_right_codes(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the two channels, each as the mono codec made them."""
        dim = self._interleaved_dim
        check(
            codes.dim() == 3 and codes.shape[dim] % 2 == 0,
            f"codes must have an even size in dimension {dim}, got {tuple(codes.shape)}",
        )
        left, right = codes.unflatten(dim, (-1, 2)).unbind(dim + 1)
        return left, right

    def decode(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        scales = (None, None) if scale is None else scale.unbind(1)
        parts = zip(self.get_left_right_codes(codes), scales, strict=True)
        return torch.cat([self.model.decode(part, s) for part, s in parts], dim=1)

    def decode_latent(self, codes: Tensor) -> Tensor:
        raise NotImplementedError("decode the latents of the mono codec instead")
