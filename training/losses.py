"""Losses of the language model."""

import torch
from torch import Tensor

from audiogen_fast.errors import check


def codebook_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of each codebook over its own valid positions, and the mean over codebooks.

    With the delay pattern (arXiv 2306.05284, section 2.2) codebook k has k fewer valid positions
    than the first one; averaging each over its own count weighs the codebooks equally.

    Where the mask is False neither the logits (NaN included) nor the target (a special token
    outside the card included) matter, and the gradient is zero. A codebook without a valid
    position counts as zero.

    Args:
        logits: float `[B, K, T, card]`; sums are float32 whatever the dtype (float64 stays).
        targets: int64 `[B, K, T]`, each in [0, card) where the mask is True.
        mask: bool `[B, K, T]`.
    Returns:
        The loss, a scalar, and the cross entropy of each codebook `[K]` (with its gradient), in
        nats, float32 (float64 for float64 logits).
    Raises:
        InvalidInputError: shapes or dtypes that do not fit.
    """
    check(
        logits.ndim == 4,
        f"logits must be [B, K, T, card], got the shape {tuple(logits.shape)}",
    )
    for name, tensor, dtype in (("targets", targets, torch.int64), ("mask", mask, torch.bool)):
        check(
            tensor.shape == logits.shape[:3],
            f"{name} must be {tuple(logits.shape[:3])}, got the shape {tuple(tensor.shape)}",
        )
        check(tensor.dtype == dtype, f"{name} must be {dtype}, got {tensor.dtype}")
    # where() also stops the gradient at what it replaces, which 0 * NaN would not.
    logits = torch.where(mask.unsqueeze(-1), logits, 0.0)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    targets = torch.where(mask, targets, 0)
    entropy = torch.nn.functional.cross_entropy(
        logits.flatten(0, 2), targets.flatten(), reduction="none"
    ).view(targets.shape)
    total = torch.where(mask, entropy, 0.0).sum(dim=(0, 2))
    per_codebook = total / mask.sum(dim=(0, 2)).clamp(min=1)
    return per_codebook.mean(), per_codebook
