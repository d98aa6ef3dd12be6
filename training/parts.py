"""What a checkpoint holds: named tensors, and small values as JSON.

A part has `tensors()`, which are saved and later loaded in place; `values()`, which JSON can say;
and `set_values(values)`, which comes before its tensors are loaded, so that it can make them.
"""

import random
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Part(Protocol):
    """One thing that is saved and restored."""

    def tensors(self) -> dict[str, Tensor]: ...

    def values(self) -> Any: ...

    def set_values(self, values: Any) -> None: ...


class ModulePart:
    """Parameters and persistent buffers of a module, whole or sharded.

    Args:
        trained_only: leave out frozen parameters, which come from somewhere else.
    """

    def __init__(self, module: nn.Module, trained_only: bool = False):
        self.module, self.trained_only = module, trained_only

    def tensors(self) -> dict[str, Tensor]:
        return {
            name: t.detach()
            for name, t in self.module.state_dict(keep_vars=True).items()
            if not self.trained_only or not isinstance(t, nn.Parameter) or t.requires_grad
        }

    def values(self) -> None:
        return None

    def set_values(self, values: None) -> None:
        pass


class OptimizerPart:
    """Moments of an optimiser by the names of the parameters, not by their order.

    Args:
        modules: the parameters' names are looked up in them; `name.` of each comes first.
    """

    def __init__(self, optimizer: Optimizer, modules: Mapping[str, nn.Module]):
        self.optimizer = optimizer
        self.names = {
            parameter: f"{prefix}.{name}" if prefix else name
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
        }

    def _parameters(self) -> dict[str, Tensor]:
        groups = self.optimizer.param_groups
        return {self.names[p]: p for group in groups for p in group["params"]}

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, parameter in self._parameters().items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def values(self) -> dict[str, Any]:
        """Which tensors each parameter has: "like" it, or the shape and dtype of its own."""
        described: dict[str, Any] = {}
        for name, parameter in self._parameters().items():
            state = self.optimizer.state.get(parameter, {})
            described[name] = {
                key: "like"
                if value.shape == parameter.shape and value.dtype == parameter.dtype
                else {"shape": list(value.shape), "dtype": str(value.dtype).split(".")[1]}
                for key, value in state.items()
                if isinstance(value, Tensor)
            }
        return described

    @torch.no_grad()
    def set_values(self, values: dict[str, Any]) -> None:
        self.optimizer.state.clear()
        for name, parameter in self._parameters().items():
            for key, kind in values.get(name, {}).items():
                self.optimizer.state[parameter][key] = (
                    torch.zeros_like(parameter)
                    if kind == "like"
                    else torch.zeros(
                        kind["shape"],
                        dtype=getattr(torch, kind["dtype"]),
                        # Counts of steps live where the fused optimiser wants them.
                        device=parameter.device if self._fused(parameter) else "cpu",
                    )
                )

    def _fused(self, parameter: Tensor) -> bool:
        for group in self.optimizer.param_groups:
            if any(parameter is p for p in group["params"]):
                return bool(group.get("fused") or group.get("capturable"))
        return False


class ValuesPart:
    """Anything with `state_dict` and `load_state_dict` of what JSON can say."""

    def __init__(self, owner: Any):
        self.owner = owner

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def values(self) -> Any:
        return self.owner.state_dict()

    def set_values(self, values: Any) -> None:
        self.owner.load_state_dict(values)


class Generators:
    """The random generators of this process: Python's, NumPy's, torch's on CPU and CUDA."""

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state()
        state = {
            "python": [version, list(words), gauss],
            "numpy": [name, keys.tolist(), position, has_gauss, cached],
            "torch": _hex(torch.get_rng_state()),
        }
        if torch.cuda.is_available():
            state["cuda"] = _hex(torch.cuda.get_rng_state())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        keys = np.array(keys, dtype=np.uint32)
        np.random.set_state((name, keys, position, has_gauss, cached))
        torch.set_rng_state(_from_hex(state["torch"]))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(_from_hex(state["cuda"]))

    def seed(self, *numbers: int) -> None:
        """Start all of them from a few numbers."""
        words = np.random.SeedSequence(numbers).generate_state(2, np.uint64)
        seed = int(words[0])
        random.seed(seed)
        np.random.seed(int(words[1]) % (1 << 32))
        torch.manual_seed(seed)  # CUDA's too


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
