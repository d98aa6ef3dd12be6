"""Recordings and generated sounds that are faulty, unmatched or badly described."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

from audiogen_fast.data.audio import audio_read, audio_write
from audiogen_fast.errors import InvalidInputError
from audiogen_fast.evaluation.clips import Clip, ClipSet, inspected
from audiogen_fast.evaluation.sources import match, read_generated, read_reference, same


@pytest.fixture
def bell(project_root):
    """1.31 s of a recording at 16 kHz."""
    path = next((project_root / "tests" / "data" / "recordings").glob("openttd-opensfx-36-*"))
    wav, rate = audio_read(path)
    assert rate == 16000
    return wav[0]


def kinds(found, left_out=None):
    return {
        fault.clip: fault.kind
        for fault in found.faults
        if left_out is None or fault.left_out == left_out
    }


def write(path, wav, rate=16000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.asarray(wav), rate, **options)


@pytest.fixture
def faulty(bell, tmp_path):
    """A folder with a sound of every kind of fault, and good ones."""
    folder = tmp_path / "sounds"
    write(folder / "good.wav", bell)
    write(folder / "silent.wav", np.zeros(16000))
    write(folder / "faint.wav", bell * 1e-5, subtype="FLOAT")
    bad = bell.clone()
    bad[500] = float("nan")
    write(folder / "nan.wav", bad, subtype="FLOAT")
    bad[500] = float("inf")
    write(folder / "infinite.wav", bad, subtype="FLOAT")
    write(folder / "short.wav", bell[:10])
    write(folder / "slow.wav", bell[::2], 8000)
    write(folder / "again.wav", bell)
    write(folder / "whole.flac", bell[: len(bell) // 2])
    content = (folder / "whole.flac").read_bytes()
    (folder / "cut.flac").write_bytes(content[: len(content) // 2])
    (folder / "text.wav").write_text("no sound at all")
    (folder / "empty.wav").write_bytes(b"")
    return folder


def test_every_fault_is_named_and_left_out(faulty):
    found = read_generated("system", faulty)
    assert kinds(found, left_out=True) == {
        "silent.wav": "silent",
        "faint.wav": "silent",
        "nan.wav": "not finite",
        "infinite.wav": "not finite",
        "short.wav": "too short",
        "cut.flac": kinds(found)["cut.flac"],
        "text.wav": "unreadable",
        "empty.wav": "unreadable",
    }
    assert kinds(found)["cut.flac"] in ("unreadable", "truncated")
    assert sorted(clip.name for clip in found.clips) == [
        "again.wav",
        "good.wav",
        "slow.wav",
        "whole.flac",
    ]
    details = {fault.clip: fault.detail for fault in found.faults if fault.left_out}
    assert "10 samples" in details["short.wav"] and "0.1 s" in details["short.wav"]


def test_what_is_odd_is_named_and_counts(faulty):
    found = read_generated("system", faulty)
    odd = {(f.clip, f.kind) for f in found.faults if not f.left_out}
    assert ("slow.wav", "other rate") in odd
    assert ("good.wav", "same audio") in odd  # again.wav comes first
    assert {clip for clip, kind in odd if kind == "no caption"} == {c.name for c in found.clips}


def test_a_clip_of_another_rate_is_resampled(bell, tmp_path):
    write(tmp_path / "a.wav", bell)
    write(tmp_path / "b.wav", bell[::2], 8000)
    found = read_generated("system", tmp_path)
    waves = [clip.read(16000) for clip in found.clips]
    assert [len(wave) for wave in waves] == [len(bell), len(bell) // 2 * 2 + len(bell) % 2]
    assert [clip.sample_rate for clip in found.clips] == [16000, 8000]


def test_stereo_is_averaged(bell, tmp_path):
    write(tmp_path / "a.wav", torch.stack([bell, torch.zeros_like(bell)], dim=1), subtype="FLOAT")
    (clip,) = read_generated("system", tmp_path).clips
    torch.testing.assert_close(clip.read(16000), bell / 2)


def test_a_file_shorter_than_its_manifest_says_is_truncated(bell, tmp_path):
    write(tmp_path / "a.wav", bell)
    write(tmp_path / "b.wav", bell * 0.5)
    lines = "path,caption,duration\na.wav,a bell,1.31\nb.wav,a bell,2.62\n"
    (tmp_path / "manifest.csv").write_text(lines)
    found = read_reference(tmp_path)
    assert [clip.name for clip in found.clips] == ["a.wav"]
    assert kinds(found) == {"b.wav": "truncated"}
    assert "2.62 s" in found.faults[0].detail


def test_references_with_missing_files_captions_and_names_that_come_twice(bell, tmp_path):
    for name, gain in (("a.wav", 1), ("b.wav", 0.9), ("c.wav", 0.8), ("d.wav", 0.7)):
        write(tmp_path / name, bell * gain)
    (tmp_path / "b.json").write_text("{not json")
    (tmp_path / "c.json").write_text(json.dumps({"description": ["A Bell", "ringing"]}))
    (tmp_path / "d.txt").write_text("a low bell\n")
    rows = [{"path": f"{n}.wav", "duration": 1.31} for n in "abcda"]
    rows.append({"path": "missing.wav", "duration": 1.0, "caption": "nothing"})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_reference(tmp_path)
    captions = {clip.name: clip.caption for clip in found.clips}
    assert captions == {"a.wav": None, "b.wav": None, "c.wav": "A Bell", "d.wav": "a low bell"}
    named = {(f.clip, f.kind, f.left_out) for f in found.faults}
    assert named == {
        ("a.wav", "no caption", False),
        ("b.wav", "no caption", False),
        ("a.wav", "duplicate", True),
        ("missing.wav", "unreadable", True),
    }
    assert any("no valid JSON" in f.detail for f in found.faults if f.clip == "b.wav")


def test_where_takes_rows(project_root):
    manifest = project_root / "training" / "corpus" / "subset"
    found = read_reference(manifest, {"split": "test"})
    assert len(found) == 200 and not [f for f in found.faults if f.left_out]
    with pytest.raises(InvalidInputError, match="at least one recording.*nowhere"):
        read_reference(manifest, {"split": "nowhere"})


def test_an_empty_folder_is_a_fault_and_a_missing_one_an_error(tmp_path):
    found = read_generated("system", tmp_path)
    assert len(found) == 0
    assert [(f.kind, f.clip) for f in found.faults] == [("empty", "")]
    with pytest.raises(InvalidInputError, match="no such folder"):
        read_generated("system", tmp_path / "none")


def test_sounds_of_the_command_line_match_by_caption(bell, tmp_path, project_root):
    from audiogen_fast.cli import main

    checkpoint = project_root / "tests" / "data" / "golden" / "plain" / "checkpoint"
    folder = tmp_path / "made"
    command = ["generate", "a Bell", "rain", "a bell", "a bell", "--duration", "0.5", "--quiet"]
    assert main([*command, "--model", str(checkpoint), "--output", str(folder)]) == 0
    (folder / "01-rain.wav").unlink()
    reference = ClipSet(
        "reference",
        [Clip(f"r{i}", text, bell) for i, text in enumerate(["a bell", "a  bell", "rain", None])],
    )
    made = read_generated("system", folder)
    assert kinds(made, left_out=True)["01-rain.wav"] == "unreadable"
    found = match(made, reference)
    assert [(clip.caption, clip.reference) for clip in found.clips] == [
        ("a Bell", "r0"),
        ("a bell", "r1"),
        ("a bell", "r0"),
    ]
    missing = {fault.clip for fault in found.faults if fault.kind == "missing"}
    assert missing == {"r2", "r3"}


def test_names_match_before_captions_and_captions_are_compared(bell):
    reference = ClipSet(
        "reference",
        [Clip("audio/x.opus", "a bell", bell), Clip("audio/y.opus", "rain", bell)],
    )
    clips = [
        Clip("x.wav", None, bell),
        Clip("y.wav", "wind", bell),
        Clip("z.wav", "RAIN", bell),
        Clip("q.wav", "thunder", bell),
    ]
    found = match(ClipSet("system", clips), reference)
    assert [(c.reference, c.caption) for c in found.clips] == [
        ("audio/x.opus", "a bell"),
        ("audio/y.opus", "wind"),
        ("audio/y.opus", "RAIN"),
        (None, "thunder"),
    ]
    assert kinds(found) == {"y.wav": "other caption", "q.wav": "unmatched"}


def test_sounds_of_the_same_name_in_folders_answer_to_their_own_references(bell):
    names = ("dog/001.opus", "rain/001.opus", "wind/001.opus", "wind/bell.opus")
    reference = ClipSet("reference", [Clip(n, n.split("/")[0], bell) for n in names])
    clips = [Clip(f"{n}/001.wav", None, bell) for n in ("rain", "dog", "wind")]
    found = match(ClipSet("system", [*clips, Clip("bell.wav", None, bell)]), reference)
    assert [(c.reference, c.caption) for c in found.clips] == [
        ("rain/001.opus", "rain"),
        ("dog/001.opus", "dog"),
        ("wind/001.opus", "wind"),
        ("wind/bell.opus", "wind"),
    ]
    assert not found.faults


def test_a_bare_name_of_several_references_is_no_answer_and_is_said(bell):
    names = ("dog/001.opus", "rain/001.opus")
    reference = ClipSet("reference", [Clip(n, n.split("/")[0], bell) for n in names])
    clips = [Clip("001.wav", None, bell), Clip("x/001.wav", "Rain", bell)]
    found = match(ClipSet("system", clips), reference)
    assert [c.reference for c in found.clips] == [None, "rain/001.opus"]
    assert [(f.clip, f.kind) for f in found.faults] == [
        ("001.wav", "ambiguous"),
        ("001.wav", "unmatched"),
        ("x/001.wav", "ambiguous"),
        ("dog/001.opus", "missing"),
    ]
    assert "2 references (dog/001.opus, rain/001.opus)" in found.faults[0].detail
    assert not any(fault.left_out for fault in found.faults)


def test_a_bare_name_is_no_answer_to_what_has_one_already(bell):
    """As with sounds for all classes, and references of one: rain/001 is no dog."""
    reference = ClipSet("reference", [Clip("dog/001.opus", "dog", bell)])
    clips = [Clip("dog/001.wav", None, bell), Clip("rain/001.wav", None, bell)]
    found = match(ClipSet("system", clips), reference)
    assert [c.reference for c in found.clips] == ["dog/001.opus", None]
    assert kinds(found) == {"rain/001.wav": "unmatched"}


def test_names_in_archives_and_names_with_dots(bell):
    names = ("set.zip:dog/1.wav", "set.zip:rain/1.wav", "clip.1", "clip.2")
    reference = ClipSet("reference", [Clip(n, None, bell) for n in names])
    clips = [Clip(n, None, bell) for n in ("rain/1.wav", "dog/1.wav", "clip.2.wav", "clip.1.flac")]
    found = match(ClipSet("system", clips), reference)
    assert [c.reference for c in found.clips] == [
        "set.zip:rain/1.wav",
        "set.zip:dog/1.wav",
        "clip.2",
        "clip.1",
    ]
    assert not found.faults


def test_a_damaged_manifest_of_sounds_is_an_error(tmp_path):
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(InvalidInputError, match="not a manifest"):
        read_generated("system", tmp_path)


def test_waveforms_in_memory_are_looked_at_too(bell):
    clips = [Clip("a", "x", bell, 16000), Clip("b", "x", bell * float("nan"), 16000)]
    found = inspected("made", clips)
    assert [clip.name for clip in found.clips] == ["a"]
    assert found.clips[0].seconds == len(bell) / 16000
    assert kinds(found) == {"b": "not finite"}


def test_captions_are_the_same_whatever_case_and_spaces():
    assert same(" A  Dog\tbarks ") == same("a dog BARKS") != same("a dog bark")


def test_archives_are_read(bell, tmp_path):
    write(tmp_path / "a.wav", bell)
    shutil.make_archive(str(tmp_path / "sounds"), "zip", tmp_path, "a.wav")
    row = {"path": "sounds.zip:a.wav", "duration": 1.31, "caption": "a bell"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    (clip,) = read_reference(tmp_path).clips
    written, _ = audio_read(tmp_path / "a.wav")
    assert clip.read(16000).equal(written[0])
    audio_write(tmp_path / "b", clip.read(16000), 16000)
