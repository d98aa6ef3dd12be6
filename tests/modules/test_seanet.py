"""The two halves of the codec, and their fast inference path against the plain one."""

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.modules.conv import StreamableConv1d, StreamableConvTranspose1d
from audiogen_fast.modules.lstm import StreamableLSTM
from audiogen_fast.modules.seanet import SEANetDecoder, SEANetEncoder, SEANetResnetBlock

BASE = {"dimension": 6, "n_filters": 4, "n_residual_layers": 1, "ratios": [4, 3]}
OPTIONS = {
    "released": {"norm": "weight_norm", "pad_mode": "constant", "lstm": 2},
    "causal": {"causal": True, "lstm": 1},
    "reflect": {"n_residual_layers": 2, "true_skip": False, "dilation_base": 3, "compress": 1},
    "no_residual": {"n_residual_layers": 0, "pad_mode": "constant"},
    "group_norm": {"norm": "time_group_norm", "disable_norm_outer_blocks": 1, "lstm": 1},
    "replicate": {"pad_mode": "replicate", "kernel_size": 5, "last_kernel_size": 3},
    "leaky": {"activation": "LeakyReLU", "activation_params": {"negative_slope": 0.2}},
    "elu_alpha": {"activation_params": {"alpha": 0.3}, "residual_kernel_size": 5},
    "stereo": {"channels": 2, "ratios": [5], "lstm": 1},
}
SIDES = {"encoder": SEANetEncoder, "decoder": SEANetDecoder}
CASES = [pytest.param(s, o, id=f"{s}-{o}") for s, o in itertools.product(SIDES, OPTIONS)]


def make(side: str, option: str, **more) -> nn.Module:
    torch.manual_seed(0)
    model = SIDES[side](**{**BASE, **OPTIONS[option], **more})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model.eval()


def data(model: nn.Module, length: int, batch: int = 1) -> torch.Tensor:
    channels = model.channels if isinstance(model, SEANetEncoder) else model.dimension
    generator = torch.Generator().manual_seed(length)
    return 2 * torch.randn(batch, channels, length, generator=generator)


