"""Cross-attention: torch's own, and what the layers do with rows that have no text."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.modules.attention import StreamingMultiheadAttention
from audiogen_fast.modules.transformer import CrossContext, StreamingTransformer

DIM, HEADS = 16, 4


def make(seed=0, cross_attention=True, **options) -> StreamingTransformer:
    torch.manual_seed(seed)
    defaults = {"dim_feedforward": 32, "dropout": 0.0, "causal": True, "custom": True}
    options = {**defaults, "cross_attention": cross_attention, **options}
    model = StreamingTransformer(DIM, HEADS, 2, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def inputs(*shape, seed=1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_attention_of_torch(bias):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(DIM, HEADS, bias=bias, batch_first=True)
    if bias:
        nn.init.normal_(theirs.in_proj_bias)
        nn.init.normal_(theirs.out_proj.bias)
    ours = StreamingMultiheadAttention(DIM, HEADS, bias=bias, cross_attention=True)
    ours.load_state_dict(theirs.state_dict())
    queries, source = inputs(3, 7, DIM), inputs(3, 5, DIM, seed=2)
    kv = ours.project_kv(source)
    expected = theirs(queries, source, source, need_weights=False)[0]
    assert_close(ours.attend(queries, kv), expected, rtol=1e-5, atol=1e-6)
    steps = [ours.attend(queries[:, t : t + 1], kv) for t in range(7)]
    assert_close(torch.cat(steps, dim=1), expected, rtol=1e-5, atol=1e-6)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 0, 1]]).bool()
    expected = theirs(queries, source, source, key_padding_mask=~mask, need_weights=False)[0]
    assert_close(ours.attend(queries, kv, mask), expected, rtol=1e-5, atol=1e-6)


def test_normalised_queries_and_keys():
    attention = StreamingMultiheadAttention(DIM, HEADS, cross_attention=True, qk_layer_norm=True)
    plain = StreamingMultiheadAttention(DIM, HEADS, cross_attention=True)
    with torch.no_grad():
        attention.q_layer_norm.weight.normal_()
        attention.k_layer_norm.bias.normal_()
    plain.load_state_dict(attention.state_dict(), strict=False)
    queries, source = inputs(2, 3, DIM), inputs(2, 5, DIM, seed=2)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    q, k, v = (
        nn.functional.linear(x, weight[i * DIM : (i + 1) * DIM], bias[i * DIM : (i + 1) * DIM])
        for i, x in enumerate((queries, source, source))
    )
    q, k = attention.q_layer_norm(q), attention.k_layer_norm(k)
    heads = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    expected = attention.out_proj(out)
    assert_close(attention.attend(queries, attention.project_kv(source)), expected)
    assert not torch.allclose(plain.attend(queries, plain.project_kv(source)), expected)


def test_post_norm_queries_are_the_input_of_the_layer():
    model = make(norm_first=False, positional_scale=0.0, layer_scale=0.5)
    layer, x, source = model.layers[0], inputs(2, 6, DIM), inputs(2, 3, DIM, seed=2)
    kv = layer.cross_attention.project_kv(source)
    expected = layer.norm1(x + 0.5 * layer.self_attn(x))
    expected = layer.norm_cross(expected + 0.5 * layer.cross_attention.attend(x, kv))
    hidden = torch.relu(layer.linear1(expected))
    expected = layer.norm2(expected + 0.5 * layer.linear2(hidden))
    with torch.no_grad():
        for name, scale in layer.named_parameters():
            if "layer_scale" in name:
                scale.fill_(0.5)
        assert_close(layer(x, (kv, None)), expected)


def test_pre_norm_order():
    model = make(norm_first=True)
    layer, x, source = model.layers[0], inputs(2, 6, DIM), inputs(2, 3, DIM, seed=2)
    kv = layer.cross_attention.project_kv(source)
    expected = x + layer.self_attn(layer.norm1(x))
    expected = expected + layer.cross_attention.attend(layer.norm_cross(expected), kv)
    expected = expected + layer.linear2(torch.relu(layer.linear1(layer.norm2(expected))))
    assert torch.equal(layer(x, (kv, None)), expected)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_zero_source_equals_no_cross_attention(norm_first):
    options = {"norm_first": norm_first, "bias_attn": False}
    crossed = make(**options)
    alone = make(cross_attention=False, **options)
    alone.load_state_dict(
        {
            n: t
            for n, t in crossed.state_dict().items()
            if not n.split(".")[2].endswith("cross") and "cross_attention" not in n
        }
    )
    x = inputs(2, 5, DIM)
    zero, some = torch.zeros(2, 3, DIM), inputs(2, 3, DIM, seed=2)
    if norm_first:
        assert torch.equal(crossed(x, zero), alone(x))
    else:  # normalised twice in a row
        assert_close(crossed(x, zero), alone(x), rtol=0, atol=1e-4)
    assert not torch.allclose(crossed(x, some), alone(x), atol=1e-1)


def test_biases_make_a_zero_source_matter():
    model, x = make(norm_first=True, bias_attn=True), inputs(2, 5, DIM)
    some, zero = inputs(2, 3, DIM, seed=2), torch.zeros(2, 3, DIM)
    layer = model.layers[0]
    keys, values = layer.cross_attention.project_kv(zero)
    bias = layer.cross_attention.in_proj_bias
    assert_close(keys[1, :, 2].flatten(), bias[DIM : 2 * DIM])
    assert_close(values[0, :, 1].flatten(), bias[2 * DIM :])
    assert not torch.allclose(model(x, zero), model(x, some), atol=1e-1)


@pytest.mark.parametrize(
    "options", [{"norm_first": True}, {"norm_first": False}, {"layer_scale": 0.5}]
)
@pytest.mark.parametrize("rows", [0, 1, 3])
@torch.no_grad()
def test_rows_without_text_can_be_left_out(rows, options):
    """Guidance puts the rows without text last; leaving them out must not change them a bit."""
    model = make(bias_attn=False, **options)
    x, source = inputs(4, 6, DIM), inputs(4, 5, DIM, seed=2)
    source[rows:] = 0
    full = model(x, cross=model.project_cross(source))
    context = model.project_cross(source, rows=rows)
    assert all(k.shape[0] == v.shape[0] == rows for k, v in context.kv)
    result = model(x, cross=context)
    assert torch.equal(result[rows:], full[rows:])
    # The other rows: matrix products of another height may be summed in another order.
    assert_close(result, full, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_masked_slots_do_not_count():
    model = make(norm_first=True)
    x, source = inputs(3, 6, DIM), inputs(3, 5, DIM, seed=2)
    mask = torch.arange(5) < torch.tensor([[5], [2], [3]])
    source[~mask] = 99.0
    whole = model(x, cross=model.project_cross(source, mask))
    assert torch.equal(model(x, cross=model.project_cross(source, mask, rows=3)), whole)
    for row, n in enumerate((5, 2, 3)):
        alone = model(x[row : row + 1], source[row : row + 1, :n])
        assert_close(whole[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    partial = model.project_cross(source, mask, rows=2)
    assert torch.equal(partial.mask, mask[:2])


@pytest.mark.parametrize("norm_first", [True, False])
@torch.no_grad()
def test_prepared_keys_and_cached_steps_equal_one_pass(norm_first):
    model = make(norm_first=norm_first, qk_layer_norm_cross=True)
    x, source = inputs(2, 9, DIM), inputs(2, 4, DIM, seed=2)
    whole = model(x, source)
    context, cache = model.project_cross(source), model.new_cache(2, 9)
    steps = [model(part, cross=context, cache=cache) for part in x.split([4, 1, 1, 3], dim=1)]
    assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", ["none", "torch"])
def test_gradients_reach_the_source_and_every_parameter(checkpointing):
    model = make(norm_first=True, checkpointing=checkpointing).train()
    source = inputs(2, 3, DIM, seed=2).requires_grad_()
    model(inputs(2, 5, DIM), source).square().mean().backward()
    assert source.grad.abs().sum(-1).all()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    plain = make(norm_first=True).train()
    plain(inputs(2, 5, DIM), source).square().mean().backward()
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


def test_a_missing_or_superfluous_source_is_refused():
    x, source = inputs(1, 2, DIM), inputs(1, 2, DIM, seed=2)
    with pytest.raises(InvalidInputError, match="needs a text condition"):
        make()(x)
    with pytest.raises(InvalidInputError, match="no cross-attention but got an input for it"):
        make(cross_attention=False)(x, source)
    with pytest.raises(InvalidInputError, match="no cross-attention but got an input for it"):
        make(cross_attention=False)(x, cross=CrossContext([]))
