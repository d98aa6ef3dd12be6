"""The fused ops in the model: the same loss and gradients as with the plain definitions."""

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules import transformer
from audiogen_fast.modules.codebooks_patterns import (
    CoarseFirstPattern,
    DelayedPatternProvider,
    MusicLMPattern,
    ParallelPatternProvider,
    UnrolledPatternProvider,
)
from audiogen_fast.modules.conditioners import ConditionFuser, ConditioningProvider
from audiogen_fast.ops import library
from audiogen_fast.training.losses import codebook_cross_entropy

K, CARD, D = 3, 11, 16
OPTIONS = {
    "num_layers": 2,
    "num_heads": 2,
    "norm_first": True,
    "causal": True,
    "custom": True,
    "cross_attention": True,
    "activation": "gelu",
    "dropout": 0.0,
    "bias_ff": False,
    "bias_attn": False,
    "bias_proj": False,
}


def make(pattern=None, **options):
    torch.manual_seed(0)
    return LMModel(
        pattern or DelayedPatternProvider(K),
        ConditioningProvider({}),
        ConditionFuser({"cross": ["description"]}),
        n_q=K,
        card=CARD,
        dim=D,
        **OPTIONS | options,
    ).train()


def batch(T=9, L=5):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, CARD, (4, K, T), generator=generator)
    mask = torch.arange(L) < torch.tensor([[L], [3], [1], [0]])  # the last without a description
    vectors = torch.randn(4, L, D, generator=generator) * mask.unsqueeze(-1)
    return codes, {"description": (vectors, mask)}


def plain_loss(lm, codes, text, valid=None, keep=True):
    output = lm.compute_predictions(codes, [], text, keep_only_valid_steps=keep)
    mask = output.mask if valid is None else output.mask & valid.unsqueeze(1)
    return codebook_cross_entropy(output.logits, codes, mask)


def gradients(lm, loss):
    names, parameters = zip(*lm.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters)
    return dict(zip(names, grads, strict=True))


@pytest.fixture
def calls(monkeypatch):
    """Names of the fused operators that ran."""
    seen = []
    for name in ("codebook_embedding", "add_layer_norm", "mlp", "cross_attention"):
        operator = getattr(library, name)

        def spy(*args, name=name, operator=operator):
            seen.append(name)
            return operator(*args)

        monkeypatch.setattr(library, name, spy)
    return seen


VARIANTS = {
    "released": {},
    "biased": {"bias_ff": True, "bias_attn": True, "bias_proj": True},
    "relu": {"activation": "relu"},
    "post_norm": {"norm_first": False},
    "layer_scale": {"layer_scale": 0.5},
    "normalised_queries": {"qk_layer_norm": True, "qk_layer_norm_cross": True},
    "checkpointing": {"checkpointing": "torch"},
    "float32_attention": {"attention_as_float32": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_equals_off(variant, monkeypatch, calls):
    lm, (codes, text) = make(**VARIANTS[variant]), batch()
    loss, each = lm.compute_loss(codes, [], text)
    actual = gradients(lm, loss)
    assert ("mlp" in calls) == (variant not in ("biased", "relu"))
    assert ("add_layer_norm" in calls) == (variant != "post_norm")
    calls.clear()
    monkeypatch.setenv("AUDIOGEN_FAST_BACKEND", "reference")
    expected, expected_each = plain_loss(lm, codes, text)
    assert not calls
    assert_close((loss, each), (expected, expected_each.detach()), rtol=1e-6, atol=1e-6)
    assert_close(actual, gradients(lm, expected), rtol=1e-4, atol=1e-6)


PATTERNS = [
    DelayedPatternProvider(K),
    DelayedPatternProvider(K, [0, 2, 2], flatten_first=2, empty_initial=1),
    ParallelPatternProvider(K),
    UnrolledPatternProvider(K, [0, 1, 1], [0, 3, 3]),
    CoarseFirstPattern(K, [1, 2]),
    MusicLMPattern(K, 1),
]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: type(p).__name__)
def test_the_loss_is_that_of_the_predictions_for_every_pattern(pattern, keep):
    lm, (codes, text) = make(pattern), batch()
    valid = torch.arange(9) < torch.tensor([[9], [4], [1], [0]])
    filled = torch.where(valid.unsqueeze(1), codes, lm.special_token_id)
    with torch.no_grad():
        for places, given in ((None, codes), (valid, codes), (valid, filled)):
            actual = lm.compute_loss(given, [], text, valid=places, keep_only_valid_steps=keep)
            assert_close(actual, plain_loss(lm, given, text, places, keep), rtol=1e-5, atol=1e-6)


def test_divisors_make_parts_add_up():
    lm, (codes, text) = make(), batch()
    whole, each = lm.compute_loss(codes, [], text)
    divisors = 4.0 * torch.tensor([9, 8, 7])
    vectors, mask = text["description"]
    parts = [
        lm.compute_loss(
            codes[part], [], {"description": (vectors[part], mask[part])}, divisors=divisors
        )
        for part in (slice(0, 1), slice(1, 4))
    ]
    assert_close(parts[0][0] + parts[1][0], whole)
    assert_close(parts[0][1] + parts[1][1], each)


def test_a_layer_compiles_in_one_graph():
    torch._dynamo.reset()
    lm, (_, text) = make(), batch()
    layer, x = lm.transformer.layers[0], torch.randn(4, 9, D)
    source = layer.cross_attention.measure_source(text["description"][0])
    assert source.lengths.tolist() == [5, 3, 1, 0] and source.n_pad.tolist() == [0, 2, 4, 5]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    parameters = list(layer.parameters())
    expected, actual = layer(x, source), compiled(x, source)
    assert_close(actual, expected, rtol=0, atol=0)
    ours, theirs = (torch.autograd.grad(y.sum(), parameters) for y in (actual, expected))
    assert_close(ours, theirs)


def test_bfloat16_autocast_stays_close_to_float32():
    lm, (codes, text) = make(), batch()
    loss, _ = lm.compute_loss(codes, [], text)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = lm.compute_loss(codes, [], text)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(loss.item(), rel=5e-3)
    exact, actual = gradients(lm, loss), gradients(lm, half)
    for name, grad in actual.items():
        assert grad.dtype == torch.float32, name
        assert (grad - exact[name]).norm() <= 0.05 * exact[name].norm(), name


def test_dropout_takes_the_plain_path(calls):
    lm, (codes, text) = make(dropout=0.1), batch()
    lm.compute_loss(codes, [], text)
    assert "mlp" not in calls and "cross_attention" not in calls
    lm.eval()
    lm.compute_loss(codes, [], text)
    assert "mlp" in calls and "cross_attention" in calls


def test_inference_takes_no_fused_op(calls):
    lm, (codes, text) = make(), batch()
    with torch.no_grad():
        lm.compute_predictions(codes, [], text)
    assert not calls


def test_rows_of_a_prepared_context_without_text():
    """Keys and values of the first rows only: the others have no branch, on as off."""
    lm, (_, text) = make(), batch()
    x = torch.randn(4, 9, D)
    stack = lm.transformer
    cross = stack.project_cross(text["description"][0], rows=3)
    assert isinstance(cross, transformer.CrossContext)
    assert_close(stack(x, cross=cross), stack(x, text["description"][0]))
    with torch.no_grad():
        plain = stack(x, cross=cross)
    assert_close(stack(x, cross=cross), plain)
