"""Low-rank adapters of the transformer's weights (Hu et al. 2021, section 4.1).

A weight W becomes `W + (alpha / rank) B A` with A `[rank, in]` and B `[out, rank]`; only A and B
are trained. B starts at 0, so a new adapter changes nothing. As the sum is made before the weight
is used, every way to compute with a weight stays the same.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from audiogen_fast.errors import CheckpointError, check
from audiogen_fast.files import write_atomically
from audiogen_fast.models.checkpoint import read_json, read_safetensors
from audiogen_fast.models.lm import LMModel

WEIGHTS, CONFIG = "adapter.safetensors", "adapter.json"
FORMAT = "audiogen_fast adapter"
_NAME = re.compile(r"\.parametrizations\.(\w+)\.0\.([AB])$")


class Adapter(nn.Module):
    """The low-rank sum of one weight `[out, in]`."""

    def __init__(self, weight: Tensor, rank: int, alpha: float):
        super().__init__()
        out_features, in_features = weight.shape
        options = {"device": weight.device, "dtype": weight.dtype}
        self.A = nn.Parameter(torch.empty(rank, in_features, **options))
        self.B = nn.Parameter(torch.zeros(out_features, rank, **options))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addmm(weight, self.B, self.A, alpha=self.scale)


def add_adapters(lm: LMModel, rank: int, alpha: float, targets: Sequence[str]) -> list[str]:
    """Freeze the model and give the targets in each layer an adapter.

    Args:
        targets: names of weights (`in_proj_weight`) or of linear modules (`linear1`), found in
            self-attention, cross-attention and the feed-forward part.
    Returns:
        The names of the weights that got one.
    Raises:
        InvalidInputError: a target is in no layer, or the rank is above a weight's smaller side.
    """
    lm.requires_grad_(False)
    found: set[str] = set()
    names = []
    for path, module in list(lm.transformer.layers.named_modules()):
        for target in targets:
            child = getattr(module, target, None)
            owner, weight = (child, "weight") if isinstance(child, nn.Linear) else (module, target)
            if not isinstance(getattr(owner, weight, None), nn.Parameter):
                continue
            value = getattr(owner, weight)
            check(
                rank <= min(value.shape),
                f"lora.rank must be at most {min(value.shape)}, got {rank}",
            )
            parametrize.register_parametrization(owner, weight, Adapter(value, rank, alpha))
            found.add(target)
            inner = f"{target}.{weight}" if owner is child else target
            names.append(".".join(("transformer.layers", path, inner)))
    missing = sorted(set(targets) - found)
    check(not missing, f"lora.targets are in no layer: {missing}")
    return names


def is_adapter(name: str) -> bool:
    """Whether a tensor of that name belongs to an adapter."""
    return _NAME.search(name) is not None


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A state with the adapters added into the weights, under the names of a model without."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        owner, parametrized, rest = name.partition("parametrizations.")
        if not parametrized:
            plain[name] = tensor
        elif rest.endswith(".original"):
            weight = rest.removesuffix(".original")
            a, b = (state[f"{owner}parametrizations.{weight}.0.{part}"] for part in "AB")
            plain[owner + weight] = torch.addmm(tensor, b, a, alpha=scale)
    return plain


def save_adapter(
    folder: Path, state: Mapping[str, Tensor], rank: int, alpha: float, base: str
) -> None:
    """Write the adapters of a state alone, as safetensors, with what they belong to."""
    from safetensors.torch import save

    tensors = {}
    for name, tensor in state.items():
        if is_adapter(name):
            tensors[_NAME.sub(r".\1.\2", name)] = tensor.detach().cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    about = {"format": FORMAT, "rank": rank, "alpha": alpha, "base": base}
    write_atomically(folder / WEIGHTS, save(tensors, {"format": "pt"}))
    write_atomically(folder / CONFIG, (json.dumps(about, indent=2) + "\n").encode())


@torch.no_grad()
def apply_adapter(lm: LMModel, folder: str | Path) -> dict[str, Any]:
    """Add a saved adapter into the weights of the model it was trained for.

    Returns:
        What its `adapter.json` says.
    Raises:
        CheckpointError: it is damaged, or made for another model.
    """
    folder = Path(folder)
    about = read_json(folder / CONFIG)
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{folder / CONFIG}: not the configuration of an adapter")
    tensors = read_safetensors(folder / WEIGHTS)
    weights = dict(lm.named_parameters())
    names = {name[:-2] for name in tensors}
    for name in names:
        a, b, weight = tensors.get(f"{name}.A"), tensors.get(f"{name}.B"), weights.get(name)
        shapes = None if a is None or b is None else (b.shape[0], a.shape[1])
        if weight is None or shapes != tuple(weight.shape):
            raise CheckpointError(f"{folder}: its {name} does not fit the model")
    for name in sorted(names):  # all of it fits, or nothing is changed
        weight = weights[name]
        delta = tensors[f"{name}.B"].float() @ tensors[f"{name}.A"].float()
        weight.copy_(weight.float() + delta.to(weight.device) * (about["alpha"] / about["rank"]))
    return about
