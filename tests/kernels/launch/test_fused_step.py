"""The whole decode step by the kernels, on a GPU or interpreted: recorded tokens, torch's step."""

import copy
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("triton")

from audiogen_fast import AudioGen  # noqa: E402
from audiogen_fast.generation.cuda_graph.engine import CudaGraphEngine  # noqa: E402
from audiogen_fast.generation.cuda_graph.fused_step import (  # noqa: E402
    FusedSteps,
    launches_per_step,
)
from audiogen_fast.generation.cuda_graph.prefill import (  # noqa: E402
    fill,
    halves,
    prepare_text,
    shape_of,
)
from audiogen_fast.generation.cuda_graph.state import DecodeState  # noqa: E402
from audiogen_fast.generation.cuda_graph.torch_step import torch_steps  # noqa: E402
from audiogen_fast.generation.cuda_graph.weights import step_weights  # noqa: E402
from audiogen_fast.generation.job import SamplingParams, make_keys  # noqa: E402
from audiogen_fast.generation.lm_generate import make_groups, make_job  # noqa: E402
from audiogen_fast.modules.conditioners import ConditioningAttributes  # noqa: E402

norm_linear_config = pytest.importorskip("audiogen_fast.kernels.norm_linear_config")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
GOLDEN = Path(__file__).parents[2] / "data" / "golden"
TILES_OF_FLOAT32 = pytest.mark.skipif(
    not INTERPRETED, reason="on a GPU, float32 is not multiplied in tiles"
)
TEXTS = ["dog barking", "siren of an emergency vehicle in the rain", "footsteps in a corridor"]


@pytest.fixture(scope="module", params=["plain", "biased"])
def golden(request) -> tuple[AudioGen, dict[str, torch.Tensor]]:
    folder = GOLDEN / request.param
    model = AudioGen.get_pretrained(folder / "checkpoint", device=DEVICE)
    return model, load_file(folder / "golden.safetensors", device=DEVICE)


def job_of(lm, sounds, frames, prompt=None, **sampling):
    texts = [TEXTS[i % len(TEXTS)] for i in range(sounds)]
    conditions = [ConditioningAttributes(text={"description": text}) for text in texts]
    groups = make_groups(lm, conditions, sounds, 3.0, False)
    if prompt is None:
        prompt = torch.zeros(sounds, lm.n_q, 0, dtype=torch.long, device=DEVICE)
    keys = make_keys(5, None, sounds, torch.device(DEVICE))
    return make_job(lm, prompt, groups, frames, SamplingParams(**sampling), keys, 3.0)


@pytest.fixture
def large_blocks(monkeypatch):
    """Products take the form for many rows as soon as there are 5, and in float32 too."""
    monkeypatch.setattr(norm_linear_config, "takes_tiles", lambda rows, dtype: rows > 4)


@pytest.mark.parametrize(
    ("name", "sounds", "steps", "tiled"),
    [
        ("greedy_one", 1, 8, False),
        ("greedy", 3, 8, False),
        pytest.param("greedy", 3, 8, True, marks=TILES_OF_FLOAT32),
    ],
)
def test_recorded_tokens_of_a_clip(golden, name, sounds, steps, tiled, request):
    """The first steps of the recorded clip, 2 rows (ordinary cores) and 6 (matrix cores)."""
    if tiled:
        request.getfixturevalue("large_blocks")
    model, tensors = golden
    if INTERPRETED and sounds > 1 and model.lm.linears[0].bias is not None:
        pytest.skip("6 rows once are enough for the slow interpreter")
    codes = tensors[f"{name}.tokens"].long()
    job = job_of(model.lm, sounds, codes.shape[-1], use_sampling=False)
    right, _, _ = job.pattern.build_pattern_sequence(codes, model.lm.special_token_id)
    engine = CudaGraphEngine(model.lm, step="fused", captured=False)
    for done in engine.run(job):
        if done >= steps:
            break
    assert done == steps
    assert torch.equal(job.sequence[..., : job.start + done], right[..., : job.start + done])
    assert (right[..., job.start : job.start + done] < model.lm.card).any()


