"""Shapes of states, and starting and stopping slots."""

import pytest
import torch

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.generation.cuda_graph.prefill import text_layout
from audiogen_fast.generation.cuda_graph.state import DecodeState, StateShape, position_range
from audiogen_fast.generation.cuda_graph.weights import ModelSize
from audiogen_fast.generation.job import UNKNOWN, SamplingParams

SIZE = ModelSize(layers=2, dim=32, heads=2, hidden=64, n_q=4, card=16)


def state(sounds=3, guided=True):
    shape = StateShape.bucketed(sounds, guided, 5, 100)
    return DecodeState(SIZE, shape, torch.float32, torch.float32, "cpu")


def admit(target, first, n, steps=20, start=1, **sampling):
    sequence = torch.full((n, 4, steps), UNKNOWN)
    sequence[..., :start] = 3
    mask = torch.ones(4, steps, dtype=torch.bool)
    seeds = torch.arange(n) + 10
    target.admit(first, sequence, mask, start, seeds, seeds + 1, 7, SamplingParams(**sampling), 2.5)


def test_ranges():
    assert [position_range(n) for n in (1, 128, 129, 384, 385, 512)] == [
        128,
        128,
        256,
        384,
        512,
        512,
    ]
    assert [position_range(n) for n in (513, 1024, 1025)] == [1024, 1024, 1536]


def test_shapes_are_bucketed():
    def shape(*args, **options):
        s = StateShape.bucketed(*args, **options)
        return s.slots, s.rows, s.text_rows, s.text, s.positions

    assert shape(1, True, 5, 503) == (1, 2, 1, 16, 512)
    assert shape(3, True, 17, 128) == (4, 8, 4, 32, 128)
    assert shape(65, False, 65, 129) == (128, 128, 128, 128, 256)
    assert shape(5, True, 3, 40, text_for_all=True) == (8, 16, 16, 16, 128)
    assert shape(2, True, 0, 1504) == (2, 4, 0, 0, 1536)


def test_admitting_touches_its_own_slots_only():
    target = state()
    target._kv.fill_(1.0)
    admit(target, 1, 2, steps=20, start=3, temperature=0.5, top_k=9, top_p=0.25)
    assert target.active.tolist() == [False, True, True, False]
    assert target.step.tolist() == [1, 3, 3, 1]
    assert target.ends.tolist() == [1, 20, 20, 1]
    assert target.positions.tolist() == [0, 2, 2, 0] * 2
    assert target.seeds.tolist() == [0, 10, 11, 0] and target.items.tolist() == [0, 11, 12, 0]
    assert target.draws.tolist() == [0, 7, 7, 0]
    assert target.temperature.tolist() == [0, 0.5, 0.5, 0]
    assert target.top_k.tolist() == [0, 9, 9, 0] and target.top_p.tolist() == [0, 0.25, 0.25, 0]
    assert target.cfg_coef.tolist() == [0, 2.5, 2.5, 0]
    assert (target.sequence[1:3, :, :3] == 3).all()
    assert (target.sequence[1:3, :, 3:20] == UNKNOWN).all()
    cleared = torch.tensor([True, False, False, True] * 2)
    for cache in (*target.keys, *target.values):
        assert torch.equal(cache.flatten(1).any(dim=1), cleared)
    target.release(1)
    assert target.active.tolist() == [False, False, True, False]


def test_greedy_is_temperature_zero():
    target = state()
    admit(target, 0, 1, use_sampling=False, temperature=0.7)
    assert target.temperature[0] == 0


def test_what_does_not_fit_is_refused():
    target = state()
    with pytest.raises(InvalidInputError, match="slots must lie in 0..3, got 2..4"):
        admit(target, 2, 3)
    with pytest.raises(InvalidInputError, match="1..128, got 1 and 129"):
        admit(target, 0, 1, steps=129)
    with pytest.raises(InvalidInputError, match="got 0 and 20"):
        admit(target, 0, 1, start=0)


def test_buffers_stay_where_they_are():
    target = state()
    first = target.buffer("partial", (3, 5), torch.float32)
    assert not first.any() and target.buffer("partial", (3, 5), torch.float32) is first
    with pytest.raises(RuntimeError, match="'partial' is torch.float32 .3, 5."):
        target.buffer("partial", (3, 6), torch.float32)
    before = target.nbytes()
    target.buffer("other", (10,), torch.int32)
    assert target.nbytes() - before == 40


def test_every_pointer_is_aligned():
    """Kernels are compiled for 16-byte loads."""
    for sounds in (1, 3):
        for value in vars(state(sounds)).values():
            for tensor in value if isinstance(value, list) else [value]:
                if isinstance(tensor, torch.Tensor):
                    assert tensor.data_ptr() % 16 == 0


def test_text_is_laid_out_from_the_front():
    """Rows of 3, 0 and 1 tokens in 4 slots, and one with a gap between two conditions."""
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0]])
    vectors = torch.ones(4, 4, 2) * mask.unsqueeze(-1)

    def layout(vectors, mask_padding, biased):
        order, lengths, pads = text_layout(vectors, mask, mask_padding, biased)
        kept = [row[:n].tolist() for row, n in zip(order, lengths.tolist(), strict=True)]
        return kept, pads.tolist()

    everything = [[0, 1, 2, 3]] * 4
    assert layout(vectors, False, False) == ([[0, 1, 2], [], [0], [0, 2]], [1, 4, 3, 2])
    assert layout(vectors, False, True) == (everything, [0] * 4)
    assert layout(vectors + 1, False, False) == (everything, [0] * 4)
    masked = ([[0, 1, 2], [0, 1, 2, 3], [0], [0, 2]], [0] * 4)
    assert layout(vectors, True, False) == masked and layout(vectors, True, True) == masked
