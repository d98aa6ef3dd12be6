"""Generation with a language model alone: conditions and prompt codes in, codes out."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from audiogen_fast.errors import GenerationCancelled, check
from audiogen_fast.generation.engines import shared_engine
from audiogen_fast.generation.job import (
    UNKNOWN,
    DecodeJob,
    Engine,
    Keys,
    RowGroup,
    SamplingParams,
    make_keys,
)
from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules.conditioners import ConditioningAttributes, ConditionTensors, nullified


@torch.no_grad()
def make_groups(
    lm: LMModel,
    conditions: list[ConditioningAttributes],
    batch: int,
    cfg_coef: float,
    two_step_cfg: bool,
    batch_invariant: bool = False,
) -> list[RowGroup]:
    """Encode the conditions and lay out the rows guidance needs.

    The conditional and unconditional halves are tokenised together, as the original does, so the
    longest text sets the padding of all; `two_step_cfg` tokenises them apart. Where guidance
    cannot change anything (strength 1, or nothing to condition on) one half is enough.
    """
    if not conditions:
        return [RowGroup({}, batch)]
    check(
        len(conditions) == batch,
        f"conditions must have one entry per sound ({batch}), got {len(conditions)}",
    )
    null = nullified(conditions)
    if two_step_cfg:
        halves = [lm.encode_conditions(conditions), lm.encode_conditions(null)]
    else:
        halves = _split(lm.encode_conditions([*conditions, *null]), batch)
    if cfg_coef == 1.0 or _equal(*halves):
        return [RowGroup(halves[0], batch, batch_invariant)]
    if two_step_cfg:
        return [RowGroup(half, batch, batch_invariant) for half in halves]
    both = {name: _cat(halves[0][name], halves[1][name]) for name in halves[0]}
    return [RowGroup(both, 2 * batch, batch_invariant)]


def _split(tensors: ConditionTensors, batch: int) -> list[ConditionTensors]:
    return [
        {name: (vectors[rows], mask[rows]) for name, (vectors, mask) in tensors.items()}
        for rows in (slice(None, batch), slice(batch, None))
    ]


def _cat(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])


def _equal(a: ConditionTensors, b: ConditionTensors) -> bool:
    return all(torch.equal(a[name][0], b[name][0]) for name in a)


def make_job(
    lm: LMModel,
    prompt: Tensor,
    groups: list[RowGroup],
    max_gen_len: int,
    sampling: SamplingParams,
    keys: Keys,
    cfg_coef: float,
    first_draw: int = 0,
) -> DecodeJob:
    """The job that extends prompt codes `[B, K, T]` (T may be 0) to `max_gen_len` frames."""
    B, K, T = prompt.shape
    check(K == lm.n_q, f"prompt must have {lm.n_q} codebooks, got {K}")
    check(
        T < max_gen_len,
        f"prompt must be shorter than the {max_gen_len} frames to generate, got {T} frames",
    )
    pattern = lm.pattern_provider.get_pattern(max_gen_len)
    start = pattern.get_first_step_with_timesteps(T)
    check(
        bool(start),
        "the codebook pattern has no first step of special tokens, so nothing can start it",
    )
    codes = torch.full((B, K, max_gen_len), UNKNOWN, device=lm.device)
    codes[..., :T] = prompt
    sequence, _, mask = pattern.build_pattern_sequence(codes, lm.special_token_id)
    return DecodeJob(
        sequence=sequence,
        pattern_mask=mask,
        pattern=pattern,
        start=start,
        groups=groups,
        cfg_coef=cfg_coef,
        sampling=sampling,
        keys=keys,
        first_draw=first_draw,
    )


def finished_codes(job: DecodeJob) -> Tensor:
    """Codes int64 `[B, K, T]` of a job that has run to its end."""
    codes, _, mask = job.pattern.revert_pattern_sequence(job.sequence, UNKNOWN)
    if bool((codes == UNKNOWN).any()) or not bool(mask.all()):
        raise RuntimeError("the engine left codes of the pattern ungenerated")
    return codes


def check_prompt(prompt: Tensor, card: int) -> None:
    """Raise `InvalidInputError` unless prompt codes are integers in `0..card - 1`."""
    check(
        prompt.dim() == 3 and not prompt.is_floating_point(),
        f"prompt must be integer codes [B, K, T], got {prompt.dtype} {tuple(prompt.shape)}",
    )
    if prompt.numel():
        low, high = int(prompt.min()), int(prompt.max())
        check(
            0 <= low and high < card, f"prompt codes must lie in 0..{card - 1}, got {low}..{high}"
        )


def report(callback: Callable[[int, int], object] | None, done: int, total: int) -> None:
    """Call back; returning False (exactly) cancels, as raising does."""
    if callback is not None and callback(done, total) is False:
        raise GenerationCancelled(f"cancelled by the callback after {done} of {total} steps")


def generate(
    lm: LMModel,
    prompt: Tensor | None,
    conditions: list[ConditioningAttributes],
    *,
    num_samples: int | None = None,
    max_gen_len: int = 256,
    use_sampling: bool = True,
    temp: float = 1.0,
    top_k: int = 250,
    top_p: float = 0.0,
    cfg_coef: float | None = None,
    two_step_cfg: bool | None = None,
    remove_prompts: bool = False,
    check_sequence: bool = False,
    callback: Callable[[int, int], object] | None = None,
    seed: int | Sequence[int] | Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_invariant: bool = False,
    engine: str | Engine = "auto",
) -> Tensor:
    """Generate codes, from nothing or continuing prompt codes.

    Args:
        prompt: int64 `[B, K, T]`, kept at the front.
        conditions: one per sound; may be empty for a model without conditions.
        num_samples: number of sounds when there is neither prompt nor conditions.
        max_gen_len: frames of the result, prompt included.
        use_sampling, temp, top_k, top_p: see `SamplingParams`.
        cfg_coef: guidance strength; None for the model's own.
        two_step_cfg: encode the unconditional half apart; None for the model's own.
        remove_prompts: leave the prompt out of the result.
        check_sequence: verify after every step that no place was fed unfilled (slow).
        callback: called with (steps done, steps in total); return False or raise to stop.
        seed, generator: see `make_keys`.
        batch_invariant: leave padded text out of cross-attention, so that a description's result
            does not depend on the longest one in its batch (the original's does).
        engine: name of an engine, or one.
    Returns:
        int64 `[B, K, max_gen_len]`, or without the prompt's frames.
    Raises:
        InvalidInputError: an argument is out of its limits.
        GenerationCancelled: the callback returned False.
    """
    check(not lm.training, "the model is in training mode; call eval() before generating")
    if prompt is None:
        batch = num_samples if num_samples is not None else len(conditions) or 1
        check(batch > 0, f"num_samples must be positive, got {batch}")
        prompt = torch.zeros(batch, lm.n_q, 0, dtype=torch.long, device=lm.device)
    check_prompt(prompt, lm.card)
    sampling = SamplingParams(use_sampling=use_sampling, temperature=temp, top_k=top_k, top_p=top_p)
    cfg_coef = lm.cfg_coef if cfg_coef is None else cfg_coef
    two_step_cfg = lm.two_step_cfg if two_step_cfg is None else two_step_cfg
    batch = prompt.shape[0]
    groups = make_groups(lm, conditions, batch, cfg_coef, two_step_cfg, batch_invariant)
    keys = make_keys(seed, generator, batch, lm.device)
    job = make_job(lm, prompt, groups, max_gen_len, sampling, keys, cfg_coef)
    engine = shared_engine(engine, lm)
    reported = 0
    for done in engine.run(job):
        if check_sequence:
            filled = job.sequence[..., : job.start + done]
            if bool((filled == UNKNOWN).any()):
                raise RuntimeError(f"step {done} left a code ungenerated")
        for step in range(reported, done):
            report(callback, step + 1, job.total_steps)
        reported = done
    codes = finished_codes(job)
    return codes[..., prompt.shape[-1] :] if remove_prompts else codes
