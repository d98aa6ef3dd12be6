"""The codec: the released structure, its interface, and its configuration."""

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.models.builders import get_compression_model
from audiogen_fast.models.encodec import EncodecModel
from audiogen_fast.modules.conv import fold_weight_norm
from audiogen_fast.modules.lstm import StreamableLSTM
from audiogen_fast.modules.seanet import SEANetDecoder, SEANetEncoder
from audiogen_fast.quantization import ResidualVectorQuantizer

RELEASED = {
    "n_filters": 64,
    "n_residual_layers": 1,
    "norm": "weight_norm",
    "pad_mode": "constant",
    "lstm": 2,
}


def make(channels=1, **more) -> EncodecModel:
    """Random, but for codebooks that fit its latents, so that codes differ."""
    torch.manual_seed(0)
    options = {"channels": channels, "dimension": 6, "n_filters": 2, "ratios": [4, 2]}
    encoder, decoder = SEANetEncoder(**options), SEANetDecoder(**options)
    quantizer = ResidualVectorQuantizer(6, n_q=3, bins=32)
    quantizer(encoder(audio(8, channels)), 100)
    more = {"frame_rate": 100, "sample_rate": 800, "channels": channels, **more}
    return EncodecModel(encoder, decoder, quantizer, **more).eval()


def audio(batch=2, channels=1, samples=77) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.2 * torch.randn(batch, channels, samples, generator=generator)


def released_names(model: EncodecModel) -> dict[str, list[int]]:
    """Our tensor names with the weight norm spelled as in the released file."""
    spelling = {"original0": "weight_g", "original1": "weight_v"}
    shapes = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in spelling.items():
            name = name.replace(f"parametrizations.weight.{ours}", theirs)
        shapes[name] = list(tensor.shape)
    return shapes


def conv(prefix: str, a: int, b: int, k: int) -> dict[str, list[int]]:
    """Convolution weights `[a, b, k]`; the scale follows the first dimension."""
    bias = b if prefix.endswith("convtr") else a
    weights = {f"{prefix}.weight_g": [a, 1, 1], f"{prefix}.weight_v": [a, b, k]}
    return weights | {f"{prefix}.bias": [bias]}


def lstm(prefix: str) -> dict[str, list[int]]:
    names = [f"{kind}_l{layer}" for kind in ("weight_ih", "weight_hh") for layer in (0, 1)]
    shapes = {f"{prefix}.lstm.{name}": [4096, 1024] for name in names}
    return shapes | {f"{prefix}.lstm.{n.replace('weight', 'bias')}": [4096] for n in names}


