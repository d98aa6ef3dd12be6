"""The language model: the released structure, its forward pass, and its initialisation."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules.codebooks_patterns import DelayedPatternProvider, ParallelPatternProvider
from audiogen_fast.modules.conditioners import (
    ConditionFuser,
    ConditioningAttributes,
    ConditioningProvider,
    LUTConditioner,
    T5Conditioner,
    nullified,
)


def make(
    fuse="cross", card=12, n_q=3, dim=16, pattern=DelayedPatternProvider, seed=0, **options
) -> LMModel:
    torch.manual_seed(seed)
    conditioners = {"description": LUTConditioner(32, 8, dim, "whitespace")} if fuse else {}
    defaults = {"num_heads": 4, "num_layers": 2, "causal": True, "custom": True}
    defaults |= {"dropout": 0.0, "norm_first": True, "cross_attention": fuse == "cross"}
    return LMModel(
        pattern(n_q),
        ConditioningProvider(conditioners),
        ConditionFuser({fuse: ["description"]} if fuse else {}),
        n_q=n_q,
        card=card,
        dim=dim,
        **{**defaults, **options},
    ).eval()


def attributes(*texts) -> list[ConditioningAttributes]:
    return [ConditioningAttributes(text={"description": text}) for text in texts]


def some_codes(B=2, K=3, T=7, card=12) -> torch.Tensor:
    return torch.randint(0, card, (B, K, T), generator=torch.Generator().manual_seed(1))


TEXTS = attributes("dog barking", "siren")


def test_the_released_model_has_its_588_tensors():
    with torch.device("meta"):
        model = LMModel(
            DelayedPatternProvider(4),
            ConditioningProvider({"description": T5Conditioner("t5-large", 1536)}),
            ConditionFuser({"cross": ["description"]}),
            n_q=4,
            card=2048,
            dim=1536,
            num_heads=24,
            num_layers=48,
            norm_first=True,
            bias_proj=False,
            bias_ff=False,
            bias_attn=False,
            causal=True,
            memory_efficient=True,
            cross_attention=True,
            activation="gelu",
        )
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    projection = "condition_provider.conditioners.description.output_proj"
    expected = {f"{projection}.weight": [1536, 1024], f"{projection}.bias": [1536]}
    for k in range(4):
        expected |= {f"emb.{k}.weight": [2049, 1536], f"linears.{k}.weight": [2048, 1536]}
    expected |= {"out_norm.weight": [1536], "out_norm.bias": [1536]}
    for index in range(48):
        layer = f"transformer.layers.{index}"
        for attention in ("self_attn", "cross_attention"):
            expected[f"{layer}.{attention}.in_proj_weight"] = [4608, 1536]
            expected[f"{layer}.{attention}.out_proj.weight"] = [1536, 1536]
        expected[f"{layer}.linear1.weight"] = [6144, 1536]
        expected[f"{layer}.linear2.weight"] = [1536, 6144]
        for norm in ("norm1", "norm_cross", "norm2"):
            expected |= {f"{layer}.{norm}.weight": [1536], f"{layer}.{norm}.bias": [1536]}
    assert shapes == expected and len(shapes) == 588
    assert sum(p.numel() for p in model.parameters()) == 1_839_131_136
    assert set(dict(model.named_parameters())) == set(shapes)


def test_embeddings_and_heads():
    model = make()
    sequence = some_codes(card=13)
    expected = sum(model.emb[k].weight[sequence[:, k]] for k in range(3))
    assert_close(model.embed(sequence), expected)
    hidden = torch.randn(2, 7, 16)
    normed = nn.functional.layer_norm(hidden, (16,), model.out_norm.weight, model.out_norm.bias)
    for k in range(3):
        assert_close(model.heads(hidden)[:, k], model.linears[k](normed))
    assert model.special_token_id == model.card == 12 and model.num_codebooks == 3
    assert model.device == torch.device("cpu")
    assert make(norm_first=False).out_norm is None


@torch.no_grad()
def test_forward_is_embedding_conditions_transformer_and_heads():
    model, sequence = make(), some_codes(card=13)
    encoded = model.encode_conditions(TEXTS)
    hidden = model.transformer(model.embed(sequence), encoded["description"][0])
    expected = model.heads(hidden)
    assert torch.equal(model(sequence, TEXTS), expected)
    assert torch.equal(model(sequence, [], encoded), expected)
    assert not torch.allclose(model(sequence, attributes("rain", "sea")), expected)


@torch.no_grad()
def test_a_prefix_gets_no_predictions():
    model, sequence = make("prepend"), some_codes(card=13)
    vectors, _ = model.encode_conditions(TEXTS)["description"]
    hidden = model.transformer(torch.cat([vectors, model.embed(sequence)], dim=1))
    logits = model(sequence, TEXTS)
    assert logits.shape == (2, 3, 7, 12)
    assert torch.equal(logits, model.heads(hidden[:, vectors.shape[1] :]))


@pytest.mark.parametrize("keep_only_valid_steps", [True, False])
@torch.no_grad()
def test_predictions_are_aligned_with_the_codes(keep_only_valid_steps):
    """Codebook k of frame t stands at step 1 + t + k, so step t + k predicts it."""
    model, codes = make(), some_codes()
    output = model.compute_predictions(codes, TEXTS, keep_only_valid_steps=keep_only_valid_steps)
    sequence = torch.full((2, 3, 8 if keep_only_valid_steps else 10), 12)
    for k in range(3):
        for t in range(7):
            if 1 + t + k < sequence.shape[-1]:
                sequence[:, k, 1 + t + k] = codes[:, k, t]
    logits = model(sequence, TEXTS)
    for k in range(3):
        valid = 7 - k if keep_only_valid_steps else 7
        assert output.mask[:, k].tolist() == [[t < valid for t in range(7)]] * 2
        assert torch.equal(output.logits[:, k, :valid], logits[:, k, k : k + valid])
        assert output.logits[:, k, valid:].isnan().all()


@torch.no_grad()
def test_predictions_do_not_depend_on_later_codes():
    model, codes = make(pattern=ParallelPatternProvider), some_codes()
    changed = codes.clone()
    changed[..., 4] = (changed[..., 4] + 1) % 12
    before, after = (model.compute_predictions(c, TEXTS).logits for c in (codes, changed))
    assert torch.equal(before[:, :, :5], after[:, :, :5])
    assert (before[:, :, 5:] != after[:, :, 5:]).any(-1).all()


@torch.no_grad()
def test_conditions_are_dropped_in_training_only():
    sequence, model = some_codes(card=13), make(cfg_dropout=1.0)
    kept = model(sequence, TEXTS)
    absent = model(sequence, nullified(TEXTS))
    assert not torch.allclose(kept, absent)
    assert torch.equal(model.train()(sequence, TEXTS), absent)
    one = make(attribute_dropout={"text": {"description": 1.0}}).train()
    assert torch.equal(one(sequence, TEXTS), absent)
    encoded = model.encode_conditions(TEXTS)
    assert torch.equal(model(sequence, [], encoded), kept)


@torch.no_grad()
def test_a_model_without_conditions():
    model = make(fuse=None)
    assert model(some_codes(card=13), []).shape == (2, 3, 7, 12)


def test_wrong_arguments_are_refused():
    model, sequence = make(), some_codes(card=13)
    encoded = model.encode_conditions(TEXTS)
    for arguments, message in (
        ((sequence[:, :2], TEXTS), "sequence must have K=3 codebooks, got 2"),
        ((sequence, TEXTS, encoded), "either conditions or condition_tensors, not both"),
        ((sequence, TEXTS[:1]), "conditions must have 2 rows, got 1 for 'description'"),
        ((sequence[:1], [], encoded), "conditions must have 1 rows, got 2 for 'description'"),
        ((sequence, []), r"conditions must not be empty, the model needs \['description'\]"),
        ((sequence, [ConditioningAttributes()] * 2), r"conditions\[0\] lacks"),
        ((sequence, [], {}), "needs a text condition"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            model(*arguments)
    with pytest.raises(InvalidInputError, match=r"z must be \[B, 3, T <= 7\], got K=2"):
        model.compute_predictions(some_codes(K=2), TEXTS)


def deviation(weight: torch.Tensor, expected: float) -> None:
    assert weight.std().item() == pytest.approx(expected, rel=0.03)
    assert weight.mean().abs() < 0.03 * expected


@pytest.mark.parametrize("method", ["gaussian", "uniform"])
@pytest.mark.parametrize("depthwise", [None, "current", "global"])
def test_initialisation(method, depthwise):
    init = {"weight_init": method, "depthwise_init": depthwise, "zero_bias_init": True}
    model = make(dim=128, card=128, n_q=2, num_layers=3, bias_proj=True, **init)
    # A normal distribution cut at three deviations is a little narrower.
    narrower = 0.98658 if method == "gaussian" else 1.0
    bound = 3 if method == "gaussian" else math.sqrt(3)
    std = 1 / math.sqrt(128)
    for module in (*model.emb, *model.linears):
        deviation(module.weight, narrower * std)
        assert 0.97 * bound * std < module.weight.abs().max() <= bound * std * 1.0001
    for index, layer in enumerate(model.transformer.layers):
        depth = {None: 0.5, "current": index + 1, "global": 3}[depthwise]
        for module in (
            layer.self_attn.out_proj,
            layer.cross_attention.out_proj,
            layer.linear1,
            layer.linear2,
        ):
            std = 1 / math.sqrt(module.in_features) / math.sqrt(2 * depth)
            deviation(module.weight, narrower * std)
            assert module.weight.abs().max() <= bound * std * 1.0001
            assert not module.bias.any()
        for attention in (layer.self_attn, layer.cross_attention):
            # Untouched, as in the original: the default of a linear layer, at any depth.
            deviation(attention.in_proj_weight, 1 / math.sqrt(3 * 128))
            assert attention.in_proj_weight.abs().max() <= 1 / math.sqrt(128)
            assert not attention.in_proj_bias.any()
        assert (layer.norm1.weight == 1).all()
    assert not any(head.bias.any() for head in model.linears)
    assert model.condition_provider.conditioners["description"].output_proj.bias.any()


def test_biases_are_kept_unless_asked():
    model = make(weight_init="gaussian")
    assert all(head.bias.any() for head in model.linears)
    layer = model.transformer.layers[0]
    assert layer.linear1.bias.any() and layer.linear2.bias.any()
    assert not layer.self_attn.out_proj.bias.any()  # zero by the attention's own rule


def test_half_precision_is_initialised_in_float32():
    model = make(dim=128, weight_init="gaussian", dtype=torch.float16)
    weight = model.transformer.layers[0].linear1.weight
    assert weight.dtype == torch.float16
    deviation(weight.float(), 0.98658 / math.sqrt(128))
    assert model.emb[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_init": "normal"}, "weight_init must be one of .*got 'normal'"),
        ({"weight_init": "gaussian", "depthwise_init": "all"}, "depthwise_init must be one of"),
        ({"depthwise_init": "current"}, "need a weight_init"),
        ({"zero_bias_init": True}, "need a weight_init"),
        ({"norm": "rms"}, "norm must be 'layer_norm', got 'rms'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        make(**options)
