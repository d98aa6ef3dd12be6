"""Audio that comes in pieces: together it is what decoding all codes at once gives."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.models.encodec import EncodecModel
from audiogen_fast.models.stereo import InterleaveStereoCompressionModel
from audiogen_fast.models.streaming_decoder import StreamingDecoder, can_stream
from audiogen_fast.modules.seanet import SEANetDecoder, SEANetEncoder
from audiogen_fast.quantization import ResidualVectorQuantizer

BASE = {"dimension": 5, "n_filters": 2, "n_residual_layers": 1, "ratios": [3, 2], "lstm": 1}
OPTIONS = {
    "released": {"pad_mode": "constant", "lstm": 2, "norm": "weight_norm"},
    "released_ratios": {"pad_mode": "constant", "ratios": [8, 5, 4, 2]},
    "causal": {"causal": True, "pad_mode": "constant"},
    "causal_reflect": {"causal": True},
    "causal_trim": {"causal": True, "trim_right_ratio": 0.4, "pad_mode": "constant"},
    "causal_untrimmed": {"causal": True, "trim_right_ratio": 0.0, "pad_mode": "constant"},
    "reflect": {},
    "replicate": {"pad_mode": "replicate"},
    "no_lstm": {"lstm": 0},
    "no_lstm_causal": {"lstm": 0, "causal": True, "pad_mode": "constant"},
    "no_residual": {"n_residual_layers": 0},
    "residual": {"n_residual_layers": 3, "dilation_base": 3, "true_skip": False},
    "residual_causal": {"n_residual_layers": 2, "dilation_base": 4, "causal": True},
    "odd_ratios": {"ratios": [5, 3], "pad_mode": "constant"},
    "one_ratio": {"ratios": [7]},
    "kernels": {"kernel_size": 5, "last_kernel_size": 9, "residual_kernel_size": 7},
    "small_kernels": {"kernel_size": 1, "last_kernel_size": 1},
    "even_kernels": {"kernel_size": 4, "last_kernel_size": 6, "pad_mode": "constant"},
    "final_activation": {"final_activation": "Tanh"},
}


def make(option: str | dict) -> EncodecModel:
    torch.manual_seed(0)
    options = {**BASE, **(OPTIONS[option] if isinstance(option, str) else option)}
    decoder = SEANetDecoder(**options)
    for only in ("trim_right_ratio", "final_activation"):
        options.pop(only, None)
    quantizer = ResidualVectorQuantizer(5, n_q=2, bins=8, kmeans_init=False)
    encoder = SEANetEncoder(**options)
    causal = options.get("causal", False)
    model = EncodecModel(encoder, decoder, quantizer, 50, 800, 1, causal=causal).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


def some_codes(frames: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 8, (batch, 2, frames), generator=generator)


def stream(model, codes: torch.Tensor, sizes: list[int], empty_end: bool = False) -> list:
    """Audio of each push; `sizes` add up to the number of frames."""
    decoder = StreamingDecoder(model)
    parts = list(codes.split(sizes, dim=-1)) + [codes[..., :0]] * empty_end
    return [decoder.push(part, last=i == len(parts) - 1) for i, part in enumerate(parts)]


def check_equal(model, codes, pieces) -> None:
    with torch.no_grad():
        expected = model.decode(codes)
    audio = torch.cat([piece for piece in pieces if piece is not None], dim=-1)
    assert all(piece.shape[-1] > 0 for piece in pieces if piece is not None)
    assert_close(audio, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("option", OPTIONS)
@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(any),
    batch=st.integers(1, 2),
    empty_end=st.booleans(),
)
def test_any_split_equals_decoding_at_once(option, sizes, batch, empty_end):
    model, codes = make(option), some_codes(sum(sizes), batch)
    assert can_stream(model)
    check_equal(model, codes, stream(model, codes, sizes, empty_end))


@pytest.mark.parametrize("option", OPTIONS)
def test_single_frames_and_long_pieces(option):
    model = make(option)
    for sizes in ([1] * 40, [40], [1, 38, 1], [39, 1], [1], [2]):
        codes = some_codes(sum(sizes))
        check_equal(model, codes, stream(model, codes, sizes))


@torch.no_grad()
def reach(model: EncodecModel) -> int:
    """How many frames the decoder looks ahead: a changed frame changes what comes before it."""
    codes, ahead, model = some_codes(60), 0, deepcopy(model).double()  # no change rounds away
    decoded = model.decode(codes).view(60, -1)
    for frame in (*range(1, 20), 40):
        changed = codes.clone()
        changed[..., frame] = (changed[..., frame] + 3) % 8
        different = (model.decode(changed).view(60, -1) != decoded).any(dim=1)
        ahead = max(ahead, frame - int(different.nonzero()[0]))
    return ahead


@pytest.mark.parametrize("option", OPTIONS)
def test_audio_comes_as_soon_as_its_codes_allow(option):
    """Exactly what the convolutions look ahead is held back."""
    model, codes = make(option), some_codes(60)
    hop, done, held = model.decoder.hop_length, 0, []
    for pushed, piece in enumerate(stream(model, codes, [1] * 60)[:-1], start=1):
        done += 0 if piece is None else piece.shape[-1]
        held.append(pushed - done // hop)
    if option in ("causal_reflect", "residual_causal"):
        # Reflection makes the very first frames look ahead; the rest waits as long as they do.
        assert reach(model) <= held[-1] <= 2 * reach(model)
    else:
        assert max(held) == held[-1] == reach(model)


def test_latency_of_the_released_structure():
    """Three frames for the first kernel of seven, and one for all the rest."""
    pieces = stream(make("released_ratios"), some_codes(60), [1] * 60)
    assert pieces[:4] == [None] * 4
    assert all(piece.shape[-1] == 320 for piece in pieces[4:-1])
    assert pieces[-1].shape[-1] == 5 * 320


def test_a_single_empty_push_gives_nothing():
    for option in ("released", "no_lstm", "causal"):
        decoder = StreamingDecoder(make(option))
        assert decoder.push(some_codes(0)) is None
        assert decoder.push(some_codes(0), last=True) is None


@pytest.mark.parametrize("kind", ["stereo", "group_norm"])
def test_other_codecs_are_decoded_with_the_last_piece(kind):
    if kind == "stereo":
        model = InterleaveStereoCompressionModel(make("released"))
        codes = some_codes(9).repeat(1, 2, 1)
    else:
        model, codes = make({"norm": "time_group_norm"}), some_codes(9)
    assert not can_stream(model)
    pieces = stream(model, codes, [4, 0, 3, 2])
    assert pieces[:-1] == [None] * 3
    with torch.no_grad():
        assert torch.equal(pieces[-1], model.decode(codes))


def test_codes_without_a_batch_are_refused():
    with pytest.raises(InvalidInputError, match=r"codes must be \[B, K, T\], got \(2, 5\)"):
        StreamingDecoder(make("released")).push(some_codes(5)[0])


def test_the_buffers_stay_bounded():
    decoder = StreamingDecoder(make("reflect"))
    sizes = []
    for frame in some_codes(80).split(1, dim=-1):
        decoder.push(frame)
        held = (decoder._before.buffer, decoder._after.buffer)
        sizes.append(sum(0 if buffer is None else buffer.shape[-1] for buffer in held))
    assert sizes[20:] == [sizes[20]] * 60 and sizes[20] < 15
