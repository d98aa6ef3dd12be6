"""Filling a state before its first step: text keys and values, and the caches of a prompt."""

import torch
from torch import Tensor

from audiogen_fast.errors import check
from audiogen_fast.generation.cuda_graph.state import DecodeState, StateShape
from audiogen_fast.generation.eager import PREFILL_CHUNK, prepare_cross
from audiogen_fast.generation.job import DecodeJob, RowGroup
from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules.kv_cache import KVCache
from audiogen_fast.modules.transformer import CrossContext


class CacheView(KVCache):
    """The caches of some rows of a state, as a cache that the model itself can fill."""

    def __init__(self, state: DecodeState, rows: slice):
        self.keys = [cache[rows] for cache in state.keys]
        self.values = [cache[rows] for cache in state.values]
        self.capacity = state.shape.positions
        self.length, self.prompt_length = 0, None
        self._all_positions = torch.arange(self.capacity, device=state.device)

    def write(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVCache.write`; the caches may be held in another dtype than the model."""
        dtype = self.keys[layer].dtype
        filled = super().write(layer, positions, k.to(dtype), v.to(dtype))
        if self.length == 0:
            return k, v
        return filled[0].to(k.dtype), filled[1].to(v.dtype)


def halves(job: DecodeJob) -> list[RowGroup]:
    """The row groups of a job, one of all conditional rows, and one of the others if any."""
    sounds = job.sequence.shape[0]
    if len(job.groups) == 2 or job.groups[0].rows == sounds:
        return job.groups
    (group,) = job.groups
    return [
        RowGroup(
            {name: (vectors[rows], mask[rows]) for name, (vectors, mask) in pairs.items()},
            sounds,
            group.mask_padding,
        )
        for pairs, rows in (
            (group.conditions, slice(None, sounds)),
            (group.conditions, slice(sounds, None)),
        )
    ]


@torch.no_grad()
def prepare_text(lm: LMModel, groups: list[RowGroup]) -> list[CrossContext | None]:
    """Keys and values of the text of each group, of the rows that have any."""
    contexts = [prepare_cross(lm, group) for group in groups]
    check(
        (contexts[0] is not None) == lm.transformer.has_cross_attention,
        "this model has cross-attention and needs a text condition"
        if contexts[0] is None
        else "this model has no cross-attention but got an input for it",
    )
    return contexts


def shape_of(
    job: DecodeJob, groups: list[RowGroup], contexts: list[CrossContext | None]
) -> StateShape:
    """The shape of a state for a job with these row groups and texts."""
    widths = [0 if c is None or len(c.kv[0][0]) == 0 else c.kv[0][0].shape[2] for c in contexts]
    return StateShape.bucketed(
        job.sequence.shape[0],
        len(groups) == 2,
        max(widths),
        job.sequence.shape[-1],
        text_for_all=len(groups) == 2 and widths[1] > 0,
    )


@torch.no_grad()
def fill(
    lm: LMModel,
    state: DecodeState,
    job: DecodeJob,
    groups: list[RowGroup],
    contexts: list[CrossContext | None],
    first: int = 0,
) -> None:
    """Admit the sounds of a job to slots `first` and up, with their text and their prompt."""
    sounds, keys = job.sequence.shape[0], job.keys
    state.admit(
        first,
        job.sequence,
        job.pattern_mask,
        job.start,
        keys.seeds,
        keys.items,
        job.first_draw,
        job.sampling,
        job.cfg_coef,
    )
    for rows, group, context in zip(state.row_slices(first, sounds), groups, contexts, strict=True):
        if rows.stop <= state.shape.text_rows:
            _fill_text(lm, state, rows, group, context)
        if job.start > 1:
            _fill_prompt(lm, state, rows, job.sequence[..., : job.start - 1], context)


def _fill_text(
    lm: LMModel, state: DecodeState, rows: slice, group: RowGroup, context: CrossContext
) -> None:
    vectors, mask = lm.fuser.cross_input(group.conditions)
    order, lengths, pads = text_layout(
        vectors,
        mask,
        group.mask_padding,
        lm.transformer.layers[0].cross_attention.in_proj_bias is not None,
    )
    state.text_lengths[rows], state.text_pads[rows] = lengths, pads
    used = context.kv[0][0].shape[0]  # the rows after these have nothing but zeros
    texts = slice(rows.start, rows.start + used)
    order = order[:used, None, :, None]
    real = torch.arange(order.shape[2], device=order.device) < lengths[:used].view(-1, 1)
    real = real[:, None, :, None]
    for layer, pair in enumerate(context.kv):
        keys, values = (t.gather(2, order.expand_as(t)).masked_fill(~real, 0.0) for t in pair)
        state.set_text(texts, layer, keys, values)
    state.clear_text(slice(texts.stop, rows.stop))


def text_layout(
    vectors: Tensor, mask: Tensor, mask_padding: bool, biased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Which text slots of each row to keep, and how many zero slots stand for the rest.

    Attention does not depend on the order of its slots, so those kept are moved to the front.
    Padded slots are zero, so a count stands for them, unless a bias or a position embedding makes
    them something else.

    Args:
        vectors, mask: `[n, L, D]` and `[n, L]`, from `ConditionFuser.cross_input`.
        mask_padding: leave the padding out altogether.
        biased: whether the projections of the text have a bias.
    Returns:
        order int64 `[n, L]`, lengths int32 `[n]`, pads int32 `[n]`. Waits for the device once.
    """
    width, real = mask.shape[1], mask.bool()
    if mask_padding:
        # A row without text attends to its zero vectors, rather than to nothing at all.
        kept = real | ~real.any(dim=1, keepdim=True)
    elif biased or bool((vectors * ~real.unsqueeze(-1)).any()):
        kept = torch.ones_like(real)
    else:
        kept = real
    order = torch.argsort((~kept).to(torch.int8), dim=1, stable=True)
    lengths = kept.sum(dim=1, dtype=torch.int32)
    pads = torch.zeros_like(lengths) if mask_padding else width - lengths
    return order, lengths, pads


def _fill_prompt(
    lm: LMModel, state: DecodeState, rows: slice, tokens: Tensor, context: CrossContext | None
) -> None:
    """Run the model over tokens `[n, K, start - 1]`; the first step feeds the one after them."""
    cache = CacheView(state, rows)
    for chunk in lm.embed(tokens).split(PREFILL_CHUNK, dim=1):
        lm.transformer(chunk, cross=context, cache=cache)
