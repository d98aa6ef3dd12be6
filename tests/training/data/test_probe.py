"""`audiogen-fast manifest`."""

import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import soundfile

from audiogen_fast.cli import main
from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training.data import read_manifest
from audiogen_fast.training.data.probe import probe_folder


@pytest.fixture
def sounds(recordings, tmp_path):
    """Recordings at two depths and in a tar, a loop of links, and files that are none."""
    folder = tmp_path / "sounds"
    (folder / "deep").mkdir(parents=True)
    files = sorted(recordings.glob("*.flac"))
    shutil.copy(files[0], folder / "deep" / "A.FLAC")
    shutil.copy(files[1], folder / "b.flac")
    with tarfile.open(folder / "c.tar", "w") as tar:
        tar.add(files[2], "x/c.flac")
        tar.add(recordings / "README.md", "x/c.txt")
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "notes.txt").write_text("x")
    (folder / "damaged.wav").write_bytes(b"RIFF")
    (folder / ".hidden.wav").write_bytes(b"RIFF")
    (folder / "broken.tar").write_bytes(b"x" * 600)
    soundfile.write(folder / "empty.wav", np.zeros(0), 8000)
    return folder


def run(capsys, *arguments):
    capsys.readouterr()
    status = main(["manifest", *map(str, arguments), "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_manifest_in_the_layout_of_the_original(sounds, recordings, capsys):
    status, report = run(capsys, sounds)
    assert status == 0 and report["output"] == str(sounds / "data.jsonl")
    rows = [json.loads(line) for line in (sounds / "data.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [
        str(sounds / "b.flac"),
        f"{sounds / 'c.tar'}:x/c.flac",
        str(sounds / "deep" / "A.FLAC"),
    ]
    for row in rows:
        assert list(row)[1:] == ["duration", "sample_rate", "amplitude", "weight", "info_path"]
        assert row["sample_rate"] == 16000 and row["amplitude"] is None
    durations = [soundfile.info(path).duration for path in sorted(recordings.glob("*.flac"))]
    assert [row["duration"] for row in rows] == [durations[1], durations[2], durations[0]]
    assert report["recordings"] == 3
    assert report["audio_seconds"] == pytest.approx(sum(durations), abs=1e-3)
    skipped = {os.path.basename(entry["path"]): entry["reason"] for entry in report["skipped"]}
    assert set(skipped) == {"damaged.wav", "broken.tar", "empty.wav"}
    assert skipped["empty.wav"] == "has no audio"
    assert "cannot read" in skipped["damaged.wav"] and "archive" in skipped["broken.tar"]


def test_relative_paths_move_with_the_recordings(sounds, tmp_path, capsys):
    run(capsys, sounds, "--relative", "--output", sounds / "deep" / "m.jsonl.gz")
    moved = sounds.rename(tmp_path / "moved")
    paths = [meta.path for meta in read_manifest(moved / "deep" / "m.jsonl.gz")]
    assert [os.path.realpath(path) for path in paths] == [
        str(moved / "b.flac"),
        f"{moved / 'c.tar'}:x/c.flac",
        str(moved / "deep" / "A.FLAC"),
    ]


def test_decoding_finds_more(tmp_path):
    tone = np.sin(np.arange(16000) / 9) * 0.25
    soundfile.write(tmp_path / "tone.flac", tone, 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(500), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(500, np.nan), 16000, "FLOAT")
    noise = np.random.default_rng(0).uniform(-1, 1, 16000)
    soundfile.write(tmp_path / "damaged.flac", noise, 16000)
    content = bytearray((tmp_path / "damaged.flac").read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    (tmp_path / "damaged.flac").write_bytes(content)
    believed = probe_folder(tmp_path)
    assert len(believed.rows) == 4 and believed.skipped == []
    found = probe_folder(tmp_path, decode=True, workers=2)
    ((row),) = found.rows
    assert row["duration"] == 1.0 and row["amplitude"] == pytest.approx(0.25, abs=1e-3)
    reasons = {os.path.basename(s.path): s.reason for s in found.skipped}
    assert reasons["silent.wav"] == "silent: its peak is 0.0e+00"
    assert reasons["nan.wav"] == "has NaN or infinite samples"
    assert set(reasons) == {"silent.wav", "nan.wav", "damaged.flac"}


def test_progress_and_order_do_not_depend_on_threads(recordings):
    steps = []
    one = probe_folder(recordings, workers=1)
    many = probe_folder(recordings, workers=5, progress=lambda *step: steps.append(step))
    assert one == many and steps == [(1, 3), (2, 3), (3, 3)]


def test_mistakes(sounds, tmp_path, capsys):
    with pytest.raises(InvalidInputError, match="no such folder"):
        probe_folder(tmp_path / "none")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "x.wav").write_bytes(b"no")
    with pytest.raises(InvalidInputError, match="has none of 1; .*x.wav: cannot read"):
        probe_folder(bad)
    assert run(capsys, sounds)[0] == 0
    assert main(["manifest", str(sounds)]) == 2
    assert "is there already; pass --overwrite" in capsys.readouterr().err
    assert run(capsys, sounds, "--overwrite")[0] == 0
    assert main(["manifest", str(sounds), "--overwrite"]) == 0
    out, err = capsys.readouterr()
    assert "data.jsonl: 3 recordings, 0.00 h" in out and err.count("skipped ") == 3
