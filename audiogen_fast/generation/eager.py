"""The eager engine: plain torch over a static cache, on any device."""

from collections.abc import Iterator

import torch
from torch import Tensor

from audiogen_fast.errors import check
from audiogen_fast.generation.job import UNKNOWN, DecodeJob, RowGroup
from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules.kv_cache import KVCache
from audiogen_fast.modules.transformer import CrossContext
from audiogen_fast.ops import dispatch, reference

# Positions per forward pass of a prompt: bounds the memory of its attention and feed-forward.
PREFILL_CHUNK = 512


class _Rows:
    """A row group with its cache and prepared cross-attention."""

    def __init__(self, lm: LMModel, group: RowGroup, steps: int):
        self.lm, self.conditions, self.rows = lm, group.conditions, group.rows
        capacity = steps + lm.fuser.prefix_length(group.conditions)
        self.cache: KVCache = lm.transformer.new_cache(group.rows, capacity)
        self.cross = prepare_cross(lm, group)

    def logits(self, tokens: Tensor) -> Tensor:
        """Feed tokens `[B, K, n]` after those before; logits `[rows, K, card]` of the last."""
        x = self.lm.embed(tokens)
        x = x.repeat(self.rows // x.shape[0], 1, 1)
        first_step = self.cache.prompt_length is None
        x = self.lm.fuser.fuse_input(x, self.conditions, first_step)
        hidden = x
        for chunk in x.split(PREFILL_CHUNK, dim=1):
            hidden = self.lm.transformer(chunk, cross=self.cross, cache=self.cache)
        if first_step:
            self.cache.prompt_length = self.cache.length
        return self.lm.heads(hidden[:, -1:]).squeeze(2)


def prepare_cross(lm: LMModel, group: RowGroup) -> CrossContext | None:
    """Keys and values of the text, computed once, of the rows that have any.

    Rows without it come last in a batch with guidance, and are left out.
    """
    source = lm.fuser.cross_input(group.conditions)
    if source is None:
        return None
    vectors, mask = source
    rows = lm.transformer.rows_with_text(vectors)
    if not group.mask_padding:
        return lm.transformer.project_cross(vectors, rows=rows)
    # A row without text attends to its zero vectors, rather than to nothing at all.
    attended = mask.bool() | ~mask.bool().any(dim=1, keepdim=True)
    return lm.transformer.project_cross(vectors, attended, rows=rows)


class EagerEngine:
    """Runs one forward pass per step, without ever waiting for the device inside the loop."""

    name = "eager"

    def __init__(self, lm: LMModel):
        check(
            lm.packed is None,
            "engine must be 'native' for a model whose weights were loaded packed, got 'eager'",
        )
        self.lm = lm

    @torch.inference_mode()
    def _start(self, job: DecodeJob) -> list[_Rows]:
        steps = job.sequence.shape[-1]
        return [_Rows(self.lm, group, steps) for group in job.groups]

    @torch.inference_mode()
    def _step(self, job: DecodeJob, groups: list[_Rows], step: int, previous: int) -> None:
        B = job.sequence.shape[0]
        tokens = job.sequence[..., previous:step]
        logits = torch.cat([group.logits(tokens) for group in groups])
        if logits.shape[0] == 2 * B:
            conditional, unconditional = logits.split(B)
            logits = unconditional + (conditional - unconditional) * job.cfg_coef
        drawn = reference.sample_codebooks(
            logits,
            self._noise(job, step),
            job.sampling.temperature,
            job.sampling.top_k,
            job.sampling.top_p,
        )
        # Codes of the prompt that the pattern delays past `start` are kept.
        place = job.sequence[..., step]
        drawn = torch.where(job.pattern_mask[:, step], drawn, self.lm.special_token_id)
        job.sequence[..., step] = torch.where(place == UNKNOWN, drawn, place)

    def _noise(self, job: DecodeJob, step: int) -> Tensor | None:
        if job.sampling.greedy:
            return None
        draw = job.first_draw + step - job.start
        keys = job.keys
        return dispatch.philox_exponential(keys.seeds, keys.items, draw, self.lm.n_q, self.lm.card)

    def run(self, job: DecodeJob) -> Iterator[int]:
        """See `Engine.run`; yields after every step."""
        groups = self._start(job)
        previous = 0
        for step in range(job.start, job.sequence.shape[-1]):
            self._step(job, groups, step, previous)
            previous = step
            yield step - job.start + 1
