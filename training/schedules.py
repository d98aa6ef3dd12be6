"""Courses of the learning rate, as functions of the number of the update."""

import math

from torch.optim import Optimizer

from audiogen_fast.training.config import ScheduleConfig


def inverse_sqrt(n: int, lr: float, config: ScheduleConfig, total: int) -> float:
    """Linear to `lr` over W updates, then `lr sqrt(W / n)` (Vaswani et al. 2017, section 5.3).

    The n of the formula is 1 at the first update.
    """
    n, warmup = n + 1, config.warmup
    if n < warmup:
        return config.warmup_init_lr + n * (lr - config.warmup_init_lr) / warmup
    return lr * math.sqrt(max(warmup, 1) / n)


def cosine(n: int, lr: float, config: ScheduleConfig, total: int) -> float:
    """Linear from 0 over W updates, then half a cosine to `m lr`, m = `lr_min_ratio`.

    `lr (m + (1 - m) (1 + cos(pi (n - W) / (T - W) / cycle_length)) / 2)`; n is 0 at first.
    """
    if n < config.warmup:
        return lr * n / config.warmup
    if n > total:
        return lr * config.lr_min_ratio
    done = (n - config.warmup) / max(1, total - config.warmup) / config.cycle_length
    wave = 0.5 * (1 + math.cos(math.pi * done))
    return lr * (config.lr_min_ratio + (1 - config.lr_min_ratio) * wave)


def linear_warmup(n: int, lr: float, config: ScheduleConfig, total: int) -> float:
    """`lr n / W` over W updates (n is 0 at first), then constant."""
    return lr * n / config.warmup if n < config.warmup else lr


def polynomial_decay(n: int, lr: float, config: ScheduleConfig, total: int) -> float:
    """Zero, then linear to `lr`, then `end + (lr - end) (1 - share done)^power`; n is 0 at first.

    The zero rate lasts `zero_lr_warmup_steps` updates, the warm-up `warmup`.
    """
    zero, warmup = config.zero_lr_warmup_steps, config.warmup
    if n < zero:
        return 0.0
    if n < zero + warmup:
        return lr * (n - zero) / warmup
    if n >= total:
        return config.end_lr
    left = 1 - (n - zero - warmup) / (total - zero - warmup)
    return config.end_lr + (lr - config.end_lr) * left**config.power


SCHEDULES = {
    "inverse_sqrt": inverse_sqrt,
    "cosine": cosine,
    "linear_warmup": linear_warmup,
    "polynomial_decay": polynomial_decay,
}


class Schedule:
    """Sets an optimiser's rates before each update.

    It counts updates that were made: one that was skipped, for a gradient that is not finite,
    does not advance it.

    Args:
        total: updates of the whole run.
    """

    def __init__(self, optimizer: Optimizer, config: ScheduleConfig, total: int):
        self.optimizer, self.config, self.total = optimizer, config, total
        self.base = [group["lr"] for group in optimizer.param_groups]
        self.updates = 0
        self._apply()

    def advance(self) -> None:
        """After an update."""
        self.updates += 1
        self._apply()

    def _apply(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = self.rate(base, self.updates)

    def rate(self, lr: float, update: int) -> float:
        """Rate of the update of that number, from 0 on."""
        name = self.config.lr_scheduler
        return lr if name is None else SCHEDULES[name](update, lr, self.config, self.total)

    def state_dict(self) -> dict[str, int]:
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.updates = state["updates"]
        self._apply()
