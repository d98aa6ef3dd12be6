"""Which samples are drawn, and that they are what the recordings hold."""

import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from audiogen_fast.data.audio import audio_read
from audiogen_fast.data.audio_utils import convert_audio
from audiogen_fast.errors import DataError, InvalidInputError
from audiogen_fast.training.data import DatasetConfig, Manifest, SoundDataset, read_manifest

from .conftest import RATE, SECONDS, original_row

CONFIG = DatasetConfig(segment_duration=1.0, num_samples=1000)


def dataset(manifest, **changes):
    return SoundDataset(manifest, replace(CONFIG, **changes))


def unreal(durations, weights=None):
    """A manifest of recordings that are not there; `load_wav=False` draws from it all the same."""
    weights = weights or [None] * len(durations)
    rows = [
        {"path": f"{i}", "duration": d, "weight": w, "description": "x"}
        for i, (d, w) in enumerate(zip(durations, weights, strict=True))
    ]
    return Manifest(rows)


def drawn(data, count=4000, epoch=0):
    infos = [data.read(epoch, index).info for index in range(count)]
    return np.array([int(info.id) for info in infos]), infos


def test_a_segment_is_that_part_of_its_recording(manifest):
    data = dataset(manifest, num_samples=40)
    whole = {meta.id: audio_read(meta.path)[0] for meta in manifest}
    padded = 0
    for index in range(len(data)):
        item = data.read(0, index)
        start = int(item.info.seek_time * RATE)
        expected = whole[item.info.id][:, start : start + RATE]
        assert item.wav.shape == (1, RATE) and item.wav.dtype == torch.float32
        assert item.info.n_frames == expected.shape[1] and item.info.total_frames == RATE
        assert torch.equal(item.wav[:, : item.info.n_frames], expected)
        assert not item.wav[:, item.info.n_frames :].any()
        padded += item.info.n_frames < RATE
        number = item.info.id[-5]
        assert item.info.description == f"noise number {number}"
        assert item.info.duration == SECONDS[int(number)]
        assert item.info.to_condition_attributes().text == {"description": item.info.description}
    assert 0 < padded < 40
    short = dataset(manifest, pad=False)
    item = next(i for i in map(lambda n: short.read(0, n), range(50)) if i.wav.shape[1] < RATE)
    assert item.info.total_frames == item.info.n_frames == item.wav.shape[1]


def test_samples_depend_on_seed_epoch_and_index_alone(manifest):
    first = [dataset(manifest).read(3, index).info for index in range(20)]
    data = dataset(manifest)
    assert [data.read(3, index).info for index in reversed(range(20))] == first[::-1]
    assert [data.read(4, index).info for index in range(20)] != first
    assert [dataset(manifest, shuffle_seed=1).read(3, i).info for i in range(20)] != first
    still = dataset(manifest, shuffle=False)
    assert [still.read(4, i).info for i in range(20)] == [still.read(0, i).info for i in range(20)]


@pytest.mark.parametrize(
    ("by_weight", "by_duration", "expected"),
    [
        (False, False, [1, 1, 1, 1]),
        (True, False, [1, 2, 0, 4]),
        (False, True, [1, 2, 3, 4]),
        (True, True, [1, 4, 0, 16]),
    ],
)
def test_recordings_are_drawn_in_proportion(by_weight, by_duration, expected):
    manifest = unreal([1.0, 2.0, 3.0, 4.0], [None, 2, 0, 4])
    data = dataset(
        manifest, sample_on_weight=by_weight, sample_on_duration=by_duration, load_wav=False
    )
    files, _ = drawn(data)
    counts = np.bincount(files, minlength=4)
    p = np.array(expected) / sum(expected)
    deviation = np.sqrt(np.maximum(p * (1 - p), 1e-12) * len(files))
    assert (np.abs(counts - p * len(files)) <= 4 * deviation).all(), counts


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_where_segments_begin(ratio):
    data = dataset(unreal([5.0, 0.3]), min_segment_ratio=ratio, load_wav=False)
    files, infos = drawn(data)
    seeks = np.array([info.seek_time for info in infos])
    for file, duration in enumerate([5.0, 0.3]):
        latest = max(0.0, duration - ratio * 1.0)
        ours = seeks[files == file]
        assert len(ours) > 150 and ours.min() >= 0 and ours.max() <= latest
        # uniform: mean and spread
        assert abs(ours.mean() - latest / 2) <= latest / 2 * 0.15
        assert abs(ours.std() - latest / np.sqrt(12)) <= latest * 0.05


