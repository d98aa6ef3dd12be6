"""Convolutions of the codec: padding, normalised weights, and the LSTM between them."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.modules.conv import (
    NormConv1d,
    NormConvTranspose1d,
    StreamableConv1d,
    StreamableConvTranspose1d,
    fold_weight_norm,
    get_extra_padding_for_conv1d,
    pad1d,
    pad_for_conv1d,
    unpad1d,
)
from audiogen_fast.modules.lstm import StreamableLSTM


def inputs(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 60), kernel=st.integers(1, 12), stride=st.integers(1, 8))
def test_extra_padding_completes_the_last_window(length, kernel, stride):
    kernel = max(kernel, stride)
    total = kernel - stride
    extra = get_extra_padding_for_conv1d(torch.zeros(1, 1, length), kernel, stride, total)
    windows, rest = divmod(length + total + extra - kernel, stride)
    assert rest == 0 and 0 <= extra < stride
    assert windows + 1 == math.ceil(length / stride)
    x = inputs(1, 2, length)
    assert torch.equal(pad_for_conv1d(x, kernel, stride, total), F.pad(x, (0, extra)))


def test_pad1d_adds_a_constant_or_repeats_the_edge():
    x = torch.arange(1.0, 5.0)
    for shape in ((1, 1, 4), (1, 4), (4,)):
        padded = pad1d(x.view(shape), (2, 1), "constant", 7.0)
        assert padded.flatten().tolist() == [7, 7, 1, 2, 3, 4, 7]
        assert padded.shape == (*shape[:-1], 7)
    both = pad1d(inputs(2, 3, 4), (0, 2))
    assert torch.equal(both, F.pad(inputs(2, 3, 4), (0, 2)))
    assert pad1d(x.view(1, 1, 4), (2, 1), "replicate").flatten().tolist() == [1, 1, 1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("length", "paddings", "expected"),
    [
        (4, (3, 2), [4, 3, 2, 1, 2, 3, 4, 3, 2]),
        # Shorter than the padding: zeros are appended, that is reflected, then as many cut off.
        (2, (3, 1), [0, 0, 2, 1, 2, 0]),
        (1, (1, 1), [0, 1, 0]),
        (1, (3, 3), [0, 0, 0, 1, 0, 0, 0]),
    ],
)
def test_pad1d_reflects_inputs_of_any_length(length, paddings, expected):
    x = torch.arange(1.0, length + 1).view(1, 1, length)
    assert pad1d(x, paddings, "reflect").flatten().tolist() == expected


def test_unpad1d_cuts_both_ends():
    x = torch.arange(6.0).view(1, 1, 6)
    assert unpad1d(x, (2, 1)).flatten().tolist() == [2, 3, 4]
    assert unpad1d(x, (0, 0)).flatten().tolist() == list(range(6))
    assert unpad1d(x, (3, 3)).shape == (1, 1, 0)


def test_impossible_paddings_are_refused():
    x = torch.zeros(1, 1, 4)
    for paddings in ((-1, 0), (0, -1), (-1, -1)):
        for mode in ("constant", "reflect"):
            with pytest.raises(InvalidInputError, match="paddings must not be negative"):
                pad1d(x, paddings, mode)
        with pytest.raises(InvalidInputError, match=r"paddings must lie in 0\.\.4"):
            unpad1d(x, paddings)
    with pytest.raises(InvalidInputError, match=r"paddings must lie in 0\.\.4 .*got \(2, 3\)"):
        unpad1d(x, (2, 3))


CONV = [(4, 1, 1), (4, 2, 1), (3, 1, 3), (10, 5, 1), (3, 2, 3), (1, 1, 1), (16, 8, 1), (7, 1, 1)]


@pytest.mark.parametrize("pad_mode", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), CONV)
def test_convolution_pads_to_whole_windows(kernel, stride, dilation, causal, pad_mode):
    conv = StreamableConv1d(2, 3, kernel, stride, dilation, causal=causal, pad_mode=pad_mode)
    for length in (1, 2, 16, 33):
        x = inputs(2, 2, length)
        out = conv(x)
        assert out.shape[-1] == math.ceil(length / stride)
        reach = (kernel - 1) * dilation + 1
        total = reach - stride
        right = 0 if causal else total // 2
        extra = (math.ceil(length / stride) - 1) * stride + reach - total - length
        if pad_mode == "reflect":
            padded = pad1d(x, (total - right, right + extra), "reflect")
        else:
            padded = F.pad(x, (total - right, right + extra), pad_mode)
        weight, bias = conv.conv.conv.weight, conv.conv.conv.bias
        assert_close(out, F.conv1d(padded, weight, bias, stride, dilation=dilation))
        with torch.no_grad():  # takes the fast path
            assert_close(conv(x), out, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_groups_and_missing_biases(monkeypatch):
    x, conv = inputs(2, 4, 9), StreamableConv1d(4, 6, 3, groups=2, bias=False, pad_mode="constant")
    fast = conv(x)
    assert_close(fast, F.conv1d(x, conv.conv.conv.weight, padding=1, groups=2))
    monkeypatch.setenv("AUDIOGEN_FAST_BACKEND", "reference")
    assert_close(conv(x), fast)


def test_a_causal_convolution_sees_no_future():
    for causal, seen in ((True, 5), (False, 7)):
        x = inputs(1, 1, 12).requires_grad_()
        StreamableConv1d(1, 1, 5, causal=causal, pad_mode="constant")(x)[..., 5].sum().backward()
        assert x.grad.nonzero()[:, -1].max() == seen


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, lambda total: total - total // 2),
        ({"causal": True}, lambda total: 0),
        ({"causal": True, "trim_right_ratio": 0.4}, lambda total: total - math.ceil(0.4 * total)),
        ({"causal": True, "trim_right_ratio": 0.0}, lambda total: total),
    ],
)
@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (10, 5), (3, 1), (16, 8), (5, 5)])
def test_transposed_convolution_is_trimmed_to_its_stride(kernel, stride, options, left):
    conv = StreamableConvTranspose1d(2, 3, kernel, stride, **options)
    for length in (1, 2, 9):
        x = inputs(2, 2, length)
        full = F.conv_transpose1d(x, conv.convtr.convtr.weight, conv.convtr.convtr.bias, stride)
        begin = left(kernel - stride)
        assert_close(conv(x), full[..., begin : begin + length * stride])
        with torch.no_grad():
            assert_close(conv(x), full[..., begin : begin + length * stride], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", [NormConv1d, NormConvTranspose1d])
def test_normalised_weights_are_those_of_torch(cls):
    plain_cls = nn.Conv1d if cls is NormConv1d else nn.ConvTranspose1d
    x = inputs(2, 3, 11)
    for norm, wrap in (
        ("none", lambda conv: conv),
        ("weight_norm", parametrizations.weight_norm),
        ("spectral_norm", parametrizations.spectral_norm),
    ):
        torch.manual_seed(0)
        conv = cls(3, 5, 4, stride=2, norm=norm).eval()
        torch.manual_seed(0)
        expected = wrap(plain_cls(3, 5, 4, stride=2)).eval()
        assert torch.equal(conv(x), expected(x))
    grouped = cls(3, 5, 4, norm="time_group_norm", norm_kwargs={"eps": 0.1})
    inner = grouped.conv if cls is NormConv1d else grouped.convtr
    expected = F.group_norm(inner(x), 1, grouped.norm.weight, grouped.norm.bias, 0.1)
    assert_close(grouped(x), expected)


def test_the_scale_of_a_weight_norm_belongs_to_the_first_dimension():
    conv = NormConvTranspose1d(3, 5, 4, norm="weight_norm").convtr
    scale, direction = (
        conv.parametrizations.weight.original0,
        conv.parametrizations.weight.original1,
    )
    assert scale.shape == (3, 1, 1) and direction.shape == (3, 5, 4)
    length = direction.square().sum(dim=(1, 2), keepdim=True).sqrt()
    assert_close(conv.weight, scale * direction / length)


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_folding_the_norm_keeps_the_output(norm):
    torch.manual_seed(0)
    model = nn.Sequential(
        StreamableConv1d(2, 4, 3, norm=norm), StreamableConvTranspose1d(4, 2, 4, 2, norm=norm)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
        x = inputs(1, 2, 9)
        expected = model(x)
        assert fold_weight_norm(model) is model
        assert torch.equal(model(x), expected)
    names = {f"0.conv.conv.{n}" for n in ("weight", "bias")}
    assert set(model.state_dict()) == names | {f"1.convtr.convtr.{n}" for n in ("weight", "bias")}


def test_wrong_options_are_refused():
    with pytest.raises(InvalidInputError, match="norm must be one of .*got 'batch'"):
        NormConv1d(1, 1, 1, norm="batch")
    with pytest.raises(InvalidInputError, match="cannot be used with causal=True"):
        StreamableConv1d(1, 1, 1, norm="time_group_norm", causal=True)
    with pytest.raises(InvalidInputError, match="trim_right_ratio other than 1 needs causal=True"):
        StreamableConvTranspose1d(1, 1, 4, 2, trim_right_ratio=0.5)
    with pytest.raises(InvalidInputError, match=r"trim_right_ratio must lie in \[0, 1\], got 1.5"):
        StreamableConvTranspose1d(1, 1, 4, 2, causal=True, trim_right_ratio=1.5)


def test_the_lstm_is_that_of_torch_with_a_skip():
    torch.manual_seed(0)
    x = inputs(2, 6, 9)
    lstm, bare = StreamableLSTM(6, num_layers=2), StreamableLSTM(6, num_layers=2, skip=False)
    bare.load_state_dict(lstm.state_dict())
    expected = lstm.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)
    assert torch.equal(bare(x), expected)
    assert torch.equal(lstm(x), expected + x)
    assert len(lstm.lstm.all_weights) == 2


@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, 11), max_size=6))
def test_lstm_steps_with_carried_state_equal_the_whole(cuts):
    torch.manual_seed(0)
    lstm, x = StreamableLSTM(4), inputs(2, 4, 12)
    bounds, state, parts = [0, *sorted(cuts), 12], None, []
    with torch.no_grad():
        for begin, end in zip(bounds, bounds[1:], strict=False):
            part, state = lstm.step(x[..., begin:end], state)
            parts.append(part)
        assert_close(torch.cat(parts, dim=-1), lstm(x))