def residual(prefix: str, width: int) -> dict[str, list[int]]:
    first = conv(f"{prefix}.block.1.conv.conv", width // 2, width, 3)
    return first | conv(f"{prefix}.block.3.conv.conv", width, width // 2, 1)


def test_the_released_model_has_its_116_tensors():
    with torch.device("meta"):
        model = EncodecModel(
            SEANetEncoder(**RELEASED),
            SEANetDecoder(**RELEASED),
            ResidualVectorQuantizer(128, n_q=4, bins=2048, kmeans_init=True),
            50,
            16000,
            1,
        )
    expected = conv("encoder.model.0.conv.conv", 64, 1, 7) | lstm("encoder.model.13")
    expected |= conv("encoder.model.15.conv.conv", 128, 1024, 7)
    expected |= conv("decoder.model.0.conv.conv", 1024, 128, 7) | lstm("decoder.model.1")
    expected |= conv("decoder.model.15.conv.conv", 1, 64, 7)
    for i, ratio in enumerate((2, 4, 5, 8)):
        width = 64 * 2**i
        expected |= residual(f"encoder.model.{3 * i + 1}", width)
        expected |= conv(f"encoder.model.{3 * i + 3}.conv.conv", 2 * width, width, 2 * ratio)
        expected |= residual(f"decoder.model.{13 - 3 * i}", width)
        expected |= conv(f"decoder.model.{12 - 3 * i}.convtr.convtr", 2 * width, width, 2 * ratio)
    for k in range(4):
        book = f"quantizer.vq.layers.{k}._codebook"
        expected |= {f"{book}.inited": [1], f"{book}.cluster_size": [2048]}
        expected |= {f"{book}.embed": [2048, 128], f"{book}.embed_avg": [2048, 128]}
    assert released_names(model) == expected and len(expected) == 116
    assert sum(t.numel() for t in model.state_dict().values()) == 58_924_486
    folded = fold_weight_norm(model).state_dict()
    assert list(folded["decoder.model.3.convtr.convtr.weight"].shape) == [1024, 512, 16]
    assert not any("parametrizations" in name for name in folded)


@torch.no_grad()
def test_encode_and_decode_are_the_parts_in_turn():
    model, x = make(), audio()
    codes, scale = model.encode(x)
    latents = model.encoder(x)
    assert latents.shape == (2, 6, 10) and scale is None
    assert torch.equal(codes, model.quantizer.encode(latents)) and codes.unique().numel() > 16
    assert torch.equal(model.decode_latent(codes), model.quantizer.decode(codes))
    decoded = model.decode(codes)
    assert torch.equal(decoded, model.decoder(model.decode_latent(codes)))
    assert decoded.shape == (2, 1, 80)  # whole frames; only `forward` cuts to the input
    result = model(x)
    assert torch.equal(result.codes, codes)
    assert_close(result.x, decoded[..., :77])


@torch.no_grad()
def test_renormalisation_scales_each_clip():
    model, plain = make(2, renormalize=True), make(2)
    x = audio(channels=2) * torch.tensor([1.0, 30.0]).view(2, 1, 1)
    codes, scale = model.encode(x)
    volume = x.mean(dim=1).square().mean(dim=1).sqrt().unsqueeze(1)
    assert_close(scale, volume + 1e-8)
    unit = x / scale.unsqueeze(-1)
    assert torch.equal(codes, plain.encode(unit)[0])
    assert not torch.equal(codes, plain.encode(x)[0])
    assert_close(model.decode(codes, scale), plain.decode(codes) * scale.unsqueeze(-1))
    assert torch.equal(model.decode(codes), plain.decode(codes))
    assert_close(model(x).x, plain(unit).x * scale.unsqueeze(-1))
    silence = model.encode(torch.zeros(1, 2, 40))
    assert torch.equal(silence[0], plain.encode(torch.zeros(1, 2, 40))[0])


def test_describes_itself():
    model = make()
    assert (model.frame_rate, model.sample_rate, model.channels) == (100, 800, 1)
    assert (model.cardinality, model.num_codebooks, model.total_codebooks) == (32, 3, 3)
    model.set_num_codebooks(2)
    assert (model.num_codebooks, model.total_codebooks) == (2, 3)
    assert model.encode(audio())[0].shape == (2, 2, 10)


def test_training_reaches_every_parameter():
    model = make().train()
    result = model(audio())
    (result.x.square().mean() + result.penalty).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert result.bandwidth.item() == pytest.approx(3 * 5 * 100 / 1000)


def test_wrong_arguments_are_refused():
    model = make()
    for shape in ((1, 2, 50), (1, 50), (1, 1, 0)):
        for call in (model, model.encode):
            with pytest.raises(InvalidInputError, match=r"audio must be \[B, 1, T > 0\]"):
                call(torch.zeros(shape))
    with pytest.raises(InvalidInputError, match="scale must be None"):
        model.decode(torch.zeros(1, 3, 5, dtype=torch.long), torch.ones(1, 1))
    with pytest.raises(InvalidInputError, match="renormalize cannot be used together with causal"):
        make(causal=True, renormalize=True)


def test_sections_of_the_configuration_override_one_half():
    cfg = {
        "compression_model": "encodec",
        "encodec": {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": 800, "channels": 1},
        "seanet": {
            "channels": 1,
            "dimension": 6,
            "n_filters": 2,
            "ratios": [5, 2],
            "lstm": 1,
            "causal": True,
            "encoder": {"lstm": 2, "n_residual_layers": 0, "kernel_size": 5},
            "decoder": {"lstm": 0, "trim_right_ratio": 0.5, "final_activation": "Tanh"},
        },
        "rvq": {"n_q": 2, "bins": 16, "kmeans_init": False},
    }
    model = get_compression_model(cfg)
    lstms = {
        side: [
            m.lstm.num_layers
            for m in getattr(model, side).modules()
            if isinstance(m, StreamableLSTM)
        ]
        for side in ("encoder", "decoder")
    }
    assert lstms == {"encoder": [2], "decoder": []}
    assert (model.encoder.n_residual_layers, model.decoder.n_residual_layers) == (0, 3)
    assert model.encoder.model[0].effective_kernel == 5
    assert model.decoder.model[0].effective_kernel == 7
    assert model.decoder.model[2].trim_right_ratio == 0.5 and model.decoder.model[0].causal
    assert isinstance(model.decoder.model[-1], torch.nn.Tanh)
    assert model.frame_rate == 80 and model.cardinality == 16
    assert cfg["encodec"]["quantizer"] == "rvq" and "encoder" in cfg["seanet"]
