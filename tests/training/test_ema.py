import torch

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
