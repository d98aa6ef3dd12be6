"""Stereo from a mono codec: both ways of interleaving, and back."""

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.models.encodec import EncodecModel
from audiogen_fast.models.stereo import InterleaveStereoCompressionModel
from audiogen_fast.modules.seanet import SEANetDecoder, SEANetEncoder
from audiogen_fast.quantization import ResidualVectorQuantizer


def audio() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 2, 77, generator=generator) * torch.tensor([1.0, 3.0]).view(1, 2, 1)


def make(per_timestep: bool, channels=1, **more) -> InterleaveStereoCompressionModel:
    torch.manual_seed(0)
    options = {"channels": channels, "dimension": 6, "n_filters": 2, "ratios": [4, 2]}
    encoder, decoder = SEANetEncoder(**options), SEANetDecoder(**options)
    quantizer = ResidualVectorQuantizer(6, n_q=3, bins=32)
    quantizer(encoder(audio().view(-1, channels, 77)), 100)
    mono = EncodecModel(encoder, decoder, quantizer, 100, 800, channels, **more).eval()
    return InterleaveStereoCompressionModel(mono, per_timestep).eval()


@pytest.mark.parametrize("per_timestep", [False, True])
@torch.no_grad()
def test_codes_alternate_between_left_and_right(per_timestep):
    model, x = make(per_timestep), audio()
    codes, scale = model.encode(x)
    left, right = (model.model.encode(x[:, c : c + 1])[0] for c in (0, 1))
    assert scale is None and (left != right).float().mean() > 0.5
    if per_timestep:
        assert codes.shape == (2, 3, 20)
        assert torch.equal(codes[..., 0::2], left) and torch.equal(codes[..., 1::2], right)
    else:
        assert codes.shape == (2, 6, 10)
        assert torch.equal(codes[:, 0::2], left) and torch.equal(codes[:, 1::2], right)
    back = model.get_left_right_codes(codes)
    assert torch.equal(back[0], left) and torch.equal(back[1], right)
    expected = torch.cat([model.model.decode(left), model.model.decode(right)], dim=1)
    assert torch.equal(model.decode(codes), expected)


@pytest.mark.parametrize("per_timestep", [False, True])
@torch.no_grad()
def test_each_channel_has_its_own_scale(per_timestep):
    model, x = make(per_timestep, renormalize=True), audio()
    codes, scale = model.encode(x)
    assert_close(scale, x.square().mean(-1, keepdim=True).sqrt() + 1e-8)
    left, right = model.get_left_right_codes(codes)
    expected = [model.model.decode(left, scale[:, 0]), model.model.decode(right, scale[:, 1])]
    assert torch.equal(model.decode(codes, scale), torch.cat(expected, dim=1))


def test_describes_what_it_wraps():
    books, time = make(False), make(True)
    assert (books.channels, books.sample_rate, books.cardinality) == (2, 800, 32)
    assert (books.frame_rate, time.frame_rate) == (100, 200)
    assert (books.num_virtual_steps, time.num_virtual_steps) == (1, 2)
    # Set before interleaving, told after it.
    for model, codebooks in ((books, 4), (time, 2)):
        model.set_num_codebooks(2)
        assert model.model.num_codebooks == 2
        assert model.num_codebooks == codebooks and model.total_codebooks == 3


def test_wrong_arguments_are_refused():
    with pytest.raises(InvalidInputError, match="wrapped codec must be mono, got 2 channels"):
        make(False, channels=2)
    model = make(False)
    with pytest.raises(InvalidInputError, match=r"audio must be \[B, 2, T\], got \(2, 1, 77\)"):
        model.encode(audio()[:, :1])
    for per_timestep, dim in ((False, 1), (True, 2)):
        with pytest.raises(InvalidInputError, match=f"even size in dimension {dim}"):
            make(per_timestep).decode(torch.zeros(1, 3, 5, dtype=torch.long))
    for call in (model, model.decode_latent):
        with pytest.raises(NotImplementedError):
            call(audio())
