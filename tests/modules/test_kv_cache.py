"""The static cache: what is not written yet never leaks, and it cannot overflow."""

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.modules.kv_cache import KVCache
from audiogen_fast.modules.transformer import StreamingTransformer


def make_cache(capacity=6) -> KVCache:
    cache = KVCache(2, 3, 4, capacity, 5, torch.float32, torch.device("cpu"))
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(float("nan"))
    return cache


def test_sizes_and_positions():
    cache = make_cache()
    assert len(cache.keys) == len(cache.values) == 2
    assert cache.keys[1].shape == cache.values[0].shape == (3, 4, 6, 5)
    assert cache.positions(2).tolist() == [0, 1]
    cache.advance(2)
    assert (cache.length, cache.positions(3).tolist()) == (2, [2, 3, 4])
    assert cache.positions(3).dtype == torch.int64


def test_write_stores_at_the_positions_and_returns_what_is_filled():
    cache = make_cache()
    k, v = torch.randn(2, 3, 4, 2, 5)
    keys, values = cache.write(1, cache.positions(2), k, v)
    assert torch.equal(keys, k) and torch.equal(values, v)
    cache.advance(2)
    k2, v2 = torch.randn(2, 3, 4, 1, 5)
    keys, values = cache.write(1, cache.positions(1), k2, v2)
    assert torch.equal(keys, torch.cat([k, k2], dim=2))
    assert torch.equal(values, torch.cat([v, v2], dim=2))
    assert keys.data_ptr() == cache.keys[1].data_ptr()
    assert cache.keys[0].isnan().all() and cache.keys[1][:, :, 3:].isnan().all()


@pytest.mark.parametrize("past_context", [None, 2])
@pytest.mark.parametrize("rope", ["sin", "rope"])
@torch.no_grad()
def test_a_poisoned_cache_never_leaks(rope, past_context):
    torch.manual_seed(0)
    model = StreamingTransformer(
        16, 4, 2, 32, causal=True, custom=True, positional_embedding=rope, past_context=past_context
    ).eval()
    x, results = torch.randn(2, 9, 16), []
    for poison in (float("nan"), 0.0):
        cache = model.new_cache(2, 12)
        for tensor in (*cache.keys, *cache.values):
            tensor.fill_(poison)
        steps = [model(part, cache=cache) for part in x.split([3, 1, 4, 1], dim=1)]
        results.append(torch.cat(steps, dim=1))
    assert torch.equal(*results)
    assert_close(results[0], model(x), rtol=1e-4, atol=1e-5)


def test_a_full_cache_refuses_more():
    cache = make_cache(capacity=3)
    cache.advance(2)
    with pytest.raises(
        InvalidInputError, match="holds 3 positions, of which 2 are filled, got 2 more"
    ):
        cache.positions(2)
    model = StreamingTransformer(16, 4, 1, 32, causal=True, custom=True).eval()
    cache = model.new_cache(1, 3)
    model(torch.randn(1, 3, 16), cache=cache)
    with pytest.raises(InvalidInputError, match="holds 3 positions"):
        model(torch.randn(1, 1, 16), cache=cache)


def test_heads_of_the_cache_are_those_of_keys_and_values():
    model = StreamingTransformer(16, 4, 1, 32, causal=True, custom=True, kv_repeat=2)
    assert model.new_cache(3, 7).keys[0].shape == (3, 2, 7, 4)
