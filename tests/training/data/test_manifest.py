"""Manifests as they are read and written."""

import csv
import gzip
import json
import os

import numpy as np
import pytest

from audiogen_fast.errors import DataError, InvalidInputError
from audiogen_fast.training.data import AudioMeta, read_manifest, write_manifest

ROWS = [
    {
        "path": "/sounds/a.wav",
        "duration": 1.5,
        "sample_rate": 44100,
        "amplitude": None,
        "weight": None,
        "info_path": None,
    },
    {
        "path": "b/ä.flac",
        "duration": 0.25,
        "sample_rate": 8000,
        "amplitude": 0.5,
        "weight": 2.5,
        "info_path": "meta.zip:b.json",
        "genre": "rain",
    },
]


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_lines_of_the_original_are_read_unchanged(tmp_path):
    (tmp_path / "data.jsonl").write_text(lines(ROWS) + "\n")
    manifest = read_manifest(tmp_path)
    assert len(manifest) == 2
    assert manifest[0] == AudioMeta("/sounds/a.wav", 1.5, "/sounds/a.wav", 44100)
    assert manifest[1] == AudioMeta(
        path=str(tmp_path / "b/ä.flac"),
        duration=0.25,
        id="b/ä.flac",
        sample_rate=8000,
        amplitude=0.5,
        weight=2.5,
        info_path=str(tmp_path / "meta.zip:b.json"),
        extra={"genre": "rain"},
    )
    assert list(manifest.durations) == [1.5, 0.25]
    assert list(manifest.weights) == [1.0, 2.5]
    assert [meta.id for meta in manifest.select([1])] == ["b/ä.flac"]


def test_a_folder_is_searched_in_the_order_of_the_original(tmp_path):
    with pytest.raises(InvalidInputError, match="holds none of data.jsonl, data.jsonl.gz"):
        read_manifest(tmp_path)
    (tmp_path / "data.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[:1]).encode()))
    assert [meta.duration for meta in read_manifest(tmp_path)] == [1.5]
    (tmp_path / "data.jsonl").write_text(lines(ROWS[1:]))
    assert [meta.duration for meta in read_manifest(tmp_path)] == [0.25]


def test_csv_and_conditions(tmp_path):
    path = tmp_path / "sounds.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption", "duration", "weight", "split"])
        writer.writerow(["a.flac", 'a "loud", wet\nsplat', "0.79", "", "train"])
        writer.writerow(["b.flac", "wind", "2", "0.5", "test"])
    manifest = read_manifest(path)
    assert manifest[0].extra == {"caption": 'a "loud", wet\nsplat', "split": "train"}
    assert (manifest[0].path, manifest[0].duration, manifest[0].weight) == (
        str(tmp_path / "a.flac"),
        0.79,
        None,
    )
    assert [meta.id for meta in read_manifest(path, where={"split": "test"})] == ["b.flac"]
    with pytest.raises(InvalidInputError, match="at least one recording with {'split': 'valid'}"):
        read_manifest(path, where={"split": "valid"})


def test_relative_paths(tmp_path, monkeypatch):
    """The original's are relative to the working folder, ours to the manifest."""
    sounds = tmp_path / "elsewhere" / "b"
    sounds.mkdir(parents=True)
    (sounds / "x.wav").write_bytes(b"")
    (tmp_path / "data.jsonl").write_text(lines([ROWS[1] | {"path": "b/x.wav"}]))
    assert read_manifest(tmp_path)[0].path == str(tmp_path / "b/x.wav")
    monkeypatch.chdir(sounds.parent)
    assert read_manifest(tmp_path)[0].path == str(sounds / "x.wav")
    assert read_manifest(tmp_path, root="/other")[0].path == "/other/b/x.wav"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.wav").write_bytes(b"")
    assert read_manifest(tmp_path)[0].path == str(tmp_path / "b/x.wav")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "must be a JSON object"),
        ("[1]", "must be a JSON object, got"),
        ('{"duration": 1}', "path must be a text, got None"),
        ('{"path": "", "duration": 1}', "path must be a text, got ''"),
        ('{"path": "a"}', "duration is missing"),
        ('{"path": "a", "duration": "long"}', "duration must be a finite number.*got 'long'"),
        ('{"path": "a", "duration": null}', "duration must be a finite number.*got None"),
        ('{"path": "a", "duration": NaN}', "duration must be a finite number"),
        ('{"path": "a", "duration": true}', "duration must be a finite number"),
        ('{"path": "a", "duration": 1, "weight": -1}', "weight must be .* at least 0, got -1"),
        ('{"path": "a", "duration": 1, "info_path": "a:b:c"}', ".*with one colon, got 'a:b:c'"),
    ],
)
def test_mistakes_name_the_line(line, message, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(lines(ROWS) + line + "\n")
    with pytest.raises(InvalidInputError, match=f"data.jsonl, line 3: {message}"):
        read_manifest(path)


def test_mistakes_in_csv_name_the_line(tmp_path):
    path = tmp_path / "m.csv"
    for row, message in [
        ("a.wav,long", "duration must be a number, got 'long'"),
        ("a.wav,1,2", "must have 2 cells, has more"),
        ("a.wav", "duration is missing"),
    ]:
        path.write_text(f"path,duration\nb.wav,1\n{row}\n")
        with pytest.raises(InvalidInputError, match=f"m.csv, line 3: {message}"):
            read_manifest(path)


def test_damaged_or_missing(tmp_path):
    packed = gzip.compress(lines(ROWS * 50).encode())
    path = tmp_path / "data.jsonl.gz"
    for content in (packed[:-20], packed[:40] + b"\0\0\0" + packed[43:], b"no gzip"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            read_manifest(path)
    with pytest.raises(InvalidInputError, match="no such file"):
        read_manifest(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InvalidInputError, match="at least one recording"):
        read_manifest(tmp_path / "empty.jsonl")


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data.csv"])
def test_what_is_written_is_read_again(name, tmp_path):
    path = tmp_path / "new" / name
    write_manifest(path, ROWS)
    manifest = read_manifest(path, root="/r")
    assert [(m.id, m.duration, m.weight) for m in manifest] == [
        ("/sounds/a.wav", 1.5, None),
        ("b/ä.flac", 0.25, 2.5),
    ]
    assert manifest[1].extra == {"genre": "rain"}
    assert os.listdir(path.parent) == [name]
    first = path.read_bytes()
    write_manifest(path, ROWS)
    assert path.read_bytes() == first
    with pytest.raises(InvalidInputError, match="must end in .jsonl"):
        write_manifest(tmp_path / "data.txt", ROWS)


def test_many_rows_stay_small(tmp_path):
    """Rows are kept as text, so that workers can copy a million of them."""
    rows = [ROWS[0] | {"path": f"/sounds/{i:06d}.wav", "duration": i + 1} for i in range(2000)]
    write_manifest(tmp_path / "data.jsonl", rows)
    manifest = read_manifest(tmp_path)
    kept = sum(v.nbytes for v in vars(manifest).values() if isinstance(v, np.ndarray))
    assert kept < 180 * len(rows)
    assert manifest[1999].path == "/sounds/001999.wav"
    assert manifest.durations.sum() == 2000 * 2001 / 2
