"""Rotary positions (RoPE, Su et al. 2021, with the xPos decay of Sun et al. 2022)."""

import torch
from torch import Tensor, nn


class RotaryEmbedding(nn.Module):
    """Rotates pairs of channels by an angle that grows with the position.

    Args:
        dim: head width, even.
        max_period: longest period of the rotation.
        xpos: also apply the xPos decay (queries grow, keys shrink with position).
        scale: 1 for the full rotation, 0 for none.
    """

    XPOS_SMOOTHING = 0.4
    XPOS_BASE = 512

    def __init__(
        self,
        dim: int,
        max_period: float = 10000.0,
        xpos: bool = False,
        scale: float = 1.0,
        device=None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.dim, self.max_period, self.use_xpos, self.scale = dim, max_period, xpos, scale
        self.dtype = dtype

    def _rotation(self, positions: Tensor, invert_decay: bool) -> Tensor:
        """Complex factors `[T, dim / 2]`, computed on the fly so that nothing needs loading."""
        index = torch.arange(0, self.dim, 2, device=positions.device, dtype=self.dtype)
        frequencies = 1.0 / (self.max_period ** (index / self.dim))
        angles = torch.outer(positions.to(self.dtype), frequencies)
        magnitude = torch.ones_like(angles)
        if self.use_xpos:
            half = self.dim // 2
            ramp = torch.arange(half, device=positions.device, dtype=self.dtype) / half
            rates = (ramp + self.XPOS_SMOOTHING) / (1.0 + self.XPOS_SMOOTHING)
            power = positions.to(self.dtype).unsqueeze(-1) / self.XPOS_BASE
            magnitude = rates ** (-power if invert_decay else power)
        return torch.polar(magnitude, angles) * self.scale + (1.0 - self.scale)

    def rotate(self, x: Tensor, positions: Tensor, time_dim: int, invert_decay: bool) -> Tensor:
        """Rotate `x` (`[..., dim]`, time on `time_dim`) to int64 `positions` `[T]`."""
        shape = [1] * x.dim()
        shape[time_dim], shape[-1] = x.shape[time_dim], -1
        rotation = self._rotation(positions, invert_decay).view(shape)
        pairs = torch.view_as_complex(x.to(self.dtype).reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)

    def rotate_qk(
        self, query: Tensor, key: Tensor, start: int = 0, time_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Rotate a query and a key that end at the same time step; the key starts at `start`."""
        n_key, n_query = key.shape[time_dim], query.shape[time_dim]
        positions = torch.arange(start, start + n_key, device=key.device)
        return (
            self.rotate(query, positions[n_key - n_query :], time_dim, invert_decay=False),
            self.rotate(key, positions, time_dim, invert_decay=True),
        )