def test_a_permutation_takes_each_recording_once(manifest):
    data = dataset(unreal([1.0] * 7), permutation_on_files=True, num_samples=10, load_wav=False)
    order = [int(data.read(*divmod(place, 10)).info.id) for place in range(70)]
    turns = [order[start : start + 7] for start in range(0, 70, 7)]
    assert all(sorted(turn) == list(range(7)) for turn in turns)
    assert len(set(map(tuple, turns))) > 7
    data = dataset(
        unreal([1.0] * 7), permutation_on_files=True, shuffle=False, num_samples=10, load_wav=False
    )
    assert [int(data.read(5, i).info.id) for i in range(9)] == [0, 1, 2, 3, 4, 5, 6, 0, 1]


def test_whole_recordings(manifest):
    data = dataset(manifest, segment_duration=None)
    assert len(data) == 4
    for epoch in (0, 1):
        items = [data.read(epoch, index) for index in range(4)]
        assert sorted(item.wav.shape[1] for item in items) == [int(s * RATE) for s in SECONDS]
    batch = data.collate(items, 0, 0, 0)
    assert batch.wav.shape == (4, 1, int(3.5 * RATE))
    for row, item in zip(batch.wav, items, strict=True):
        assert torch.equal(row[:, : item.info.n_frames], item.wav)
        assert not row[:, item.info.n_frames :].any()
    assert {info.total_frames for info in batch.infos} == {int(3.5 * RATE)}
    some = dataset(manifest, segment_duration=None, num_samples=2, shuffle=False)
    assert len(some) == 2
    ids = [some.read(epoch, i).info.id for epoch in (0, 1) for i in range(2)]
    assert ids[:2] == ids[2:] and ids[0] < ids[1]


def test_rate_and_channels_are_converted(recordings, tmp_path):
    source, rate = audio_read(next(recordings.glob("*-36-*")))
    stereo = torch.cat([source, source.flip(1)]).T.numpy()
    soundfile.write(tmp_path / "a.wav", stereo, 22_050, "PCM_16")
    manifest = Manifest(
        [{"path": "a.wav", "duration": len(stereo) / 22_050, "description": "sheep"}], tmp_path
    )
    data = dataset(manifest, segment_duration=0.5, channels=1)
    item = data.read(0, 3)
    part, rate = audio_read(tmp_path / "a.wav", item.info.seek_time, 0.5)
    expected = convert_audio(part, rate, RATE, 1)[:, :8000]
    assert rate == 22_050 and item.info.n_frames == expected.shape[1]
    assert torch.allclose(item.wav[:, : expected.shape[1]], expected, atol=1e-6)
    assert item.wav.shape == (1, 8000)
    assert dataset(manifest, channels=2).read(0, 0).wav.shape == (2, RATE)


