"""Half-precision weights: a float32 residual, float32 norms, and errors no larger than torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from audiogen_fast.modules import norm
from audiogen_fast.modules.attention import StreamingMultiheadAttention
from audiogen_fast.modules.norm import LayerNorm, LayerScale, create_norm_fn, linear
from audiogen_fast.modules.transformer import StreamingTransformer

HALF = [torch.float16, torch.bfloat16]


def layers(dtype=torch.float32) -> StreamingTransformer:
    """Six pre-norm layers, as the released model has them."""
    options = {"norm_first": True, "activation": "gelu", "positional_scale": 0.0}
    return StreamingTransformer(64, 4, 6, 128, dropout=0.0, custom=True, dtype=dtype, **options)


@pytest.mark.parametrize("dtype", HALF)
@torch.no_grad()
def test_error_is_at_most_twice_that_of_torch_in_the_same_dtype(dtype):
    """A residual stream of a size where rounding it to `dtype` would cost a hundred times more."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    for parameter in theirs.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape))
        parameter.copy_(parameter.to(dtype))
    exact, ours = layers().double(), layers(dtype)
    exact.load_state_dict(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = 30 * torch.randn(2, 24, 64)
    expected, result = exact(x.double()), ours(x)
    with torch.autocast("cpu", dtype=dtype):
        autocast = theirs(x)
    assert result.dtype == torch.float32
    assert all(p.dtype == dtype for p in ours.parameters())
    error, limit = ((y - expected).abs().max() for y in (result, autocast))
    assert error <= 2 * limit


@pytest.mark.parametrize("dtype", HALF)
def test_cache_and_steps_of_half_precision_equal_one_pass(dtype):
    torch.manual_seed(0)
    model = StreamingTransformer(16, 4, 2, 32, dropout=0.0, custom=True, causal=True, dtype=dtype)
    cache = model.new_cache(2, 7)
    assert cache.keys[0].dtype == dtype
    x = torch.randn(2, 7, 16)
    with torch.no_grad():
        steps = [model(part, cache=cache) for part in x.split([4, 1, 2], dim=1)]
        assert_close(torch.cat(steps, dim=1), model(x), rtol=0, atol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", HALF)
def test_attention_as_float32(dtype):
    """Projections stay in the weights' dtype; scores, softmax and the sum are float32."""
    torch.manual_seed(0)
    options = {"causal": True, "custom": True, "dtype": dtype}
    attention = StreamingMultiheadAttention(16, 2, attention_as_float32=True, **options)
    plain = StreamingMultiheadAttention(16, 2, **options)
    plain.load_state_dict(attention.state_dict())
    x = torch.randn(2, 9, 16)
    with torch.no_grad():
        projected = linear(x, attention.in_proj_weight, attention.in_proj_bias)
        assert projected.dtype == dtype
        q, k, v = (
            part.unflatten(-1, (2, 8)).transpose(1, 2).float() for part in projected.chunk(3, -1)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = attention.out_proj(out.transpose(1, 2).flatten(2).to(dtype))
        assert torch.equal(attention(x), out)
        assert not torch.equal(plain(x), out)


def test_linear_runs_in_the_dtype_of_the_weight():
    x, weight, bias = torch.randn(3, 4), torch.randn(2, 4).half(), torch.randn(2).half()
    assert torch.equal(linear(x, weight, bias), F.linear(x.half(), weight, bias))
    assert torch.equal(linear(x, weight), F.linear(x.half(), weight))


def test_layer_norm_of_half_precision_is_computed_in_float32():
    norm = create_norm_fn("layer_norm", 8, dtype=torch.float16)
    assert isinstance(norm, LayerNorm) and norm.eps == 1e-5
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
        norm.bias.copy_(torch.linspace(-1, 1, 8))
    x = (1000 + torch.arange(24.0).view(3, 8)).half()
    expected = F.layer_norm(x.float(), (8,), norm.weight.float(), norm.bias.float(), 1e-5)
    assert norm(x).dtype == torch.float32
    assert torch.equal(norm(x), expected)


def test_layer_scale_starts_at_its_value_and_scales_each_channel():
    scale = LayerScale(3, 0.25)
    x = torch.randn(2, 5, 3)
    assert torch.equal(scale(x), 0.25 * x)
    with torch.no_grad():
        scale.scale.copy_(torch.tensor([1.0, 2.0, 0.0]))
    assert torch.equal(scale(x), x * torch.tensor([1.0, 2.0, 0.0]))


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("biased", [True, False])
def test_few_rows_by_a_large_matrix_either_way_round(monkeypatch, rows, biased):
    """The form some processors want gives the same product, in the same layout."""
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(1100, 1024, generator=generator)
    x = torch.randn(rows, 1, 1024, generator=generator)
    bias = torch.randn(1100, generator=generator) if biased else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    for swaps in (True, False):
        monkeypatch.setattr(norm, "_swaps_few_rows", lambda swaps=swaps: swaps)
        actual = norm.linear(x, weight, bias)
        assert actual.shape == (rows, 1, 1100) and actual.is_contiguous()
        assert (actual - exact).abs().max() < 1e-5 * exact.abs().max()
