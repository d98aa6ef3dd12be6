"""audio_golden.safetensors: `audio.*` comes from audiocraft 1.3.0, `julius.*` from julius 0.2.8."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiogen_fast.data.audio import audio_read
from audiogen_fast.data.audio_utils import (
    _clip_wav,
    convert_audio,
    convert_audio_channels,
    f32_pcm,
    i16_pcm,
    normalize_audio,
    normalize_loudness,
)
from audiogen_fast.data.loudness import integrated_loudness
from audiogen_fast.errors import InvalidInputError

DATA = Path(__file__).parents[1] / "data"
GOLDEN = load_file(DATA / "audio_golden.safetensors")
STRATEGIES = ["peak", "clip", "rms", "loudness"]


def noise(*shape: int, level: float = 0.1) -> torch.Tensor:
    return level * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# Channels and rate


def test_downmix_is_the_mean():
    wav = torch.tensor([[1.0, 2.0], [3.0, -2.0], [5.0, 3.0]])
    assert convert_audio_channels(wav, 1).tolist() == [[3.0, 1.0]]


def test_fewer_channels_are_the_first_ones():
    wav = noise(2, 3, 10)
    assert torch.equal(convert_audio_channels(wav), wav[:, :2])


def test_mono_is_copied_to_every_channel():
    wav = noise(2, 1, 10)
    assert torch.equal(convert_audio_channels(wav, 3), torch.cat([wav] * 3, dim=1))


def test_same_number_of_channels_is_the_same_tensor():
    wav = noise(3, 10)
    assert convert_audio_channels(wav, 3) is wav


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((2, 10), 3, "less channels than requested but is not mono"),
        ((0, 10), 1, "at least 1 channel"),
        ((2, 10), 0, "channels must be at least 1, got 0"),
        ((10,), 1, "shape"),
    ],
)
def test_channels_that_cannot_be(shape, channels, message):
    with pytest.raises(InvalidInputError, match=message):
        convert_audio_channels(torch.zeros(shape), channels)


def test_convert_audio_equals_the_original():
    out = convert_audio(GOLDEN["audio.stereo44k"], 44100, 16000, 1)
    assert out.shape == (1, 3200)
    expected = GOLDEN["audio.mono16k"]  # of a longer recording: without the end, where it differs
    torch.testing.assert_close(out[:, : expected.shape[1]], expected, atol=1e-6, rtol=0)


def test_convert_audio_resamples_before_it_drops_channels():
    wav = noise(2, 3, 882)
    out = convert_audio(wav, 44100.0, 16000.0, 2)
    assert out.shape == (2, 2, 320)
    expected = convert_audio(wav[:, 1:2], 44100, 16000, 1)
    torch.testing.assert_close(out[:, 1:2], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf, 0.5])
def test_convert_audio_refuses_rates(rate):
    with pytest.raises(InvalidInputError, match="from_rate"):
        convert_audio(noise(1, 10), rate, 16000, 1)
    with pytest.raises(InvalidInputError, match="to_rate"):
        convert_audio(noise(1, 10), 16000, rate, 1)


# Level


@pytest.mark.parametrize("strategy", ["peak", "rms", "clip"])
def test_normalize_audio_equals_the_original(strategy):
    out = normalize_audio(GOLDEN["audio.in"], strategy=strategy, sample_rate=16000)
    expected = GOLDEN[f"audio.{strategy}"]
    torch.testing.assert_close(out[:, : expected.shape[1]], expected, atol=1e-6, rtol=0)


def test_peak():
    wav = noise(2, 1000, level=0.01)
    out = normalize_audio(wav, strategy="peak", peak_clip_headroom_db=6)
    assert out.abs().max().item() == pytest.approx(10 ** (-6 / 20), rel=1e-6)
    torch.testing.assert_close(out / wav, torch.full_like(wav, (out[0, 0] / wav[0, 0]).item()))


def test_clip():
    wav = torch.tensor([[-3.0, -0.2, 0.3, 2.0]])
    limit = 10 ** (-2 / 20)
    out = normalize_audio(wav, strategy="clip", peak_clip_headroom_db=2)
    torch.testing.assert_close(out, torch.tensor([[-limit, -0.2, 0.3, limit]]))


def test_rms_counts_the_mono_mix_and_clamps():
    wav = noise(2, 4000)
    out = normalize_audio(wav, strategy="rms", rms_headroom_db=20)
    assert out.mean(dim=0).pow(2).mean().sqrt().item() == pytest.approx(0.1, rel=1e-5)
    assert normalize_audio(wav, strategy="rms", rms_headroom_db=0).abs().max() == 1


@pytest.mark.parametrize("strategy", ["peak", "rms"])
def test_without_normalize_only_what_is_too_loud_changes(strategy):
    quiet, loud = noise(1, 1000, level=0.01), noise(1, 1000, level=2.0)
    assert torch.equal(normalize_audio(quiet, False, strategy), quiet)
    expected = normalize_audio(loud, True, strategy)
    assert torch.equal(normalize_audio(loud, False, strategy), expected)


@pytest.mark.parametrize("strategy", ["none", ""])
def test_none_returns_what_fits_and_refuses_the_rest(strategy):
    wav = noise(1, 100)
    assert normalize_audio(wav, strategy=strategy) is wav
    with pytest.raises(InvalidInputError, match="below 1 for strategy"):
        normalize_audio(torch.ones(1, 5), strategy=strategy)


@pytest.mark.parametrize("headroom", [14, 23])
def test_loudness_reaches_its_target(headroom):
    wav, sample_rate = audio_read(DATA / "recordings" / "openttd-opensfx-14-0b129b.flac")
    out = normalize_loudness(wav, sample_rate, loudness_headroom_db=headroom)
    measured = integrated_loudness(out, sample_rate).item()
    assert measured == pytest.approx(-headroom, abs=0.3 if headroom == 14 else 0.05)
    assert torch.equal(
        normalize_audio(out, strategy="loudness", sample_rate=16000, loudness_headroom_db=headroom),
        normalize_loudness(out, sample_rate, headroom).clamp(-1, 1),
    )


def test_loudness_compressor_is_tanh():
    wav = noise(1, 16000, level=0.3)
    plain = normalize_loudness(wav, 16000, 3)
    assert plain.abs().max() > 1
    assert torch.equal(normalize_loudness(wav, 16000, 3, loudness_compressor=True), plain.tanh())


def test_loudness_leaves_what_is_below_the_energy_floor():
    wav = noise(1, 16000, level=1e-3)
    assert normalize_loudness(wav, 16000) is wav
    assert normalize_loudness(wav, 16000, energy_floor=5e-4).abs().max() > 0.1


def test_loudness_leaves_what_cannot_be_measured():
    inaudible = 0.1 * torch.sin(2 * math.pi * 0.1 / 16000 * torch.arange(48000))[None]
    assert normalize_loudness(inaudible, 16000) is inaudible


def test_loudness_of_one_dimension_and_of_very_short_clips():
    wav = noise(16000)
    assert torch.equal(normalize_loudness(wav, 16000), normalize_loudness(wav[None], 16000)[0])
    for length in (1, 2, 100, 6399, 6401):
        out = normalize_audio(noise(1, length), strategy="loudness", sample_rate=16000)
        assert out.shape == (1, length) and out.isfinite().all()


@pytest.mark.parametrize("strategy", [*STRATEGIES, "none"])
@pytest.mark.parametrize("shape", [(1, 16000), (2, 1), (1, 0)])
def test_silence_and_nothing_stay_as_they_are(strategy, shape):
    silence = torch.zeros(shape)
    assert torch.equal(normalize_audio(silence, strategy=strategy, sample_rate=16000), silence)


def test_no_level_at_all_is_not_amplified_to_infinity():
    opposite = torch.cat([noise(1, 100), -noise(1, 100)])
    assert torch.equal(normalize_audio(opposite, strategy="rms"), opposite)
    tiny = torch.tensor([[0.0, 1e-40]])
    assert torch.equal(normalize_audio(tiny, strategy="peak"), tiny)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("level", [1e-4, 3.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_callers_tensor_is_never_changed(strategy, level, normalize):
    wav = noise(2, 8000, level=level)
    before = wav.clone()
    out = normalize_audio(wav, normalize, strategy, sample_rate=16000)
    assert torch.equal(wav, before)
    assert out.abs().max() <= 1


@pytest.mark.parametrize("strategy", ["rms", "loudness"])
def test_clamping_what_needs_no_scaling_does_not_reach_the_caller(strategy):
    wav = torch.zeros(1, 10**7)  # quiet on the whole, with one sample beyond full scale
    wav[0, 5] = 3.0
    out = normalize_audio(wav, normalize=False, strategy=strategy, sample_rate=16000)
    assert wav[0, 5] == 3.0 and out[0, 5] == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dtypes_are_kept(strategy, dtype):
    wav = noise(1, 8000)
    out = normalize_audio(wav.to(dtype), strategy=strategy, sample_rate=16000)
    assert out.dtype == dtype
    expected = normalize_audio(wav, strategy=strategy, sample_rate=16000)
    torch.testing.assert_close(out.float(), expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("wav", "kwargs", "message"),
    [
        (torch.zeros(1, 5), {"strategy": "loud"}, "Unexpected strategy: 'loud'"),
        (torch.zeros(1, 5), {"strategy": "loudness"}, "requires sample rate"),
        (torch.zeros(1, 5, dtype=torch.int16), {}, "floating point, got torch.int16"),
        (torch.full((1, 5), math.nan), {"strategy": "loudness", "sample_rate": 16000}, "finite"),
        (torch.ones(2, 1, 50), {"strategy": "loudness", "sample_rate": 16000}, "one recording"),
    ],
)
def test_normalize_audio_refuses(wav, kwargs, message):
    with pytest.raises(InvalidInputError, match=message) as caught:
        normalize_audio(wav, **kwargs)
    assert isinstance(caught.value, AssertionError)  # what the original raises


def test_clip_wav_works_in_place_and_reports(capsys):
    wav = torch.tensor([[-2.0, 0.5, 1.5, 0.1]])
    _clip_wav(wav.clone())
    _clip_wav(torch.tensor([0.5]), log_clipping=True)
    assert capsys.readouterr().err == ""
    _clip_wav(wav, log_clipping=True, stem_name="dog")
    assert wav.tolist() == [[-1.0, 0.5, 1.0, pytest.approx(0.1)]]
    message = capsys.readouterr().err
    assert "CLIPPING dog" in message and "50.000%" in message and "2.000" in message


# PCM


def test_f32_pcm():
    assert f32_pcm(torch.tensor([-(2**15), 2**14], dtype=torch.int16)).tolist() == [-1.0, 0.5]
    assert f32_pcm(torch.tensor([-(2**31), 2**30], dtype=torch.int32)).tolist() == [-1.0, 0.5]
    wav = noise(3)
    assert f32_pcm(wav) is wav
    with pytest.raises(InvalidInputError, match="torch.uint8"):
        f32_pcm(torch.zeros(3, dtype=torch.uint8))


def test_i16_pcm():
    assert i16_pcm(torch.tensor([-1.0, 0.5, 2**-15])).tolist() == [-(2**15), 2**14, 1]
    # where 1 would become 2**15, everything is scaled by 2**15 - 1
    assert i16_pcm(torch.tensor([-1.0, 0.5, 1.0])).tolist() == [-32767, 16384, 32767]
    assert i16_pcm(torch.tensor([1.0], dtype=torch.float16)).tolist() == [32767]
    assert i16_pcm(torch.zeros(0)).shape == (0,)
    every = torch.arange(-(2**15), 2**15).short()
    assert torch.equal(i16_pcm(f32_pcm(every)), every)
    assert i16_pcm(every) is every
    for bad in (torch.tensor([1.01]), torch.tensor([math.nan]), torch.zeros(2, dtype=torch.int32)):
        with pytest.raises(InvalidInputError):
            i16_pcm(bad)
