"""audio_write; reading is tested in test_audio.py."""

import math
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiogen_fast.data import encoders
from audiogen_fast.data.audio import audio_info, audio_read, audio_write
from audiogen_fast.errors import AudioFileError, InvalidInputError

RECORDINGS = sorted((Path(__file__).parents[1] / "data" / "recordings").glob("*.flac"))
FORMATS = ["wav", "flac", "ogg", "mp3"]
needs_rates = pytest.mark.skipif(not encoders._HAS_RATES, reason="soundfile before 0.13")


def noise(*shape: int, level: float = 0.1) -> torch.Tensor:
    return level * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def as_is(path: Path, wav: torch.Tensor, sample_rate: int, format: str, **kwargs) -> Path:
    """Write samples within +-1 without changing their level."""
    return audio_write(path, wav, sample_rate, format, strategy="none", **kwargs)


def signal_to_noise_db(reference: torch.Tensor, wav: torch.Tensor) -> float:
    error = (reference - wav).pow(2).mean()
    return (10 * torch.log10(reference.pow(2).mean() / error)).item()


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem[-6:])
@pytest.mark.parametrize("format", FORMATS)
def test_recordings_written_and_read_back(tmp_path, recording, format):
    wav, sample_rate = audio_read(recording)
    wav = 0.9 * wav
    path = as_is(tmp_path / "a", wav, sample_rate, format)
    assert path == tmp_path / f"a.{format}"
    back, rate = audio_read(path)
    assert rate == sample_rate and back.shape == wav.shape
    step = {"wav": 2**-15, "flac": 2**-23}.get(format)
    if step is not None:
        torch.testing.assert_close(back, wav, atol=step / 2, rtol=0)
    else:
        assert signal_to_noise_db(wav, back) > (15 if format == "mp3" else 10)


def test_wav_holds_rounded_16_bit_samples(tmp_path):
    wav = torch.tensor([[-1.0, -0.5, 0.4 / 2**15, 0.6 / 2**15, 1.0]])
    path = audio_write(tmp_path / "a", wav, 8000, strategy="clip", peak_clip_headroom_db=0)
    assert soundfile.info(path).subtype == "PCM_16"
    samples = soundfile.read(path, dtype="int16")[0]
    assert samples.tolist() == [-32768, -16384, 0, 1, 32767]


