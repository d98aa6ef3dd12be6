"""The step in plain torch: the eager engine's codes, whatever the slots around it do."""

import copy

import pytest
import torch

from audiogen_fast.generation.cuda_graph.engine import CudaGraphEngine
from audiogen_fast.generation.cuda_graph.prefill import fill, halves, prepare_text, shape_of
from audiogen_fast.generation.cuda_graph.state import DecodeState, StateShape
from audiogen_fast.generation.cuda_graph.torch_step import torch_steps
from audiogen_fast.generation.cuda_graph.weights import step_weights
from audiogen_fast.generation.eager import EagerEngine
from audiogen_fast.generation.job import SamplingParams, make_keys
from audiogen_fast.generation.lm_generate import make_groups, make_job
from audiogen_fast.modules.conditioners import ConditioningAttributes
from audiogen_fast.ops import reference
from audiogen_fast.ops.weight_formats import dequantize, quantize

CPU = torch.device("cpu")


def test_codes_of_the_eager_engine(golden, codes):
    expected = codes(golden, EagerEngine(golden.lm))
    assert torch.equal(codes(golden, CudaGraphEngine(golden.lm)), expected)


def job_of(lm, text, seed, frames, prompt=None, **sampling):
    """A job of one sound, with guidance."""
    groups = make_groups(lm, [ConditioningAttributes(text={"description": text})], 1, 3.0, False)
    prompt = torch.zeros(1, lm.n_q, 0, dtype=torch.long) if prompt is None else prompt
    keys = make_keys([seed], None, 1, CPU)
    return make_job(lm, prompt, groups, frames, SamplingParams(**sampling), keys, 3.0)


def start(lm, state, slot, job):
    groups = halves(job)
    fill(lm, state, job, groups, prepare_text(lm, groups), first=slot)


def alone(lm, job):
    job = copy.deepcopy(job)
    for _ in EagerEngine(lm).run(job):
        pass
    return job.sequence


def test_slots_start_and_stop_independently(golden):
    """Sounds of other lengths, parameters and texts come and go; none feels the others."""
    lm = golden.lm
    prompt = torch.randint(0, lm.card, (1, lm.n_q, 9), generator=torch.Generator().manual_seed(0))
    jobs = [
        job_of(lm, "rain on a roof", 5, 20, top_k=7),
        job_of(lm, "siren of an emergency vehicle far away", 6, 30, top_p=0.7),
        job_of(lm, "a door", 7, 24, prompt, use_sampling=False),
        job_of(lm, "rain", 8, 12, temperature=1.8, top_k=0),
    ]
    expected = [alone(lm, job) for job in jobs]
    weights = step_weights(lm)
    text_for_all = lm.transformer.layers[0].cross_attention.in_proj_bias is not None
    shape = StateShape.bucketed(3, True, 16, 128, text_for_all)
    state = DecodeState(weights.size, shape, torch.float32, torch.float32, CPU)
    state._kv.fill_(float("nan"))  # as an earlier sound may have left it

    def result(slot, job):
        return state.sequence[slot : slot + 1, :, : job.sequence.shape[-1]]

    start(lm, state, 0, jobs[0])
    torch_steps(weights, state, 128, 5)
    start(lm, state, 1, jobs[1])
    torch_steps(weights, state, 128, 3)
    start(lm, state, 2, jobs[2])
    torch_steps(weights, state, 128, 40)
    assert not state.active.any() and state.step.tolist()[:3] == state.ends.tolist()[:3]
    for slot, job in enumerate(jobs[:3]):
        assert torch.equal(result(slot, job), expected[slot]), slot
    start(lm, state, 1, jobs[3])
    torch_steps(weights, state, 128, 4)
    state.release(1)
    held = state.sequence.clone()
    torch_steps(weights, state, 128, 4)
    assert torch.equal(state.sequence, held)
    state.active[1] = True
    torch_steps(weights, state, 128, 20)
    assert torch.equal(result(1, jobs[3]), expected[3])
    assert torch.equal(result(0, jobs[0]), expected[0])


def job_after_prompt(lm):
    prompt = torch.randint(0, lm.card, (1, lm.n_q, 7), generator=torch.Generator().manual_seed(0))
    return job_of(lm, "siren in the rain", 1, 8, prompt, use_sampling=False)


def logits_after_prompt(lm, engine):
    """Logits float32 `[1, K, card]` of the first step after a fixed prompt."""
    job = job_after_prompt(lm)
    groups = halves(job)
    contexts = prepare_text(lm, groups)
    state, _ = engine.state(shape_of(job, groups, contexts))
    fill(lm, state, job, groups, contexts)
    torch_steps(engine.weights(), state, 128, 1, sampled=False)
    return state.logits.clone()


@torch.no_grad()
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_packed_weights_compute_with_what_they_stand_for(golden, format):
    rounded = copy.deepcopy(golden.lm)
    dim = rounded.dim
    for layer in rounded.transformer.layers:
        own, cross = layer.self_attn, layer.cross_attention
        for matrix in (
            own.in_proj_weight,
            own.out_proj.weight,
            cross.in_proj_weight[:dim],  # keys and values of the text are not packed
            cross.out_proj.weight,
            layer.linear1.weight,
            layer.linear2.weight,
        ):
            matrix.copy_(dequantize(quantize(matrix, format)))
    for head in rounded.linears:
        head.weight.copy_(dequantize(quantize(head.weight, format)))
    # The prompt of the packed engine is read with the model's own weights: start without one.
    job = job_of(golden.lm, "siren in the rain", 1, 12)
    expected = alone(rounded, job)
    for _ in CudaGraphEngine(golden.lm, format).run(job):
        pass
    assert torch.equal(job.sequence, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_as_close_as_the_eager_engine(golden, dtype, monkeypatch):
    """Errors against float32 of the whole step, at most twice the eager engine's own."""
    lm, half = golden.lm, copy.deepcopy(golden.lm).to(dtype)
    exact = logits_after_prompt(lm, CudaGraphEngine(lm))
    rough = logits_after_prompt(half, CudaGraphEngine(half))
    seen, sample = [], reference.sample_codebooks

    def watch(logits, *rest):
        seen.append(logits)
        return sample(logits, *rest)

    monkeypatch.setattr(reference, "sample_codebooks", watch)
    next(EagerEngine(half).run(job_after_prompt(half)))
    eager = (seen[0].float() - exact).norm()
    assert 0 < (rough - exact).norm() < 2 * eager


def test_caches_of_another_dtype(golden):
    lm = golden.lm
    exact = logits_after_prompt(lm, CudaGraphEngine(lm))
    error = logits_after_prompt(lm, CudaGraphEngine(lm, kv=torch.bfloat16)) - exact
    assert 0 < error.norm() / exact.norm() < 0.2


def test_the_range_of_positions_changes_nothing(golden):
    lm, job = golden.lm, job_of(golden.lm, "rain", 3, 20)
    expected, weights = alone(lm, job), step_weights(lm)
    groups = halves(job)
    contexts = prepare_text(lm, groups)
    shape = shape_of(job, groups, contexts)
    for limit in (job.sequence.shape[-1] - 1, 31, 128):
        state = DecodeState(weights.size, shape, torch.float32, torch.float32, CPU)
        fill(lm, state, job, groups, contexts)
        torch_steps(weights, state, limit, 40)
        assert torch.equal(state.sequence[:1, :, : job.sequence.shape[-1]], expected)
