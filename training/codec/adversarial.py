"""Adversarial and feature matching losses."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.errors import check

Criterion = Callable[[Tensor], Tensor]


def hinge_real_loss(logits: Tensor) -> Tensor:
    """`mean(max(0, 1 - x))`: the discriminator's loss on recordings (arXiv 1705.02894)."""
    return F.relu(1 - logits).mean()


def hinge_fake_loss(logits: Tensor) -> Tensor:
    """`mean(max(0, 1 + x))`: the discriminator's loss on generated audio."""
    return F.relu(1 + logits).mean()


def hinge_loss(logits: Tensor) -> Tensor:
    """`-mean(x)`: the generator's loss."""
    return -logits.mean()


def mse_real_loss(logits: Tensor) -> Tensor:
    """`mean((x - 1)^2)`: least squares, also the generator's loss (arXiv 1611.04076)."""
    return (logits - 1).square().mean()


def mse_fake_loss(logits: Tensor) -> Tensor:
    """`mean(x^2)`."""
    return logits.square().mean()


CRITERIA: dict[str, tuple[Criterion, Criterion, Criterion]] = {
    "hinge": (hinge_loss, hinge_real_loss, hinge_fake_loss),
    "hinge2": (hinge_real_loss, hinge_real_loss, hinge_fake_loss),
    "mse": (mse_real_loss, mse_real_loss, mse_fake_loss),
}
"""Name to the generator's loss, and the discriminator's on recordings and on generated audio."""


def feature_matching_loss(
    fake: Sequence[Tensor], real: Sequence[Tensor], normalize: bool = True
) -> Tensor:
    """Mean absolute difference of feature maps, averaged over the maps with `normalize`."""
    check(
        len(fake) == len(real) > 0,
        f"fake and real must have as many maps, at least one, got {len(fake)} and {len(real)}",
    )
    losses = [F.l1_loss(a, b) for a, b in zip(fake, real, strict=True)]
    total = torch.stack(losses).sum()
    return total / len(losses) if normalize else total


class AdversarialLoss:
    """A discriminator with its optimiser, and the losses that it gives to both sides.

    Args:
        adversary: audio `[B, C, T]` to logits and feature maps of its sub-discriminators.
        optimizer: of its parameters.
        kind: a key of `CRITERIA`.
        normalize: average over sub-discriminators, and over the maps of each, instead of adding.
        dtype: of the discriminator's layers (autocast); losses are float32 in any case.
    """

    def __init__(
        self,
        adversary: nn.Module,
        optimizer: torch.optim.Optimizer,
        kind: str = "hinge",
        normalize: bool = True,
        dtype: torch.dtype = torch.float32,
    ):
        check(kind in CRITERIA, f"kind must be one of {sorted(CRITERIA)}, got {kind!r}")
        self.adversary, self.optimizer, self.normalize = adversary, optimizer, normalize
        self.dtype = dtype
        self.loss, self.loss_real, self.loss_fake = CRITERIA[kind]

    def train_step(self, fake: Tensor, real: Tensor) -> Tensor:
        """One step of the discriminator on audio `[B, C, T]`; returns its loss, a scalar.

        In a process group the gradients are averaged over the ranks. Gradients that are not
        finite are left out.
        """
        # One pass over both: the layers treat batch items alike.
        logits, _ = self._judge(torch.cat([fake.detach(), real.detach()]))
        losses = []
        for both in logits:
            of_fake, of_real = both.split([len(fake), len(real)])
            losses.append(self.loss_fake(of_fake) + self.loss_real(of_real))
        loss = self._reduce(losses)
        loss.backward()
        average_gradients(self.adversary.parameters())
        gradients = [p.grad for p in self.adversary.parameters() if p.grad is not None]
        if torch.nn.utils.get_total_norm(gradients).isfinite():
            self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def generator_losses(self, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Adversarial and feature loss of the generator; the discriminator gets no gradient."""
        frozen = [p for p in self.adversary.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            logits, fake_maps = self._judge(fake)
            with torch.no_grad():
                _, real_maps = self._judge(real)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        adversarial = self._reduce([self.loss(one) for one in logits])
        features = self._reduce(
            [
                feature_matching_loss(a, b, self.normalize)
                for a, b in zip(fake_maps, real_maps, strict=True)
            ]
        )
        return adversarial, features

    def _judge(self, wav: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Logits and feature maps of audio `[B, C, T]`, float32."""
        enabled = self.dtype != torch.float32
        with torch.autocast(wav.device.type, self.dtype, enabled=enabled):
            logits, maps = self.adversary(wav)
        return [x.float() for x in logits], [[x.float() for x in layers] for layers in maps]

    def _reduce(self, losses: Sequence[Tensor]) -> Tensor:
        total = torch.stack(losses).sum()
        return total / len(losses) if self.normalize else total


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over the ranks; does nothing outside a process group.

    Every rank must have gradients for the same parameters.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    # One message instead of hundreds.
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(
        gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True
    ):
        gradient.copy_(mean.view_as(gradient))
