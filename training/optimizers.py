"""Optimisers, the norm of gradients, and scaling for float16."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from audiogen_fast.models.lm import LMModel
from audiogen_fast.training.config import OptimConfig
from audiogen_fast.training.ema import local
from audiogen_fast.training.parallel import Ranks


def lm_groups(lm: LMModel) -> list[dict]:
    """Parameters in the original's groups: each embedding and the transformer may have own rates.

    Only what is trained is in them.
    """
    groups: list[dict] = []
    taken: set[nn.Parameter] = set()
    for table in lm.emb:
        groups.append({"params": list(table.parameters()), "lr": lm.emb_lr})
    transformer = lm.transformer
    groups.append(
        {
            "params": list(transformer.parameters()),
            "lr": transformer.lr,
            "weight_decay": transformer.weight_decay,
        }
    )
    for group in groups:
        taken.update(group["params"])
    groups.insert(0, {"params": [p for p in lm.parameters() if p not in taken]})
    chosen = []
    for group in groups:
        params = [p for p in group["params"] if p.requires_grad]
        options = {k: v for k, v in group.items() if k != "params" and v is not None}
        if params:
            chosen.append({"params": params, **options})
    return chosen


def make_optimizer(groups: Iterable[dict] | Iterable[nn.Parameter], config: OptimConfig):
    """The optimiser of the configuration, fused into one pass over the parameters."""
    kinds = {"adamw": AdamW, "adam": Adam}
    adam = config.adam
    return kinds[config.optimizer](
        list(groups),
        lr=config.lr,
        betas=tuple(adam.betas),
        eps=adam.eps,
        weight_decay=adam.weight_decay,
        fused=True,
    )


@torch.no_grad()
def gradient_norm(optimizer: Optimizer, ranks: Ranks, sharded: bool) -> Tensor:
    """The 2-norm of all gradients together, a float32 scalar, the same in every process.

    Args:
        sharded: each process has its own part of the gradients, rather than all of them.
    """
    gradients = _gradients(optimizer)
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
    total = torch.stack(norms).square().sum()
    return (ranks.sum(total) if sharded else total).sqrt()


@torch.no_grad()
def scale_gradients(optimizer: Optimizer, factor: float) -> None:
    """Multiply all gradients in place."""
    if factor != 1.0:
        torch._foreach_mul_(_gradients(optimizer), factor)


def clip_factor(norm: float, max_norm: float) -> float:
    """By which gradients of that norm are multiplied: `min(1, max_norm / norm)`; 0 is no limit."""
    return 1.0 if max_norm <= 0 or norm <= max_norm else max_norm / (norm + 1e-6)


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [local(p.grad) for p in parameters if p.grad is not None]


class LossScaler:
    """Scale of a float16 loss, so that small gradients are not rounded to zero.

    After a gradient that is not finite it is halved and the update left out; after `interval`
    good ones it is doubled (Micikevicius et al. 2017, section 3.2).
    """

    def __init__(self, enabled: bool, scale: float = 2.0**16, interval: int = 2000):
        self.enabled, self.interval = enabled, interval
        self.scale, self.good = (scale if enabled else 1.0), 0

    def update(self, finite: bool) -> None:
        """After each gradient."""
        if not self.enabled:
            return
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale = max(1.0, self.scale / 2)
        elif self.good >= self.interval:
            self.scale, self.good = self.scale * 2, 0

    @property
    def searching(self) -> bool:
        """Whether a gradient that is not finite may just mean that the scale is too high."""
        return self.enabled and self.scale > 1.0

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "good": self.good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        if self.enabled:
            self.scale, self.good = state["scale"], state["good"]
