"""How well a language model predicts the codes of real sounds, given their descriptions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from audiogen_fast.errors import check
from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules.conditioners import ConditioningAttributes, ConditionTensors


@torch.no_grad()
def code_cross_entropy(
    lm: LMModel,
    codes: Tensor,
    conditions: Sequence[ConditioningAttributes],
    condition_tensors: ConditionTensors | None = None,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Teacher-forced cross entropy of one sound's codes, or of several of one length.

    Sounds of other lengths need calls of their own: padding would change what is predicted.

    Args:
        lm: in evaluation mode.
        codes: int64 `[B, K, T]`.
        conditions: the descriptions, one for each sound; empty with `condition_tensors`.
        condition_tensors: conditions that are encoded already.
        window: frames that the model writes at once, at least 1. Longer codes are predicted in
            pieces of so many, each with the description and as if it began a sound: a model knows
            nothing of places beyond its window. None for the whole at once.
    Returns:
        Sums in nats, float64 `[K]`, and how many codes they are of, int64 `[K]`; both may be
        added up over calls. The last codes of all but the first codebook are in no step of the
        delay pattern that training and evaluation use, and do not count; so it is in each piece.
    Raises:
        InvalidInputError: codes of another shape, a model in training mode, or no window.
    """
    check(
        codes.ndim == 3 and codes.shape[1] == lm.n_q and codes.shape[2] > 0,
        f"codes must be [B, {lm.n_q}, T], got {list(codes.shape)}",
    )
    check(not lm.training, "lm must be in evaluation mode: lm.eval()")
    check(window is None or window >= 1, f"window must be at least 1 frame, got {window}")
    ones = torch.ones(lm.n_q, device=codes.device)
    sums, counts = 0, 0
    for piece in codes.split(window or codes.shape[2], dim=2):
        _, of_piece = lm.compute_loss(piece, list(conditions), condition_tensors, divisors=ones)
        sums, counts = sums + of_piece.double(), counts + lm.valid_counts(piece)
    return sums, counts


def language_metrics(sums: Tensor, counts: Tensor) -> dict[str, float]:
    """Cross entropy and perplexity from sums and counts `[K]`; see `code_cross_entropy`.

    Returns:
        `ce_qN`, in nats, and `ppl_qN = exp(ce_qN)` of each codebook from 1 on, `ce`, the mean of
        the former, and `ppl = exp(ce)`; the names and definitions of the original.
    """
    ce = sums.double() / counts.clamp(min=1)
    named = {"ce": ce.mean(), "ppl": ce.mean().exp()}
    for prefix, values in (("ce", ce), ("ppl", ce.exp())):
        named |= {f"{prefix}_q{index}": value for index, value in enumerate(values, 1)}
    return {name: float(value) for name, value in named.items()}
