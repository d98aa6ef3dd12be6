import torch
from torch.testing import assert_close

from audiogen_fast.training.ema import ModuleEMA


def module(value):
    one = torch.nn.Linear(2, 2)
    one.register_buffer("seen", torch.zeros(2))
    one.register_buffer("count", torch.zeros((), dtype=torch.int64))
    with torch.no_grad():
        one.weight.fill_(value)
    return one


def test_weighted_mean_of_everything_seen():
    """c <- decay c + 1, ema <- ema + (x - ema) / c: weights decay^k, normalised to 1."""
    one, decay, values = module(0.0), 0.9, [3.0, -1.0, 4.0, 0.5]
    average = ModuleEMA(one, decay)
    for value in values:
        with torch.no_grad():
            one.weight.fill_(value)
            one.seen.fill_(-value)
        average.step()
    weights = [decay ** (len(values) - 1 - i) for i in range(len(values))]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    torch.testing.assert_close(average.state["weight"], torch.full((2, 2), expected))
    torch.testing.assert_close(average.state["seen"], torch.full((2,), -expected))
    assert "count" not in average.state  # no floating point


def test_swapped_and_back_exactly():
    one = module(0.1)
    average = ModuleEMA(one, 0.5)
    with average.swapped():  # nothing was averaged yet
        assert one.weight[0, 0] == torch.tensor(0.1)
    for value in (0.1, 0.7):
        with torch.no_grad():
            one.weight.fill_(value)
        average.step()
    before = average.state["weight"].clone()
    with average.swapped():
        assert torch.equal(one.weight, before)
    assert torch.equal(one.weight, torch.full((2, 2), 0.7))
    assert torch.equal(average.state["weight"], before)


def test_frozen_parameters_are_left_out():
    one = module(1.0)
    one.bias.requires_grad_(False)
    assert set(ModuleEMA(one, 0.5).state) == {"weight", "seen"}


def test_tied_weights_have_one_average():
    """As the embeddings of a T5 have, which are one parameter with two names."""
    one, free = (torch.nn.ModuleList([module(1.0), module(1.0)]) for _ in range(2))
    one[1].weight = one[0].weight
    average, plain = ModuleEMA(one, 0.5), ModuleEMA(free, 0.5)
    assert {"0.weight", "1.weight"} <= average.state.keys() == plain.state.keys()
    for value in (2.0, 5.0):
        for layer in (*one, *free):
            torch.nn.init.constant_(layer.weight, value)
        average.step(), plain.step()
    expected = torch.full((2, 2), 4.0)  # (0.5 * 2 + 5) / 1.5
    for state in (average.state, plain.state):
        assert_close([state["0.weight"], state["1.weight"]], [expected, expected])
    with average.swapped():
        assert_close(one[1].weight, expected)
    assert torch.equal(one[0].weight, torch.full((2, 2), 5.0))
    assert_close(average.state["1.weight"], expected)
