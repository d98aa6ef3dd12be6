"""Moving average of a module's state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that is here; other tensors are here as a whole."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class ModuleEMA:
    """Unbiased exponential moving average of a module's floating point state.

    Frozen parameters are their own average and are left out. A tensor with several names (tied
    weights) has one average, which is in `state` under each of them.

    With c the count, `c <- decay c + 1` and `ema <- ema + (value - ema) / c`: the first step
    copies, and every later one weighs the past as if the average had never had a start.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay, self.count = module, decay, 0.0
        values = self._values()
        clones = {id(value): value.detach().clone() for value in values.values()}
        self.state = {name: clones[id(value)] for name, value in values.items()}

    def _values(self) -> dict[str, Tensor]:
        state = self.module.state_dict(keep_vars=True)
        return {
            name: value
            for name, value in state.items()
            if value.is_floating_point()
            and (value.requires_grad or not isinstance(value, nn.Parameter))
        }

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each tensor of the module once, and its average; the parts of them that are here."""
        names = {id(value): (name, value) for name, value in self._values().items()}
        return [(local(v.detach()), local(self.state[name])) for name, v in names.values()]

    @torch.no_grad()
    def step(self) -> None:
        """Take the module's present values in."""
        self.count = self.count * self.decay + 1
        values, averages = zip(*self._pairs(), strict=True)
        torch._foreach_lerp_(averages, values, 1 / self.count)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The module with the averaged values; its own come back afterwards.

        Before the first step the module's own values stay.
        """
        if self.count == 0:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for own, average in self._pairs():
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        return self.state

    def values(self) -> dict[str, float]:
        return {"count": self.count}

    def set_values(self, values: dict[str, float]) -> None:
        self.count = values["count"]
