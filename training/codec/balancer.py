"""Balancing of losses by the size of their gradients (Défossez et al. 2022, section 3.4)."""

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from audiogen_fast.errors import check


class Balancer:
    """Weighs gradients at the model's output so that a weight is a share of the whole gradient.

    With `g_i` the gradient of loss i and `n_i` the moving average of its norm, the output receives

        sum_i  w_i / (sum_j w_j)  *  total_norm  *  g_i / (epsilon + n_i)

    over the losses of this step. The averages are over all steps, and over the items of all ranks
    as if they were one batch: where the ranks' gradients are averaged afterwards, the result does
    not depend on their number. (The original's does: there balanced gradients lose weight against
    others, such as that of the quantiser, with every rank.)

    Args:
        weights: name of each loss to its weight; at least one above 0.
        balance_grads: False gives the plain weighted sum `sum_i w_i g_i`.
        total_norm: norm that the whole gradient would have if the gradients were parallel.
        ema_decay: of the moving averages, which are free of the bias of their start.
        per_batch_item: the norm is the mean of the norms of each batch item's gradient, rather
            than the norm of the batch's.
        epsilon: added to the averages.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        balance_grads: bool = True,
        total_norm: float = 1.0,
        ema_decay: float = 0.999,
        per_batch_item: bool = True,
        epsilon: float = 1e-12,
    ):
        check(
            all(weight >= 0 for weight in weights.values()) and sum(weights.values()) > 0,
            f"weights must not be negative, and one must be above 0, got {dict(weights)}",
        )
        check(0 <= ema_decay < 1, f"ema_decay must lie in [0, 1), got {ema_decay}")
        self.weights = dict(weights)
        self.balance_grads, self.total_norm, self.ema_decay = balance_grads, total_norm, ema_decay
        self.per_batch_item, self.epsilon = per_batch_item, epsilon
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}
        self.ratios: dict[str, Tensor] = {}
        """Share of each loss in the sum of the averaged norms at the last step, before weighing."""

    def backward(self, losses: Mapping[str, Tensor], output: Tensor) -> Tensor:
        """Add the balanced gradient to everything that `output` was made of.

        Args:
            losses: scalars that depend on `output`, whose names are those of `weights`.
            output: of the model, `[B, ...]`.
        Returns:
            The loss, a scalar, whose gradient was used.
        """
        unknown = sorted(losses.keys() - self.weights.keys())
        check(not unknown and bool(losses), f"losses must be some of the weights, got {unknown}")
        gradients = {
            name: torch.autograd.grad(loss, output, retain_graph=True)[0]
            for name, loss in losses.items()
        }
        with torch.no_grad():
            norms = _norms(list(gradients.values()), self.per_batch_item)
            averages = {
                name: self._average(name, norm)
                for name, norm in zip(losses, norms.unbind(), strict=True)
            }
            total = sum(averages.values())
            self.ratios = {name: average / total for name, average in averages.items()}
            weight_sum = sum(self.weights[name] for name in losses)
            check(weight_sum > 0, f"one of the losses {list(losses)} must have a weight above 0")
            combined = torch.zeros_like(output)
            effective = torch.zeros((), device=output.device)
            for name, loss in losses.items():
                scale = self.weights[name]
                if self.balance_grads:
                    share = self.weights[name] / weight_sum
                    scale = share * self.total_norm / (self.epsilon + averages[name])
                combined += scale * gradients[name]
                effective += scale * loss.detach()
        output.backward(combined)
        return effective

    def _average(self, name: str, norm: Tensor) -> Tensor:
        past = self._sums.get(name, torch.zeros_like(norm)).to(norm.device)
        self._sums[name] = self.ema_decay * past + norm
        self._counts[name] = self.ema_decay * self._counts.get(name, 0.0) + 1
        return self._sums[name] / self._counts[name]

    def state_dict(self) -> dict[str, dict[str, float]]:
        """The moving averages: sums of norms and of their weights, by name of the loss."""
        sums = {name: value.item() for name, value in self._sums.items()}
        return {"sums": sums, "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        self._sums = {name: torch.tensor(value) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])

    def snapshot(self) -> Callable[[], None]:
        """A function that takes the averages back to what they are now."""
        sums, counts = dict(self._sums), dict(self._counts)

        def restore() -> None:
            self._sums, self._counts = sums, counts

        return restore


def _norms(gradients: list[Tensor], per_batch_item: bool) -> Tensor:
    """Norms `[len(gradients)]` of the gradients of the mean of all ranks' losses."""
    world_size = 1
    if dist.is_available() and dist.is_initialized():
        world_size = dist.get_world_size()
    dims = 1 if per_batch_item else 0
    norms = [torch.linalg.vector_norm(g.float().flatten(dims), dim=-1) for g in gradients]
    values = torch.stack(norms) / world_size
    # Sums over items of norms, or of squares, add up over ranks.
    count = values.new_full((1,), len(gradients[0]) if per_batch_item else 1)
    packed = torch.cat([values.sum(-1) if per_batch_item else values.square(), count])
    if world_size > 1:
        dist.all_reduce(packed)
    return packed[:-1] / packed[-1] if per_batch_item else packed[:-1].sqrt()
