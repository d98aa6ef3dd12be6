"""audio_info and audio_read; writing is tested in test_audio_write.py."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiogen_fast.data import encoders
from audiogen_fast.data.audio import (
    AudioFileInfo,
    _av_info,
    _av_read,
    _soundfile_info,
    _soundfile_read,
    audio_info,
    audio_read,
    audio_write,
)
from audiogen_fast.errors import AudioFileError, InvalidInputError

RECORDINGS = sorted((Path(__file__).parents[1] / "data" / "recordings").glob("*.flac"))
LAST_BIT = 2.5e-7
"""The mp3 decoder does not round the same way every time."""
FORMATS = ["wav", "flac", "ogg", "mp3"]


def noise(*shape: int, level: float = 0.1) -> torch.Tensor:
    return level * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def as_is(path: Path, wav: torch.Tensor, sample_rate: int, format: str, **kwargs) -> Path:
    """Write samples within +-1 without changing their level."""
    return audio_write(path, wav, sample_rate, format, strategy="none", **kwargs)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[Path, torch.Tensor, int]]:
    """Name: (path, the whole file decoded, sample rate)."""
    folder = tmp_path_factory.mktemp("audio")
    sweep = 0.3 * torch.sin(torch.linspace(0, 400, 48123) ** 2 / 40)
    wav = torch.stack([sweep, 0.5 * sweep + 0.1 * noise(len(sweep))])
    paths = {
        "wav": as_is(folder / "a", wav, 16000, "wav"),
        "flac": as_is(folder / "a", wav, 44100, "flac"),
        # of 6 s at 8 kHz the last Ogg page holds 5, within which libsndfile seeks wrongly
        "ogg": as_is(folder / "a", noise(1, 48123), 8000, "ogg"),
        "ogg, one page": as_is(folder / "b", wav[:, :4000], 16000, "ogg"),
        # a low rate: frames of mp3 share their bits with the ones before
        "mp3": as_is(folder / "a", wav, 44100, "mp3", mp3_rate=40),
    }
    if encoders._HAS_RATES:
        paths["mp3, variable rate"] = folder / "v.mp3"
        samples = wav.t().numpy()
        soundfile.write(
            folder / "v.mp3", samples, 16000, bitrate_mode="VARIABLE", compression_level=0.3
        )
    decoded = {}
    for name, path in paths.items():
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
        decoded[name] = (path, torch.from_numpy(samples.T.copy()), sample_rate)
    return decoded


def test_whole_files(files):
    for path, whole, sample_rate in files.values():
        wav, rate = audio_read(path)
        assert rate == sample_rate and wav.dtype == torch.float32 and wav.is_contiguous()
        zero_duration, _ = audio_read(str(path), duration=0)
        internal, _ = _av_read(path, seek_time=0, duration=-1.0)
        for result in (wav, zero_duration, internal):
            torch.testing.assert_close(result, whole, atol=LAST_BIT, rtol=0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_parts_are_slices_of_the_whole(files, data):
    path, whole, sample_rate = files[data.draw(st.sampled_from(sorted(files)))]
    length = whole.shape[1] / sample_rate
    seek_time = data.draw(st.floats(0, 1.1 * length))
    duration = data.draw(st.floats(1e-6, 0.5) | st.floats(0, 2 * length) | st.just(-1.0))
    start, frames = int(seek_time * sample_rate), int(duration * sample_rate)
    expected = whole[:, start:] if duration <= 0 else whole[:, start : start + frames]

    wav, rate = _soundfile_read(path, seek_time, duration)
    assert rate == sample_rate
    torch.testing.assert_close(wav, expected, atol=LAST_BIT, rtol=0)

    padded, _ = audio_read(path, seek_time, duration, pad=True)
    missing = max(frames - expected.shape[1], 0)
    expected = torch.nn.functional.pad(expected, (0, missing))
    torch.testing.assert_close(padded, expected, atol=LAST_BIT, rtol=0)


def test_seek_beyond_the_end(files):
    for path, whole, sample_rate in files.values():
        for seek_time in (whole.shape[1] / sample_rate + 1, 1e9):
            assert audio_read(path, seek_time)[0].shape == (whole.shape[0], 0)
            assert _av_read(path, seek_time, 0.5)[0].shape == (whole.shape[0], 0)
            padded = audio_read(path, seek_time, 0.5, pad=True)[0]
            assert torch.equal(padded, torch.zeros(whole.shape[0], sample_rate // 2))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_info(tmp_path, format, channels):
    path = audio_write(tmp_path / "a", noise(channels, 12000), 8000, format)
    assert audio_info(path) == AudioFileInfo(sample_rate=8000, duration=1.5, channels=channels)
    assert _av_info(path) == _soundfile_info(str(path)) == audio_info(path)


def test_recordings():
    infos = [audio_info(path) for path in RECORDINGS]
    assert {(info.sample_rate, info.channels) for info in infos} == {(16000, 1)}
    for path, info in zip(RECORDINGS, infos, strict=True):
        wav, _ = audio_read(path)
        assert wav.shape == (1, round(info.duration * 16000))
        assert 0.05 < wav.abs().max() <= 1


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_bad_seek_time(bad):
    with pytest.raises(InvalidInputError, match="seek_time must be finite and at least 0"):
        audio_read(RECORDINGS[0], seek_time=bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_duration(bad):
    with pytest.raises(InvalidInputError, match="duration must be finite"):
        audio_read(RECORDINGS[0], duration=bad)


def test_missing_file_and_folder(tmp_path):
    for function in (audio_read, audio_info):
        with pytest.raises(FileNotFoundError, match="no.wav"):
            function(tmp_path / "no.wav")
        with pytest.raises(IsADirectoryError):
            function(tmp_path)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.m4a", "a.raw", "a"])
@pytest.mark.parametrize("content", [b"", b"no audio at all " * 200], ids=["empty", "text"])
def test_what_is_no_audio_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    for function in (audio_read, audio_info):
        with pytest.raises(AudioFileError, match="formats: wav, flac, ogg and mp3") as caught:
            function(path)
        assert str(path) in str(caught.value)


def test_damaged_flac(tmp_path):
    path = audio_write(tmp_path / "a", noise(1, 30000), 16000, "flac")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioFileError, match=r"a\.flac"):
        audio_read(path)


def test_flac_without_a_length(tmp_path):
    path = audio_write(tmp_path / "a", noise(1, 3000), 16000, "flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO: 36 bits of length from the middle of byte 21 on
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(AudioFileError, match="does not say how long"):
        audio_read(path)


def test_importing_the_package_does_not_load_soundfile():
    program = (
        "import sys, audiogen_fast.data as data\n"
        "assert 'soundfile' not in sys.modules\n"
        "assert data.audio_utils.f32_pcm and 'soundfile' not in sys.modules\n"
        "assert data.audio.audio_read and 'soundfile' in sys.modules\n"
        "assert not hasattr(data, 'nothing') and 'audio' in dir(data)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
