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

    Frozen parameters are their own average and are left out.

    With c the count, `c <- decay c + 1` and `ema <- ema + (value - ema) / c`: the first step
    copies, and every later one weighs the past as if the average had never had a start.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay, self.count = module, decay, 0.0
        self.state = {name: value.detach().clone() for name, value in self._values().items()}

    def _values(self) -> dict[str, Tensor]:
        state = self.module.state_dict(keep_vars=True)
        return {
            name: value
            for name, value in state.items()
            if value.is_floating_point()
            and (value.requires_grad or not isinstance(value, nn.Parameter))
        }

    @torch.no_grad()
    def step(self) -> None:
        """Take the module's present values in."""
        self.count = self.count * self.decay + 1
        values = self._values()
        averages = [local(self.state[name]) for name in values]
        torch._foreach_lerp_(averages, [local(v.detach()) for v in values.values()], 1 / self.count)

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
        for name, value in self._values().items():
            own, average = local(value.detach()), local(self.state[name])
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        return self.state

    def values(self) -> dict[str, float]:
        return {"count": self.count}

    def set_values(self, values: dict[str, float]) -> None:
        self.count = values["count"]