def states(lm, format=None, sounds=2, **sampling):
    """(weights, two equal states in the middle of a clip)."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, lm.card, (sounds, lm.n_q, 7), generator=generator).to(DEVICE)
    job = job_of(lm, sounds, 9, prompt, **sampling)
    weights, groups, pair = step_weights(lm, format), halves(job), []
    for _ in range(2):
        contexts = prepare_text(lm, groups)
        shape = shape_of(job, groups, contexts)
        state = DecodeState(weights.size, shape, torch.float32, torch.float32, DEVICE)
        fill(lm, state, copy.deepcopy(job), groups, contexts)
        pair.append(state)
    return weights, *pair


@pytest.mark.parametrize("format", [None, "int8", "int4"])
@pytest.mark.parametrize("tiled", [False, pytest.param(True, marks=TILES_OF_FLOAT32)])
def test_equals_the_step_in_plain_torch(golden, tiled, format, request):
    """Logits, codes, caches and everything that advances, drawn with top k and a slot at rest."""
    if INTERPRETED and (format or tiled) and golden[0].lm.linears[0].bias is not None:
        pytest.skip("packed weights and large blocks once are enough for the slow interpreter")
    sounds = 2
    if tiled:
        request.getfixturevalue("large_blocks")
        sounds = 3
    weights, fused, plain = states(golden[0].lm, format, sounds, top_k=7, temperature=1.3)
    assert fused.shape.rows == (8 if tiled else 4)
    fused.release(1)
    plain.release(1)
    held = fused.logits[1].clone(), fused.keys[0][1 :: fused.shape.slots].clone()
    FusedSteps(weights, fused)(128, 2)
    torch_steps(weights, plain, 128, 2)
    scale = plain.logits[0].abs().max()
    torch.testing.assert_close(fused.logits[0], plain.logits[0], rtol=0, atol=1e-5 * scale.item())
    for name in ("sequence", "step", "positions", "draws", "active"):
        assert torch.equal(getattr(fused, name), getattr(plain, name)), name
    slots = fused.shape.slots
    for ours, theirs in zip(fused.keys + fused.values, plain.keys + plain.values, strict=True):
        torch.testing.assert_close(ours[::slots], theirs[::slots], rtol=1e-4, atol=1e-4)
    assert torch.equal(fused.logits[1], held[0]) and torch.equal(fused.keys[0][1::slots], held[1])


@pytest.mark.slow
@TILES_OF_FLOAT32
def test_equals_the_step_in_plain_torch_with_many_rows(golden, large_blocks):
    """64 rows, of which 34 are used."""
    if golden[0].lm.linears[0].bias is not None:
        pytest.skip("once is enough for the slow interpreter")
    weights, fused, plain = states(golden[0].lm, sounds=17, use_sampling=False)
    steps = FusedSteps(weights, fused)
    assert steps.tiled and fused.shape.rows == 64
    steps(128, 1, sampled=False)
    torch_steps(weights, plain, 128, 1, sampled=False)
    scale = plain.logits.abs().max()
    torch.testing.assert_close(
        fused.logits[:17], plain.logits[:17], rtol=0, atol=1e-5 * scale.item()
    )
    assert torch.equal(fused.sequence, plain.sequence)


def test_slots_stop_at_their_ends(golden):
    """Five steps are left of the clip; the sixth does nothing."""
    if INTERPRETED and golden[0].lm.linears[0].bias is not None:
        pytest.skip("once is enough for the slow interpreter")
    weights, fused, plain = states(golden[0].lm, sounds=1, use_sampling=False)
    FusedSteps(weights, fused)(128, 6, sampled=False)
    torch_steps(weights, plain, 128, 6, sampled=False)
    assert torch.equal(fused.sequence, plain.sequence) and not fused.active.any()
    assert fused.step.tolist() == fused.ends.tolist()


@pytest.mark.skipif(not INTERPRETED, reason="counts the launches of the interpreter")
def test_launches_and_buffers_of_a_step(golden, monkeypatch):
    from triton.runtime import interpreter

    count, launch = [], interpreter.GridExecutor.__call__

    def counted(self, *args, **kwargs):
        count.append(self.fn.__name__)
        return launch(self, *args, **kwargs)

    weights, state, _ = states(golden[0].lm, sounds=1)
    steps = FusedSteps(weights, state)
    buffers = dict(state._buffers)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
    steps(128)
    assert len(count) == launches_per_step(weights.size.layers) == 8 * weights.size.layers + 3
    # All scratch was there before the step: same tensors, and none is new.
    assert state._buffers.keys() == buffers.keys()
    assert all(state._buffers[name] is buffers[name] for name in buffers)