@pytest.mark.parametrize(("side", "option"), CASES)
@torch.no_grad()
def test_the_fast_path_equals_the_plain_one(side, option, monkeypatch):
    """Channels-last and in place, for odd lengths, batches, one sample, and strided input."""
    model = make(side, option)
    for length, batch in ((1, 1), (12, 1), (37, 3)):
        x = data(model, length, batch)
        for given in (x, x.repeat(1, 1, 2).transpose(1, 2).contiguous().transpose(1, 2)[..., ::2]):
            before = given.clone()
            monkeypatch.delenv("AUDIOGEN_FAST_BACKEND", raising=False)
            fast = model(given)
            assert torch.equal(given, before)
            monkeypatch.setenv("AUDIOGEN_FAST_BACKEND", "reference")
            plain = model(given)
            assert torch.equal(given, before)
            assert_close(fast, plain, rtol=1e-4, atol=1e-4)
            hop = model.hop_length
            expected = -(-length // hop) if side == "encoder" else length * hop
            assert fast.shape[-1] == expected


@pytest.mark.parametrize(("side", "option"), CASES)
def test_training_equals_inference_and_gives_every_gradient(side, option):
    model = make(side, option).train()
    x = data(model, 26, 2).requires_grad_()
    before = x.detach().clone()
    out = model(x)
    out.square().mean().backward()
    assert torch.equal(x, before) and x.grad.abs().sum(1).any(0).all()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    with torch.no_grad():
        assert_close(model.eval()(x), out, rtol=1e-4, atol=1e-4)


def plain_forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The layers one after the other, blocks as their definition `shortcut(x) + block(x)`."""
    for layer in model.model:
        if isinstance(layer, SEANetResnetBlock):
            x = layer.shortcut(x) + layer.block(x)
        else:
            x = layer(x)
    return x


@pytest.mark.parametrize(("side", "option"), CASES)
def test_gradients_are_those_of_the_plain_layers(side, option):
    model, results = make(side, option), []
    for run in (model, lambda x: plain_forward(model, x)):
        model.zero_grad()
        x = data(model, 19, 2).requires_grad_()
        loss = run(x).square().mean()
        loss.backward()
        results.append([loss.detach(), x.grad, *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("true_skip", [True, False])
def test_a_residual_block_never_changes_its_input(true_skip, mode):
    block = SEANetResnetBlock(8, activation="ELU", true_skip=true_skip).eval()
    x = torch.randn(2, 8, 11)
    before = x.clone()
    with mode():
        out = block(x)
        assert torch.equal(x, before)
        assert_close(out, block.shortcut(x) + block.block(x))


def test_layers_of_the_released_codec():
    options = {"n_filters": 64, "n_residual_layers": 1, "norm": "weight_norm", "lstm": 2}
    with torch.device("meta"):
        encoder = SEANetEncoder(**options, pad_mode="constant")
        decoder = SEANetDecoder(**options, pad_mode="constant")
    assert sum(p.numel() for p in encoder.parameters()) == 28_409_216
    assert sum(p.numel() for p in decoder.parameters()) == 28_409_922
    assert encoder.hop_length == decoder.hop_length == 320
    convs = [m for m in encoder.model if isinstance(m, StreamableConv1d)]
    shapes = [(c.conv.conv.in_channels, c.conv.conv.out_channels, c.stride) for c in convs]
    assert shapes == [
        (1, 64, 1),
        (64, 128, 2),
        (128, 256, 4),
        (256, 512, 5),
        (512, 1024, 8),
        (1024, 128, 1),
    ]
    assert [c.padding_total for c in convs] == [6, 2, 4, 5, 8, 6]
    ups = [m for m in decoder.model if isinstance(m, StreamableConvTranspose1d)]
    assert [(u.kernel_size, u.stride) for u in ups] == [(16, 8), (10, 5), (8, 4), (4, 2)]
    assert isinstance(encoder.model[13], StreamableLSTM)
    assert isinstance(decoder.model[1], StreamableLSTM)


def test_dilations_and_widths_of_the_residual_layers():
    model = make("encoder", "reflect")
    blocks = [layer for layer in model.model if isinstance(layer, SEANetResnetBlock)]
    found = [(b.block[1].conv.conv.dilation[0], b.block[1].conv.conv.out_channels) for b in blocks]
    assert found == [(1, 4), (3, 4), (1, 8), (3, 8)]
    halved = make("encoder", "reflect", compress=2)
    assert halved.model[1].block[1].conv.conv.out_channels == 2
    assert isinstance(make("encoder", "released").model[1].shortcut, nn.Identity)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("disabled", [0, 1, 2, 4])
def test_norms_of_the_outer_blocks_can_be_left_out(side, disabled):
    """Blocks are counted from the audio: 4 of them with two ratios."""
    model = make(side, "released", lstm=0, disable_norm_outer_blocks=disabled)
    kinds = (StreamableConv1d, StreamableConvTranspose1d)
    norms = [
        (m.convtr if hasattr(m, "convtr") else m.conv).norm_type
        for m in model.model
        if isinstance(m, kinds)
    ]
    norms = norms if side == "encoder" else norms[::-1]
    assert norms == ["none"] * disabled + ["weight_norm"] * (4 - disabled)
    for block in (m for m in model.model if isinstance(m, SEANetResnetBlock)):
        inner = {block.block[1].conv.norm_type, block.block[3].conv.norm_type}
        assert len(inner) == 1


@torch.no_grad()
def test_a_final_activation_bounds_the_audio():
    plain = make("decoder", "released")
    bounded = make(
        "decoder",
        "released",
        final_activation="Hardtanh",
        final_activation_params={"min_val": -0.1, "max_val": 0.2},
    )
    x = data(plain, 8)
    assert plain(x).abs().max() > 0.2
    assert torch.equal(bounded(x), plain(x).clamp(-0.1, 0.2))


def test_wrong_options_are_refused():
    with pytest.raises(InvalidInputError, match=r"disable_norm_outer_blocks must lie in 0\.\.4"):
        make("encoder", "released", disable_norm_outer_blocks=5)
    with pytest.raises(InvalidInputError, match="kernel_sizes and dilations must have one length"):
        SEANetResnetBlock(8, kernel_sizes=(3, 1), dilations=(1,))
    with pytest.raises(InvalidInputError, match="'time_group_norm' sees the future"):
        make("decoder", "group_norm", causal=True)