def test_flac_holds_24_bit_samples(tmp_path):
    wav = torch.tensor([[-1.0, 3 / 2**23, 1.0]])
    path = audio_write(tmp_path / "a", wav, 8000, "flac", strategy="clip", peak_clip_headroom_db=0)
    assert soundfile.info(path).subtype == "PCM_24"
    samples = soundfile.read(path, dtype="int32")[0]
    assert (samples // 2**8).tolist() == [-(2**23), 3, 2**23 - 1]


def kbps(path: Path) -> float:
    return path.stat().st_size * 8 / 1000 / audio_info(path).duration


@needs_rates
@pytest.mark.parametrize(
    ("sample_rate", "asked", "given"),
    [(16000, 64, 64), (16000, 320, 160), (8000, 320, 64), (44100, 128, 128), (44100, 8, 32)],
)
def test_mp3_rate(tmp_path, sample_rate, asked, given):
    wav = noise(1, 4 * sample_rate)
    path = audio_write(tmp_path / "a", wav, sample_rate, "mp3", mp3_rate=asked)
    assert kbps(path) == pytest.approx(given, rel=0.07)


@needs_rates
@pytest.mark.parametrize("asked", [48, 64])
def test_ogg_rate(tmp_path, asked):
    path = audio_write(tmp_path / "a", noise(1, 96000), 16000, "ogg", ogg_rate=asked)
    assert kbps(path) == pytest.approx(asked, rel=0.15)


def test_a_minute_of_stereo_ogg(tmp_path):
    # handed to libsndfile in one piece, this ends the process
    path = audio_write(tmp_path / "a", noise(2, 60 * 44100), 44100, "ogg")
    assert audio_info(path).duration == 60


def test_names(tmp_path):
    wav = noise(100)
    assert audio_write(tmp_path / "v1.2", wav, 8000) == tmp_path / "v1.2.wav"
    assert audio_write(str(tmp_path / "a.wav"), wav, 8000) == tmp_path / "a.wav.wav"
    named = audio_write(tmp_path / "b.xyz", wav, 8000, "flac", add_suffix=False)
    assert named == tmp_path / "b.xyz" and audio_info(named).duration == 100 / 8000
    assert audio_write(tmp_path / "new" / "er" / "c", wav, 8000).is_file()
    with pytest.raises(FileNotFoundError):
        audio_write(tmp_path / "none" / "c", wav, 8000, make_parent_dir=False)


def test_shapes_and_dtypes(tmp_path):
    wav = noise(300)
    expected = audio_read(audio_write(tmp_path / "a", wav, 8000))[0]
    assert expected.shape == (1, 300)
    for other in (wav[None], wav.double(), wav.clone().requires_grad_(), wav.expand(2, 300)):
        back = audio_read(audio_write(tmp_path / "b", other, 8000))[0]
        assert torch.equal(back, expected.expand_as(back))
    for dtype in (torch.float16, torch.bfloat16):
        back = audio_read(audio_write(tmp_path / "b", wav.to(dtype), 8000))[0]
        torch.testing.assert_close(back, expected, atol=2e-2, rtol=0)


def test_level_is_set(tmp_path):
    wav = noise(2, 8000, level=0.01)
    back = audio_read(audio_write(tmp_path / "a", wav, 8000))[0]
    assert back.abs().max().item() == pytest.approx(10 ** (-1 / 20), abs=2**-15)
    back = audio_read(audio_write(tmp_path / "a", wav, 8000, normalize=False))[0]
    torch.testing.assert_close(back, wav, atol=2**-16, rtol=0)
    path = audio_write(tmp_path / "a", wav, 8000, strategy="rms", rms_headroom_db=30)
    rms = audio_read(path)[0].mean(dim=0).pow(2).mean().sqrt().item()
    assert rms == pytest.approx(10 ** (-30 / 20), rel=1e-3)


def test_silence(tmp_path):
    for format in FORMATS:
        path = audio_write(tmp_path / "a", torch.zeros(1, 8000), 8000, format)
        assert torch.equal(audio_read(path)[0], torch.zeros(1, 8000))


def test_one_sample(tmp_path):
    for format in FORMATS:
        path = audio_write(tmp_path / "a", torch.full((1, 1), 0.5), 16000, format)
        assert audio_read(path)[0].shape == (1, 1)


@pytest.mark.parametrize("strategy", ["peak", "clip", "rms", "loudness"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_callers_tensor_is_never_changed(tmp_path, strategy, normalize):
    for wav in (noise(2, 8000, level=2.0), noise(8000, level=1e-4)):
        before = wav.clone()
        for format in FORMATS:
            audio_write(
                tmp_path / "a", wav, 8000, format, normalize=normalize, strategy=strategy,
                log_clipping=False,
            )  # fmt: skip
        assert torch.equal(wav, before)


def test_clipping_is_reported_under_the_name_of_the_file(tmp_path, capsys):
    audio_write(tmp_path / "loud", noise(8000), 8000, strategy="rms", rms_headroom_db=0)
    assert f"CLIPPING {tmp_path / 'loud'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wav", "kwargs", "message"),
    [
        (torch.zeros(1, 5, dtype=torch.int16), {}, "floating point, got torch.int16"),
        (torch.tensor([0.0, math.nan]), {}, "finite"),
        (torch.tensor([0.0, math.inf]), {}, "finite"),
        (torch.zeros(1, 2, 5), {}, "Input wav should be at most 2 dimension."),
        (torch.zeros(1, 0), {}, "at least one sample"),
        (torch.zeros(0, 5), {}, "at least one sample"),
        (torch.tensor(0.5), {"sample_rate": 0}, "sample_rate must be a positive integer, got 0"),
        (torch.zeros(5), {"sample_rate": 8000.5}, "got 8000.5"),
        (torch.zeros(5), {"strategy": "max"}, "Unexpected strategy: 'max'"),
        (torch.zeros(5), {"format": "mp3", "mp3_rate": 0}, "mp3_rate must be a positive"),
        (torch.zeros(5), {"format": "ogg", "ogg_rate": math.nan}, "ogg_rate must be a positive"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, wav, kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        audio_write(tmp_path / "a", wav, **{"sample_rate": 8000, **kwargs})
    assert os.listdir(tmp_path) == []


def test_unknown_format_is_a_runtime_error_too(tmp_path):
    for kind in (InvalidInputError, RuntimeError):
        with pytest.raises(kind, match="Invalid format m4a, must be one of wav, mp3, ogg, flac"):
            audio_write(tmp_path / "a", noise(10), 8000, "m4a")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("wav", "sample_rate", "format"), [(noise(10), 44101, "mp3"), (noise(9, 10), 8000, "flac")]
)
def test_what_a_format_does_not_take_leaves_the_folder_as_it_was(
    tmp_path, wav, sample_rate, format
):
    (tmp_path / f"a.{format}").write_bytes(b"precious")
    before = snapshot(tmp_path)
    message = rf"a\.{format}: {torch.atleast_2d(wav).shape[0]} channels at {sample_rate} Hz"
    with pytest.raises(AudioFileError, match=message):
        audio_write(tmp_path / "a", wav, sample_rate, format)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("existing", [True, False])
def test_full_disk_leaves_the_folder_as_it_was(tmp_path, format, existing):
    wav = noise(16000)
    size = audio_write(tmp_path / "a", wav, 16000, format).stat().st_size
    if not existing:
        (tmp_path / f"a.{format}").unlink()
    before = snapshot(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (size - 1, size // 2, 10):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(OSError):
                audio_write(tmp_path / "a", 0.5 * wav, 16000, format)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert snapshot(tmp_path) == before


def test_existing_file_is_replaced_and_a_link_stays_a_link(tmp_path):
    target = audio_write(tmp_path / "a", noise(100), 8000)
    (tmp_path / "link.wav").symlink_to(target)
    written = audio_write(tmp_path / "link", noise(200), 8000)
    assert written == tmp_path / "link.wav" and written.is_symlink()
    assert audio_read(target)[0].shape == (1, 200)
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "link.wav"]


def test_what_is_not_a_plain_file_is_not_replaced(tmp_path):
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(InvalidInputError, match="plain file"):
        audio_write(tmp_path / "a", noise(10), 8000)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInputError, match="plain file"):
        audio_write(tmp_path / "pipe", noise(10), 8000, add_suffix=False)
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "pipe"]


def test_file_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = audio_write(tmp_path / "a", noise(10), 8000)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_encoding_does_not_depend_on_the_memory_layout(tmp_path):
    wav = noise(200, 2)
    strided = as_is(tmp_path / "a", wav.t(), 8000, "flac")
    packed = as_is(tmp_path / "b", wav.t().contiguous(), 8000, "flac")
    assert np.array_equal(soundfile.read(strided)[0], soundfile.read(packed)[0])
