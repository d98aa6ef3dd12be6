"""The eager engine: its cache, its shortcuts, and what it must not do."""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.generation import eager
from audiogen_fast.generation.job import SamplingParams, make_keys
from audiogen_fast.generation.lm_generate import make_groups, make_job
from audiogen_fast.models.loaders import load_lm_model
from audiogen_fast.modules import kv_cache
from audiogen_fast.modules.conditioners import ConditioningAttributes
from audiogen_fast.ops import dispatch, reference

CHECKPOINT = Path(__file__).parent.parent / "data" / "golden" / "plain" / "checkpoint"
TEXTS = ["dog barking", "siren of an emergency vehicle in the rain"]


def conditions(texts=TEXTS):
    return [ConditioningAttributes(text={"description": text}) for text in texts]


def logits_of(monkeypatch, lm, **options) -> torch.Tensor:
    """Logits every step chose from, of a greedy run: [step, B, K, card]."""
    seen, sample = [], reference.sample_codebooks

    def watch(logits, noise, *rest):
        seen.append(logits.clone())
        return sample(logits, noise, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(eager.reference, "sample_codebooks", watch)
        lm.generate(conditions=conditions(), use_sampling=False, max_gen_len=12, **options)
    return torch.stack(seen)


def test_steps_equal_one_forward_pass(model):
    lm = model.lm
    codes = lm.generate(conditions=conditions(), use_sampling=False, max_gen_len=12, cfg_coef=1.0)
    with torch.no_grad():
        output = lm.compute_predictions(codes, conditions())
    assert torch.equal(output.logits.argmax(-1)[output.mask], codes[output.mask])


def test_a_step_never_waits_for_the_device(model):
    """No op of a step reads a value back to the host."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            assert name not in ("_local_scalar_dense", "nonzero", "multinomial"), name
            return func(*args, **(kwargs or {}))

    lm = model.lm
    groups = make_groups(lm, conditions(), 2, 3.0, False)
    for params in ({"top_k": 20}, {"top_p": 0.7}, {"use_sampling": False}):
        job = make_job(
            lm,
            torch.zeros(2, 4, 0, dtype=torch.long),
            groups,
            8,
            SamplingParams(**params),
            make_keys(1, None, 2, torch.device("cpu")),
            3.0,
        )
        steps = eager.EagerEngine(lm).run(job)
        next(steps)  # the preparation may wait once
        with Watch():
            assert [next(steps) for _ in range(3)] == [2, 3, 4]


@torch.no_grad()
def test_rows_without_text_are_skipped_bit_equal(model):
    """Unconditional rows get the same bits; conditional ones may round their products anew."""
    lm = model.lm
    (group,) = make_groups(lm, conditions(), 2, 3.0, False)
    vectors, _ = lm.fuser.cross_input(group.conditions)
    x = torch.randn(4, 5, lm.dim, generator=torch.Generator().manual_seed(0))
    full = lm.transformer(x, cross=lm.transformer.project_cross(vectors))
    skipped = lm.transformer(x, cross=lm.transformer.project_cross(vectors, rows=2))
    assert torch.equal(skipped[2:], full[2:])
    torch.testing.assert_close(skipped[:2], full[:2], rtol=1e-5, atol=1e-5)
    prepared = eager.prepare_cross(lm, group)
    assert prepared.kv[0][0].shape[0] == 2  # the engine does leave them out


def test_prompt_in_chunks_equals_prompt_at_once(model, monkeypatch):
    lm = model.lm
    prompt = torch.randint(0, lm.card, (2, 4, 9), generator=torch.Generator().manual_seed(0))
    options = {"use_sampling": False, "max_gen_len": 14}
    whole = lm.generate(prompt, conditions(), **options)
    monkeypatch.setattr(eager, "PREFILL_CHUNK", 3)
    assert torch.equal(lm.generate(prompt, conditions(), **options), whole)


def test_unwritten_cache_is_never_read(model, monkeypatch):
    lm = model.lm
    expected = logits_of(monkeypatch, lm)

    class Poisoned(kv_cache.KVCache):
        def __init__(self, *args):
            super().__init__(*args)
            for tensor in (*self.keys, *self.values):
                tensor.fill_(float("nan"))

    monkeypatch.setattr("audiogen_fast.modules.transformer.KVCache", Poisoned)
    assert torch.equal(logits_of(monkeypatch, lm), expected)


@pytest.mark.parametrize("engine", ["eager", "native"])
def test_a_temperature_near_zero_takes_the_most_likely_codes(model, engine):
    """Logits divided by 1e-38 are infinite, and have no softmax to draw from."""
    lm = model.lm
    options = {"conditions": conditions(), "max_gen_len": 10, "seed": 4, "engine": engine}
    greedy = lm.generate(**options, use_sampling=False)
    for temperature in (1e-45, 1e-38, 9e-7):
        assert torch.equal(lm.generate(**options, temp=temperature), greedy), temperature
    # The smallest with which codes are drawn: they are finite, and so the most likely ones.
    assert torch.equal(lm.generate(**options, temp=1e-6), greedy)


def test_guidance_shortcuts(model):
    lm = model.lm
    assert [g.rows for g in make_groups(lm, conditions(), 2, 3.0, False)] == [4]
    assert [g.rows for g in make_groups(lm, conditions(), 2, 3.0, True)] == [2, 2]
    assert [g.rows for g in make_groups(lm, conditions(), 2, 1.0, False)] == [2]
    for nothing in ([None, None], [None, ""]):
        assert [g.rows for g in make_groups(lm, conditions(nothing), 2, 3.0, False)] == [2]


def test_two_step_guidance_honours_its_strength(model, monkeypatch):
    lm = model.lm
    one = logits_of(monkeypatch, lm, cfg_coef=2.0)
    two = logits_of(monkeypatch, lm, cfg_coef=2.0, two_step_cfg=True)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)


def test_native_and_reference_noise_give_the_same_codes(model, monkeypatch):
    lm = model.lm
    options = {"conditions": conditions(), "max_gen_len": 10, "seed": 4}
    codes = lm.generate(**options)
    monkeypatch.setattr(dispatch, "_use_native", lambda: False)
    assert torch.equal(lm.generate(**options), codes)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_close(model, dtype):
    """Weights and products in half precision, residual and norms in float32."""
    half = load_lm_model(CHECKPOINT, dtype=dtype)
    assert half.transformer.layers[0].linear1.weight.dtype == getattr(torch, dtype)
    codes = torch.randint(0, 64, (2, 4, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = model.lm.compute_predictions(codes, conditions())
        rough = half.compute_predictions(codes, conditions())
    error = (rough.logits - exact.logits)[exact.mask].norm() / exact.logits[exact.mask].norm()
    # About four roundings deep per layer, at half a unit in the last place each.
    assert error < 8 * torch.finfo(getattr(torch, dtype)).eps
    assert half.generate(conditions=conditions(), max_gen_len=6, seed=1).shape == (2, 4, 6)


def test_prompt_codes_are_checked(model):
    lm = model.lm
    good = torch.zeros(2, 4, 3, dtype=torch.long)
    for bad, word in (
        (good + lm.card, "0..63"),
        (good - 1, "-1"),
        (good.float(), "integer"),
        (good[:, :3], "codebooks"),
        (good[0], "[B, K, T]"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            lm.generate(bad, conditions(), max_gen_len=8)
        assert word in str(caught.value)
    with pytest.raises(InvalidInputError, match="shorter than the 3 frames"):
        lm.generate(good, conditions(), max_gen_len=3)
    with pytest.raises(InvalidInputError, match="one entry per sound"):
        lm.generate(good, conditions(["a"]), max_gen_len=8)


def test_prompts_can_be_left_out(model):
    lm = model.lm
    prompt = torch.zeros(1, 4, 3, dtype=torch.long)
    options = {"conditions": conditions(["rain"]), "max_gen_len": 8, "use_sampling": False}
    kept = lm.generate(prompt, **options)
    assert torch.equal(kept[..., :3], prompt)
    assert torch.equal(lm.generate(prompt, remove_prompts=True, **options), kept[..., 3:])


def test_training_mode_is_refused(model):
    model.lm.train()
    try:
        with pytest.raises(InvalidInputError, match="eval"):
            model.lm.generate(conditions=conditions(), max_gen_len=4)
    finally:
        model.lm.eval()


def test_a_model_with_text_needs_conditions(model):
    with pytest.raises(InvalidInputError, match="text condition"):
        model.lm.generate(num_samples=2, max_gen_len=4)
