import math
from pathlib import Path

import pytest
import torch

from audiogen_fast.data import loudness
from audiogen_fast.data.audio import audio_read
from audiogen_fast.data.loudness import integrated_loudness
from audiogen_fast.errors import InvalidInputError

RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"


def sine(sample_rate: int, level_db: float, seconds: float = 3.0, hz: float = 997) -> torch.Tensor:
    t = torch.arange(int(sample_rate * seconds), dtype=torch.float64) / sample_rate
    return 10 ** (level_db / 20) * torch.sin(2 * math.pi * hz * t)[None]


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def recursion(x: torch.Tensor, biquad: loudness.Biquad) -> torch.Tensor:
    """The difference equation, sample by sample."""
    (b0, b1, b2), (_, a1, a2) = biquad
    y, x1, x2, y1, y2 = [], 0.0, 0.0, 0.0, 0.0
    for x0 in x.tolist():
        y0 = b0 * x0 + b1 * x1 + b2 * x2 - a1 * y1 - a2 * y2
        x1, x2, y1, y2 = x0, x1, y0, y1
        y.append(y0)
    return torch.tensor(y, dtype=torch.float64)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 48000])
@pytest.mark.parametrize("make", [loudness._high_shelf, loudness._high_pass])
def test_filter_equals_recursion_in_one_chunk_and_in_many(monkeypatch, make, sample_rate):
    x = noise(2, 12000).double()
    biquad = make(sample_rate)
    expected = torch.stack([recursion(row, biquad) for row in x])
    torch.testing.assert_close(loudness._filter(x, biquad), expected, atol=1e-11, rtol=0)
    monkeypatch.setattr(loudness, "_FFT", 2**12)
    torch.testing.assert_close(loudness._filter(x, biquad), expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize("sample_rate", [16000, 44100, 48000])
def test_sine_of_known_level(sample_rate):
    # a sine of level L dBFS has the mean square L - 3.01 dB; the shelf's corner at 1500 Hz is
    # not quite the standard's, which costs 0.05 to 0.08 dB
    for level in (-40.0, -20.0, -6.0):
        measured = integrated_loudness(sine(sample_rate, level), sample_rate).item()
        assert measured == pytest.approx(level - 3.01, abs=0.1)


def test_full_scale_reads_low_because_of_the_clamp():
    assert integrated_loudness(sine(48000, 0.0), 48000).item() == pytest.approx(-3.28, abs=0.01)


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # what torchaudio 2.11 measures, in float32
        ("openttd-opensfx-14-0b129b.flac", -16.274046),
        ("openttd-opensfx-36-3fa9a0.flac", -13.388103),
    ],
)
def test_recordings_measure_as_in_torchaudio(name, expected):
    wav, sample_rate = audio_read(RECORDINGS / name)
    assert integrated_loudness(wav, sample_rate).item() == pytest.approx(expected, abs=1e-4)


def test_gates_leave_out_silence_and_what_is_10_db_below_the_mean():
    loud = integrated_loudness(sine(16000, -20.0, seconds=4.0), 16000).item()
    for pause in (-90.0, -50.0):  # the absolute and the relative gate
        wav = torch.cat([sine(16000, -20.0, seconds=4.0), sine(16000, pause, seconds=4.0)], dim=-1)
        # the blocks that hold the end of the tone keep counting: up to 0.2 dB, not the 3 dB of half
        assert integrated_loudness(wav, 16000).item() == pytest.approx(loud, abs=0.2)
    # 6 dB less is not gated: the mean power of both halves
    wav = torch.cat([sine(16000, -20.0, seconds=4.0), sine(16000, -26.0, seconds=4.0)], dim=-1)
    expected = loud + 10 * math.log10((1 + 10**-0.6) / 2)
    assert integrated_loudness(wav, 16000).item() == pytest.approx(expected, abs=0.1)


def test_channels_add_up_with_their_gains():
    x = noise(1, 16000)
    one = integrated_loudness(x, 16000).item()
    silent = torch.zeros_like(x)
    two = integrated_loudness(torch.cat([x, x]), 16000).item()
    assert two == pytest.approx(one + 10 * math.log10(2), abs=1e-6)
    rear = integrated_loudness(torch.cat([silent, silent, silent, silent, x]), 16000).item()
    assert rear == pytest.approx(one + 10 * math.log10(1.41), abs=1e-6)


def test_batch_measures_each_item():
    x = noise(3, 2, 16000) * torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1)
    batch = integrated_loudness(x, 16000)
    assert batch.shape == (3,) and batch.dtype == torch.float64
    for item, measured in zip(x, batch, strict=True):
        torch.testing.assert_close(integrated_loudness(item, 16000), measured)


def test_short_clip_is_one_block():
    x = noise(1, 6400)  # 0.4 s
    whole = integrated_loudness(x, 16000).item()
    assert integrated_loudness(x[:, :5000], 16000).item() == pytest.approx(whole, abs=0.5)
    assert math.isfinite(integrated_loudness(x[:, :1], 16000).item())


def test_silence_and_what_is_too_low_to_hear_have_no_loudness():
    assert integrated_loudness(torch.zeros(1, 16000), 16000).item() == -math.inf
    inaudible = sine(16000, -20.0, hz=0.1)
    assert integrated_loudness(inaudible, 16000).item() == -math.inf


def test_input_is_unchanged():
    x = 3 * noise(1, 16000).double()
    before = x.clone()
    integrated_loudness(x, 16000)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("shape", "sample_rate", "message"),
    [
        ((6, 100), 16000, "1 to 5 channels, got 6"),
        ((1, 0), 16000, "at least one sample"),
        ((100,), 16000, "shape"),
        ((1, 100), 3000, "above 3000 Hz for loudness, got 3000"),
    ],
)
def test_bad_input(shape, sample_rate, message):
    with pytest.raises(InvalidInputError, match=message):
        integrated_loudness(torch.zeros(shape), sample_rate)
