"""The wrapper around a tiny `transformers.EncodecModel`, against that model called directly."""

import pytest
import torch
from torch.testing import assert_close
from transformers import EncodecConfig
from transformers import EncodecModel as TransformersEncodec

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.models.hf_encodec import HFEncodecCompressionModel


def make(**options) -> HFEncodecCompressionModel:
    """100 frames per second and 4 bits per code: 0.4 kb/s for each codebook."""
    torch.manual_seed(0)
    defaults = {
        "target_bandwidths": [0.4, 0.8, 1.6],
        "sampling_rate": 800,
        "num_filters": 4,
        "upsampling_ratios": [4, 2],
        "hidden_size": 8,
        "codebook_dim": 8,
        "codebook_size": 16,
        "num_lstm_layers": 1,
        "use_causal_conv": False,
        "norm_type": "weight_norm",
        "normalize": False,
    }
    model = TransformersEncodec(EncodecConfig(**{**defaults, **options})).eval()
    with torch.no_grad():  # codebooks that fit the latents, so that codes differ
        latents = model.encoder(audio(samples=1600)).transpose(1, 2).flatten(0, 1)
        for layer in model.quantizer.layers:
            layer.codebook.embed.copy_(latents[torch.randperm(len(latents))[:16]])
            latents = latents - layer.codebook.decode(layer.codebook.encode(latents))
    return HFEncodecCompressionModel(model).eval()


def audio(batch=2, channels=1, samples=203) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    loudness = torch.arange(1.0, batch + 1).view(-1, 1, 1)
    return 0.3 * loudness * torch.randn(batch, channels, samples, generator=generator)


def test_describes_the_model():
    model = make()
    assert (model.channels, model.sample_rate, model.frame_rate) == (1, 800, 100)
    assert model.cardinality == 16
    assert model.possible_num_codebooks == [1, 2, 4]
    assert model.num_codebooks == model.total_codebooks == 4


@pytest.mark.parametrize(("n", "bandwidth"), [(1, 0.4), (2, 0.8), (4, 1.6)])
@torch.no_grad()
def test_encode_and_decode_equal_the_wrapped_model(n, bandwidth):
    model, x = make(), audio()
    model.set_num_codebooks(n)
    assert (model.num_codebooks, model.total_codebooks) == (n, 4)
    codes, scale = model.encode(x)
    expected = model.model.encode(x, bandwidth=bandwidth)
    assert codes.shape == (2, n, 26) and scale is None
    assert torch.equal(codes, expected.audio_codes[0]) and codes.unique().numel() > 8
    decoded = model.model.decode(expected.audio_codes, expected.audio_scales).audio_values
    assert torch.equal(model.decode(codes, scale), decoded)
    assert torch.equal(model.model.decoder(model.decode_latent(codes)), decoded)


@torch.no_grad()
def test_every_row_has_its_own_scale():
    model, x = make(normalize=True), audio()
    codes, scale = model.encode(x)
    assert_close(scale, x.square().mean(dim=-1).sqrt() + 1e-8)
    decoded = model.decode(codes, scale)
    for row in range(2):
        alone = model.decode(codes[row : row + 1], scale[row : row + 1])
        assert_close(decoded[row : row + 1], alone)
    assert_close(decoded, model.decode(codes) * scale.unsqueeze(-1))


@torch.no_grad()
def test_codebooks_of_a_bandwidth_that_is_no_multiple():
    model = make(target_bandwidths=[0.7, 1.5])
    assert model.possible_num_codebooks == [1, 3]
    for n in (1, 3):
        model.set_num_codebooks(n)
        assert model.encode(audio())[0].shape[1] == n


def test_impossible_numbers_of_codebooks_are_refused():
    with pytest.raises(InvalidInputError, match=r"n must be one of \[1, 2, 4\], got 3"):
        make().set_num_codebooks(3)


def test_several_chunks_are_refused():
    model = make(chunk_length_s=0.1, overlap=0.0)
    with pytest.raises(InvalidInputError, match="audio of one chunk is supported, got 3 chunks"):
        model.encode(audio())


def test_it_cannot_be_trained():
    with pytest.raises(NotImplementedError):
        make()(audio())
