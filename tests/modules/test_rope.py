"""Rotary positions against their definition, one pair of channels after the other."""

import cmath

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.modules.rope import RotaryEmbedding


def inputs(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("xpos", [False, True])
@pytest.mark.parametrize("inverted", [False, True])
def test_rotates_each_pair_by_its_angle(inverted, xpos, scale):
    rope = RotaryEmbedding(6, max_period=50.0, xpos=xpos, scale=scale)
    x, positions = inputs(2, 4, 6), torch.tensor([0, 3, 4, 300])
    out = rope.rotate(x, positions, time_dim=1, invert_decay=inverted)
    for i, p in enumerate(positions.tolist()):
        for j in range(3):
            factor = cmath.exp(1j * p / 50.0 ** (2 * j / 6))
            if xpos:
                rate = (j / 3 + 0.4) / 1.4
                factor *= rate ** ((-p if inverted else p) / 512)
            factor = factor * scale + (1 - scale)
            for b in range(2):
                expected = complex(x[b, i, 2 * j], x[b, i, 2 * j + 1]) * factor
                actual = complex(out[b, i, 2 * j], out[b, i, 2 * j + 1])
                assert actual == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_scores_depend_on_the_distance_only():
    rope, q, k = RotaryEmbedding(8), inputs(1, 8), inputs(1, 8, seed=1)

    def score(query_at, key_at, rope=rope):
        query = rope.rotate(q, torch.tensor([query_at]), 0, invert_decay=False)
        return query @ rope.rotate(k, torch.tensor([key_at]), 0, invert_decay=True).T

    assert_close(score(9, 4), score(105, 100), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(score(9, 4), score(9, 5))
    xpos = RotaryEmbedding(8, xpos=True)
    assert_close(score(9, 4, xpos), score(105, 100, xpos), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(score(500, 4), score(500, 4, xpos))


def test_queries_end_with_the_keys():
    rope = RotaryEmbedding(4, xpos=True)
    query, key = inputs(2, 3, 5, 4), inputs(2, 7, 5, 4, seed=1)
    rotated_query, rotated_key = rope.rotate_qk(query, key, start=11)
    expected = rope.rotate(query, torch.tensor([15, 16, 17]), 1, invert_decay=False)
    assert torch.equal(rotated_query, expected)
    expected = rope.rotate(key, torch.arange(11, 18), 1, invert_decay=True)
    assert torch.equal(rotated_key, expected)
    swapped = rope.rotate_qk(query.transpose(1, 2), key.transpose(1, 2), start=11, time_dim=2)
    assert torch.equal(swapped[0].transpose(1, 2), rotated_query)
    assert torch.equal(swapped[1].transpose(1, 2), rotated_key)


def test_scale_zero_and_position_zero_change_nothing():
    x = inputs(2, 5, 8)
    still = RotaryEmbedding(8, xpos=True, scale=0.0)
    assert_close(still.rotate(x, torch.arange(7, 12), 1, invert_decay=True), x, rtol=0, atol=1e-7)
    zeros = torch.zeros(5, dtype=torch.long)
    assert torch.equal(RotaryEmbedding(8).rotate(x, zeros, 1, invert_decay=False), x)


def test_half_precision_is_rotated_in_float32():
    x, positions = inputs(3, 8).half(), torch.tensor([0, 100, 5000])
    out = RotaryEmbedding(8).rotate(x, positions, 0, invert_decay=False)
    expected = RotaryEmbedding(8).rotate(x.float(), positions, 0, invert_decay=False)
    assert out.dtype == torch.float16
    assert torch.equal(out, expected.half())
