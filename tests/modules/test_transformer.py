"""The transformer against torch's own, and its cached steps against one pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.modules.activations import GatedLinearUnit, get_activation_fn
from audiogen_fast.modules.attention import StreamingMultiheadAttention
from audiogen_fast.modules.rope import RotaryEmbedding
from audiogen_fast.modules.transformer import StreamingTransformer
from audiogen_fast.ops.reference import sin_embedding

DIM, HEADS = 16, 4


def make(seed=0, layers=2, **options) -> StreamingTransformer:
    """A transformer in evaluation mode, every parameter random, norms and biases included."""
    torch.manual_seed(seed)
    defaults = {"dim_feedforward": 32, "dropout": 0.0, "causal": True, "custom": True}
    model = StreamingTransformer(DIM, HEADS, layers, **{**defaults, **options})
    randomize(model)
    return model.eval()


def randomize(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))


def inputs(*shape, seed=1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


OPTIONS = {
    "plain": {},
    "not_custom": {"custom": False},
    "memory_efficient": {"custom": False, "memory_efficient": True},
    "no_bias": {"bias_attn": False, "bias_ff": False},
    "rope": {"positional_embedding": "rope", "max_period": 100.0},
    "xpos": {"positional_embedding": "rope", "xpos": True},
    "sin_rope": {"positional_embedding": "sin_rope", "positional_scale": 0.7},
    "kv_repeat": {"kv_repeat": 2},
    "kv_repeat_rope": {"kv_repeat": 4, "positional_embedding": "rope"},
    "qk_layer_norm": {"qk_layer_norm": True},
    "layer_scale": {"layer_scale": 0.5},
    "norm_first": {"norm_first": True},
    "past_context": {"past_context": 3},
    "past_context_rope": {"past_context": 2, "positional_embedding": "rope"},
    "attention_as_float32": {"attention_as_float32": True},
    "gelu": {"activation": "gelu"},
    "swiglu": {"activation": "swiglu"},
}


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("custom", [False, True])
def test_equals_the_transformer_of_torch(custom, norm_first, activation):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        DIM, HEADS, 32, 0.0, activation, batch_first=True, norm_first=norm_first
    )
    theirs = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    randomize(theirs)
    options = {"norm_first": norm_first, "activation": activation, "positional_scale": 0.0}
    ours = make(layers=3, causal=False, custom=custom, **options)
    ours.load_state_dict(theirs.state_dict())
    x = inputs(4, 20, DIM)
    assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_adds_scaled_sinusoids_in_front():
    x = inputs(2, 5, DIM)
    scaled = make(positional_scale=0.25, max_period=30.0)
    none = make(positional_scale=0.0)
    expected = none(x + 0.25 * sin_embedding(torch.arange(5), DIM, 30.0))
    assert torch.equal(scaled(x), expected)
    assert not torch.allclose(scaled(x), none(x))


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("past_context", [None, 4])
def test_sees_itself_and_its_past_context_only(past_context, custom):
    model = make(layers=1, past_context=past_context, custom=custom)
    for k in (0, 3, 4, 5, 9):
        x = inputs(2, 10, DIM).requires_grad_()
        (model(x)[:, k] * inputs(2, DIM, seed=2)).sum().backward()
        reached = x.grad.abs().sum(dim=(0, 2)) > 0
        oldest = 0 if past_context is None else max(0, k - past_context)
        assert reached.tolist() == [oldest <= t <= k for t in range(10)]


def test_without_causality_every_step_sees_all():
    x = inputs(1, 6, DIM).requires_grad_()
    (make(layers=1, causal=False)(x)[:, 2] * inputs(DIM, seed=2)).sum().backward()
    assert (x.grad.abs().sum(dim=(0, 2)) > 0).all()


def test_memory_efficient_attention_ignores_the_past_context():
    limited = make(custom=False, memory_efficient=True, past_context=2)
    x = inputs(2, 9, DIM)
    assert torch.equal(limited(x), make(custom=False, memory_efficient=True)(x))


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_cached_chunks_of_any_split_equal_one_pass(name, data):
    model = make(**OPTIONS[name])
    steps = data.draw(st.integers(1, 14), "steps")
    cuts = data.draw(st.sets(st.integers(1, steps), max_size=steps), "cuts") - {steps}
    x = inputs(2, steps, DIM)
    cache = model.new_cache(2, steps)
    with torch.no_grad():
        whole = model(x)
        bounds = [0, *sorted(cuts), steps]
        parts = [model(x[:, a:b], cache=cache) for a, b in zip(bounds, bounds[1:], strict=False)]
    assert cache.length == steps
    assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_rotary_attention_rotates_queries_and_keys():
    options = {"max_period": 50.0, "xpos": True, "positional_scale": 0.8}
    attention = make(layers=1, positional_embedding="rope", **options).layers[0].self_attn
    x = inputs(2, 7, DIM)
    projected = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in projected.chunk(3, dim=-1))
    q, k = RotaryEmbedding(DIM // HEADS, 50.0, xpos=True, scale=0.8).rotate_qk(q, k)
    heads = (part.transpose(1, 2) for part in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
    assert_close(attention(x), attention.out_proj(out.transpose(1, 2).flatten(2)))


def test_rotary_positions_come_with_sinusoids_only_if_asked():
    """At position 0 a rotation changes nothing, but the sinusoids add their cosines."""
    x = inputs(2, 1, DIM)
    assert torch.equal(make(positional_embedding="rope")(x), make(positional_scale=0.0)(x))
    assert torch.equal(make(positional_embedding="sin_rope")(x), make()(x))


def rope_starts(prompt: int, steps: int, **options) -> list[int]:
    """The first rotary position of each call: a prompt, then one step at a time."""
    model = make(layers=1, positional_embedding="rope", **options)
    attention, cache = model.layers[0].self_attn, model.new_cache(1, prompt + steps)
    starts = []
    for n in [prompt] + [1] * steps:
        positions = attention.rope_positions(cache, n, torch.device("cpu"))
        assert positions.tolist() == list(range(int(positions[0]), int(positions[0]) + n))
        starts.append(int(positions[0]))
        cache.advance(n)
        cache.prompt_length = cache.prompt_length or cache.length
    return starts


def test_rotary_positions_while_streaming_are_those_of_the_original():
    assert rope_starts(11, 3) == [0, 11, 12, 13]
    memory_efficient = {"custom": False, "memory_efficient": True}
    assert rope_starts(11, 3, **memory_efficient) == [0, 4, 4, 4]
    assert rope_starts(11, 3, kv_repeat=2, **memory_efficient) == [0, 2, 2, 2]
    assert rope_starts(11, 3, past_context=9) == [0, 9, 10, 11]
    assert rope_starts(5, 3, past_context=9) == [0, 5, 6, 7]


@pytest.mark.parametrize("name", OPTIONS)
def test_checkpointing_changes_neither_loss_nor_gradients(name):
    x, results = inputs(2, 7, DIM), []
    for checkpointing in ("none", "torch"):
        model = make(checkpointing=checkpointing, **OPTIONS[name]).train()
        loss = model(x).square().mean()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(gradient.any() for gradient in results[0][1:])


def test_checkpointing_runs_each_layer_twice_in_training():
    for training, runs in ((True, 2), (False, 1)):
        model, calls = make(checkpointing="torch").train(training), []
        model.layers[0].self_attn.register_forward_pre_hook(lambda *_, c=calls: c.append(1))
        model(inputs(1, 3, DIM)).sum().backward()
        assert len(calls) == runs


def test_checkpointing_does_not_lose_the_cache():
    model, x = make(checkpointing="torch").train(), inputs(1, 3, DIM)
    cache = model.new_cache(1, 3)
    with torch.no_grad():
        steps = torch.cat([model(x[:, :2], cache=cache), model(x[:, 2:], cache=cache)], dim=1)
        assert_close(steps, model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", ["swiglu", "geglu", "reglu"])
def test_gated_activation(gate):
    f = {"swiglu": nn.functional.silu, "geglu": nn.functional.gelu, "reglu": torch.relu}[gate]
    x = inputs(3, 8)
    assert_close(get_activation_fn(gate)(x), x[:, :4] * f(x[:, 4:]))
    assert_close(GatedLinearUnit(f, dim=0)(x[:2]), x[:1] * f(x[1:2]))


def test_a_callable_activation_is_used_as_it_is():
    x = inputs(2, 4, DIM)
    assert torch.equal(make(activation=torch.relu)(x), make(activation="relu")(x))


def test_dropout_acts_in_training_only():
    x = inputs(2, 6, DIM)
    model = make(dropout=0.5, attention_dropout=0.0)
    assert torch.equal(model(x), make()(x))
    torch.manual_seed(0)
    model.train()
    assert not torch.allclose(model(x), model(x))
    attention = StreamingMultiheadAttention(DIM, HEADS, dropout=0.5, causal=True).train()
    assert not torch.allclose(attention(x), attention(x))
    assert torch.equal(attention.eval()(x), attention(x))


def test_attention_dropout_overrides_dropout():
    options = {"dropout": 0.3, "cross_attention": True}
    layer = make(**options).layers[0]
    assert (layer.self_attn.dropout, layer.cross_attention.dropout) == (0.3, 0.3)
    layer = make(attention_dropout=0.0, **options).layers[0]
    assert (layer.self_attn.dropout, layer.cross_attention.dropout) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide the width 16, got 3"),
        ({"positional_embedding": "cos"}, "positional_embedding must be one of .*got 'cos'"),
        ({"positional_embedding": "rope", "custom": False}, "rope needs custom or memory_eff"),
        ({"past_context": 3, "causal": False}, "past_context needs causal=True"),
        ({"kv_repeat": 3}, "kv_repeat must divide num_heads=4, got 3"),
        ({"kv_repeat": 2, "custom": False}, "kv_repeat > 1 needs self-attention with custom"),
        ({"kv_repeat": 2, "qk_layer_norm": True}, "qk_layer_norm needs kv_repeat=1"),
        ({"norm": "batch_norm"}, "norm must be 'layer_norm', got 'batch_norm'"),
        ({"activation": "tanh"}, "activation must be one of .*got 'tanh'"),
        ({"norm_frist": True}, "norm_frist"),
    ],
)
def test_wrong_options_are_refused(options, message):
    arguments = {"num_heads": HEADS, "causal": True, "custom": True, **options}
    with pytest.raises((InvalidInputError, TypeError), match=message):
        StreamingTransformer(DIM, num_layers=1, **arguments)


def test_attention_cannot_be_causal_across():
    with pytest.raises(InvalidInputError, match="causal cannot be used together with cross"):
        StreamingMultiheadAttention(DIM, HEADS, causal=True, cross_attention=True)
    with pytest.raises(InvalidInputError, match="kv_repeat > 1 needs self-attention"):
        StreamingMultiheadAttention(DIM, HEADS, cross_attention=True, custom=True, kv_repeat=2)


def test_names_of_plain_attention_load():
    model = make(cross_attention=True)
    state = model.state_dict()
    older = {
        name.replace("self_attn.", "self_attn.mha.").replace(
            "cross_attention.", "cross_attention.mha."
        ): tensor
        for name, tensor in state.items()
    }
    assert "layers.1.self_attn.mha.in_proj_weight" in older
    other = make(seed=5, cross_attention=True)
    other.load_state_dict(older)
    assert all(torch.equal(a, state[name]) for name, a in other.state_dict().items())


def test_parameter_names_of_a_layer():
    options = {"cross_attention": True, "layer_scale": 0.1, "qk_layer_norm": True}
    names = {n for n, _ in make(layers=1, **options).named_parameters(prefix="x")}
    both = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    expected = {f"{part}.{name}" for part in ("self_attn", "cross_attention") for name in both}
    norms = ("norm1", "norm2", "norm_cross", "self_attn.q_layer_norm", "self_attn.k_layer_norm")
    for module in (*norms, "linear1", "linear2"):
        expected |= {f"{module}.weight", f"{module}.bias"}
    expected |= {f"layer_scale_{part}.scale" for part in ("1", "2", "cross")}
    assert names == {f"x.layers.0.{name}" for name in expected}
