"""Activation functions of the feed-forward block, by the names used in configurations."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.errors import InvalidInputError


class GatedLinearUnit(nn.Module):
    """`a * f(b)` with `a`, `b` the two halves of the input (Shazeer, 2020)."""

    def __init__(self, activation: Callable[[Tensor], Tensor], dim: int = -1):
        super().__init__()
        self.activation, self.dim = activation, dim

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=self.dim)
        return a * self.activation(b)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,  # exact, by erf
    "swiglu": GatedLinearUnit(F.silu),
    "geglu": GatedLinearUnit(F.gelu),
    "reglu": GatedLinearUnit(F.relu),
}


def get_activation_fn(activation: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function of that name; a callable is returned as it is."""
    if not isinstance(activation, str):
        return activation
    if activation not in _ACTIVATIONS:
        raise InvalidInputError(
            f"activation must be one of {sorted(_ACTIVATIONS)}, got {activation!r}"
        )
    return _ACTIVATIONS[activation]