def test_members_of_archives(recordings, tmp_path):
    files = sorted(recordings.glob("*.flac"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for file in files:
            caption = tmp_path / f"{file.stem}.json"
            caption.write_text(json.dumps({"description": file.stem}))
            tar.add(file, file.name)
            tar.add(caption, caption.name)
            caption.unlink()
    rows = [{"path": f"a.tar:{f.name}", "duration": soundfile.info(f).duration} for f in files]
    plain = [r | {"path": str(f), "description": f.stem} for r, f in zip(rows, files, strict=True)]
    packed, unpacked = dataset(Manifest(rows, tmp_path)), dataset(Manifest(plain))
    for index in range(6):
        ours, expected = packed.read(0, index), unpacked.read(0, index)
        assert torch.equal(ours.wav, expected.wav)
        assert ours.info.description == expected.info.description
        assert ours.info.seek_time == expected.info.seek_time


@pytest.fixture
def mixed_folder(folder, tmp_path):
    """Two good recordings among nine that cannot be used, each in its own way."""
    bad = {
        "missing.wav": None,
        "noise.wav": b"not audio at all" * 100,
        "short.flac": None,
        "empty.wav": np.zeros(0, np.float32),
        "silent.wav": np.zeros(RATE, np.float32),
        "quiet.wav": np.full(RATE, 5e-5, np.float32),
        "nan.wav": np.full(RATE, np.nan, np.float32),
        "mute.wav": np.full(RATE, 0.5, np.float32),
        "lie.wav": np.full(800, 0.5, np.float32),
    }
    rows = []
    for name, content in bad.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            soundfile.write(path, content, RATE, "FLOAT")
        if name != "mute.wav":
            path.with_suffix(".json").write_text('{"description": "x"}')
        rows.append(original_row(path, 30.0 if name == "lie.wav" else 1.0))
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)
    soundfile.write(tmp_path / "short.flac", noise, RATE)
    content = (tmp_path / "short.flac").read_bytes()
    (tmp_path / "short.flac").write_bytes(content[:60] + bytes(len(content) - 60))
    for number in (0, 1):
        for suffix in (".wav", ".json"):
            shutil.copy(folder / f"noise-{number}{suffix}", tmp_path)
        rows.append(original_row(tmp_path / f"noise-{number}.wav", SECONDS[number]))
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_what_cannot_be_used_is_skipped_and_reported(mixed_folder):
    data = dataset(
        read_manifest(mixed_folder), sample_on_duration=False, max_read_retry=200, num_samples=60
    )
    items = [data.read(0, index) for index in range(60)]
    assert {item.info.path[-11:] for item in items} == {"noise-0.wav", "noise-1.wav"}
    skipped = [skip for item in items for skip in item.skipped]
    reasons = {skip.path.rsplit("/")[-1]: (skip.reason, skip.silent) for skip in skipped}
    assert reasons["missing.wav"][0].startswith("FileNotFoundError: ")
    assert reasons["noise.wav"][0].startswith("AudioFileError: cannot read ")
    assert reasons["short.flac"][0].startswith("AudioFileError: cannot read ")
    assert reasons["empty.wav"] == ("DataError: ends before the 1.0 s of the manifest", False)
    assert reasons["silent.wav"] == ("silent, below -80.0 dBFS", True)
    assert reasons["quiet.wav"] == ("silent, below -80.0 dBFS", True)
    assert reasons["nan.wav"] == ("DataError: has NaN or infinite samples", False)
    assert reasons["mute.wav"][0].endswith("has no description in the manifest or its JSON file")
    assert reasons["lie.wav"] == ("DataError: ends before the 30.0 s of the manifest", False)
    assert len(reasons) == 9
    again = [data.read(0, index) for index in range(60)]
    assert [item.info for item in again] == [item.info for item in items]


def test_only_bad_recordings_end_in_an_error(mixed_folder):
    manifest = read_manifest(mixed_folder).select(range(9))
    for changes in ({}, {"permutation_on_files": True}, {"segment_duration": None}):
        data = dataset(manifest, max_read_retry=5, **changes)
        with pytest.raises(DataError, match=r"none of 5 draws \(max_read_retry\) for sample 2"):
            data.read(0, 2)


def test_silence_and_missing_descriptions_may_be_wanted(mixed_folder):
    manifest = read_manifest(mixed_folder)
    silent = dataset(manifest.select([4]), silence_db=None).read(0, 0)
    assert not silent.wav.any() and silent.skipped == []
    mute = dataset(manifest.select([7]), require_description=False).read(0, 0)
    assert mute.info.description is None


def test_durations_are_filtered(manifest):
    data = dataset(manifest, min_audio_duration=0.8, max_audio_duration=2.0)
    assert [meta.duration for meta in data.manifest] == [1.0, 2.0]
    with pytest.raises(InvalidInputError, match="min_audio_duration 9 .* leave no recording"):
        dataset(manifest, min_audio_duration=9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segment_duration": 0.0}, "segment_duration must be at least one frame, got 0.0"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"min_segment_ratio": 1.5}, "min_segment_ratio must lie in 0..1, got 1.5"),
        ({"shuffle_seed": -1}, "shuffle_seed must be at least 0, got -1"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        replace(CONFIG, **changes)


def test_weights_that_are_all_zero(manifest):
    with pytest.raises(InvalidInputError, match="must not be all 0"):
        dataset(unreal([1.0, 2.0], [0, 0]))
