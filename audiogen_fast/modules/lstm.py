"""The LSTM between the convolutions of EnCodec."""

import torch
from torch import Tensor, nn

LSTMState = tuple[Tensor, Tensor]


class StreamableLSTM(nn.Module):
    """LSTM over time with an identity skip, on `[B, C, T]` tensors.

    Args:
        dimension: number of channels, in and out.
        num_layers: layers of the LSTM.
        skip: add the input to the output.
    """

    def __init__(self, dimension: int, num_layers: int = 2, skip: bool = True):
        super().__init__()
        self.skip = skip
        self.lstm = nn.LSTM(dimension, dimension, num_layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, None)[0]

    def step(self, x: Tensor, state: LSTMState | None) -> tuple[Tensor, LSTMState]:
        """Run over `x`, continuing from `state` (None: from zeros); also return the new state."""
        y, state = self.lstm(x.permute(2, 0, 1), state)
        y = y.permute(1, 2, 0)
        return torch.add(y, x) if self.skip else y, state
