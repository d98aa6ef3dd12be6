"""Static key/value cache of the self-attention layers."""

import torch
from torch import Tensor

from audiogen_fast.errors import check


class KVCache:
    """Keys and values of every layer, allocated once and written at a position tensor.

    Nothing moves or grows while decoding: a step writes its rows at `positions` (a device tensor,
    so that the write can be captured in a CUDA graph) and attends to a view of what is filled.

    Args:
        num_layers, batch, heads, capacity, head_dim: sizes; `capacity` is in positions.
    """

    def __init__(
        self,
        num_layers: int,
        batch: int,
        heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        shape = (batch, heads, capacity, head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.capacity = capacity
        self.length = 0  # host-side count of filled positions
        self.prompt_length: int | None = None  # positions of the first call, once it is over
        self._all_positions = torch.arange(capacity, device=device)

    def positions(self, n: int) -> Tensor:
        """int64 `[n]`: where the next n time steps go.

        Raises:
            InvalidInputError: the cache has no room for them.
        """
        check(
            self.length + n <= self.capacity,
            f"the cache holds {self.capacity} positions, of which {self.length} are filled, "
            f"got {n} more",
        )
        return self._all_positions[self.length : self.length + n]

    def write(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store `k`, `v` (`[B, H, n, d]`) at `positions`; return views of all filled ones."""
        self.keys[layer].index_copy_(2, positions, k)
        self.values[layer].index_copy_(2, positions, v)
        end = self.length + k.shape[2]
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, n: int) -> None:
        """Count n more positions as filled, once all layers have written them."""
        self.length += n
