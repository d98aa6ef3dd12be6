"""The corpus from packages, with packages made here."""

import hashlib
import re
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from audiogen_fast.errors import DataError, InvalidInputError
from audiogen_fast.training.corpus import build as build_module
from audiogen_fast.training.corpus.build import (
    CAPTIONS,
    build,
    is_held_out,
    known_packages,
    split_of,
    trimmed,
)
from audiogen_fast.training.corpus.containers import (
    members,
    read_c4group,
    read_openttd,
    read_qt_resources,
)
from audiogen_fast.training.corpus.packages import (
    FREE,
    FREE_TOO,
    LARGE_PACKAGES,
    OTHER_PACKAGES,
    PACKAGES,
    CaptionRules,
)
from audiogen_fast.training.corpus.subset import SUBSET, subset
from audiogen_fast.training.data import read_manifest
from audiogen_fast.training.data.manifest import write_manifest

BY_NAME = {package.name: package for package in (*PACKAGES, *OTHER_PACKAGES, *LARGE_PACKAGES)}
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
License: GPL-2+

Files: base/sound/footsteps/*
 base/sound/x.ogg
License: CC-BY-SA-3.0
"""


def wav_bytes(tmp_path, samples, rate=16_000):
    path = tmp_path / "sound.wav"
    soundfile.write(path, samples, rate, "PCM_16")
    return path.read_bytes()


def tone(seconds=0.5, rate=16_000, step=0.05):
    return np.sin(np.arange(int(seconds * rate)) * step) * 0.5


def test_openttd_container():
    title, wav = b'"Splat". License: Zero\0', b"RIFFxxxx"
    first = 16
    body = bytes([len(title)]) + title + wav
    table = struct.pack("<IIII", first, len(wav), first + len(body), len(wav))
    (one, two) = read_openttd(table + body + body)
    assert (one.name, one.content, one.note) == ("00.wav", wav, '"Splat". License: Zero')
    assert (two.name, two.content) == ("01.wav", wav)
    package = BY_NAME["openttd-opensfx"]
    assert package.licence_of(one, "") == "CC0-1.0" and package.credit_of(one) == '"Splat".'


def c4group(files):
    """Files and, as dictionaries, groups in them."""
    header = bytearray(204)
    header[:25] = b"RedWolf Design GrpFolder\0"
    struct.pack_into("<i", header, 36, len(files))
    for place in range(0, 202, 3):
        header[place], header[place + 2] = header[place + 2], header[place]
    table, body = b"", b""
    for name, content in files.items():
        group = isinstance(content, dict)
        content = c4group(content) if group else content
        entry = bytearray(316)
        entry[: len(name)] = name.encode()
        struct.pack_into("<iiiii", entry, 260, 0, group, len(content), 0, len(body))
        table, body = table + bytes(entry), body + content
    return bytes(byte ^ 237 for byte in header) + table + body


def test_openclonk_container():
    packer = zlib.compressobj(wbits=31)
    inner = {"Tree.ocg": {"Chop1.ogg": b"chop"}, "a.txt": b"text"}
    packed = packer.compress(c4group(inner)) + packer.flush()
    packed = b"\x1e\x8c" + packed[2:]
    assert read_c4group(packed) == {"Tree.ocg/Chop1.ogg": b"chop", "a.txt": b"text"}
    with pytest.raises(DataError, match="lacks its header"):
        read_c4group(bytes(600))


def qt_resources():
    """Folder `a` with a plain and a compressed file, and one that needs zstd."""
    names, places = b"", []
    for name in ("a", "plain.ogg", "packed.ogg", "zstd.ogg"):
        places.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    contents = (b"plain", struct.pack(">I", 6) + zlib.compress(b"packed"), b"?")
    data, offsets = b"", []
    for content in contents:
        offsets.append(len(data))
        data += struct.pack(">I", len(content)) + content
    nodes = struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHII", places[0], 2, 3, 2)
    for place, flags, offset in zip(places[1:], (0, 1, 4), offsets, strict=True):
        nodes += struct.pack(">IHHHI", place, flags, 0, 0, offset)
    start = 20
    header = struct.pack(">IIII", 1, start, start + len(nodes), start + len(nodes) + len(data))
    return b"qres" + header + nodes + data + names


def test_qt_container():
    assert read_qt_resources(qt_resources()) == {"a/plain.ogg": b"plain", "a/packed.ogg": b"packed"}
    with pytest.raises(DataError, match="magic number"):
        read_qt_resources(b"qresx"[::-1] + bytes(40))
    circle = bytearray(qt_resources())
    struct.pack_into(">I", circle, 20 + 14 + 10, 0)  # the folder's first child is the root
    with pytest.raises(DataError, match="a node twice"):
        read_qt_resources(bytes(circle))


def test_splits():
    """Held-out captions are nowhere else; other licences only serve to judge."""
    captions = [f"caption {n}" for n in range(200)]
    rows = [(c, split_of(c, f"{c} {n}.wav", "CC0-1.0")) for c in captions for n in range(10)]
    shares = Counter(split for _, split in rows)
    assert 0.72 < shares["train", ""] / len(rows) < 0.79
    assert 0.03 < shares["test", "caption"] / len(rows) < 0.10
    assert 0.09 < shares["test", "sound"] / len(rows) < 0.14
    assert 0.07 < shares["metric", ""] / len(rows) < 0.12
    unseen = {caption for caption, split in rows if split == ("test", "caption")}
    assert unseen.isdisjoint(c for c, split in rows if split != ("test", "caption"))
    assert split_of(min(unseen), "x.wav", "GPL-2+") == ("metric", "")


def test_packages_are_pinned():
    known = known_packages()
    assert sorted(name.split("_")[0] for name in known) == sorted(BY_NAME)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in known.values())


def test_the_small_copy():
    """Every sound of the source folder is free, credited, whole, and in the split it belongs in."""
    manifest = read_manifest(SUBSET)
    assert len(manifest) == 1069
    credits = (SUBSET / "ATTRIBUTION.md").read_text("utf-8")
    for meta in manifest:
        row = meta.extra
        assert row["licence"] in FREE and meta.id in credits
        assert (row["split"], row.get("held_out", "")) == split_of(
            row["caption"], row["member"], row["licence"]
        )
        assert soundfile.info(meta.path).duration == pytest.approx(meta.duration, abs=1e-3)
        assert meta.duration <= 4 and soundfile.info(meta.path).samplerate == 16_000
    wav, _ = soundfile.read(manifest[0].path)
    assert np.isfinite(wav).all() and 0.3 < np.abs(wav).max() < 1.3


def test_a_small_copy_is_made(tmp_path):
    """Rows of a corpus that are not free, were recorded at a low rate, or are too many."""
    rows = []
    for number in range(12):
        name = f"{number}.flac"
        soundfile.write(tmp_path / name, tone(5 if number == 0 else 0.5), 16_000, "PCM_16")
        rows.append(
            {
                "path": name,
                "caption": "a tone",
                "duration": 5 if number == 0 else 0.5,
                "sample_rate": 16_000,
                "licence": "GPL-2+" if number == 1 else "CC0-1.0",
                "native_sample_rate": 11_025 if number == 2 else 44_100,
                **dict.fromkeys(("source_package", "source_version", "member", "credit"), name),
                "split": "train",
            }
        )
    write_manifest(tmp_path / "manifest.csv", rows)
    kept = subset(tmp_path, tmp_path / "out")
    assert [row["path"] for row in kept] == [f"audio/{n}.opus" for n in (0, *range(3, 10))]
    first = read_manifest(tmp_path / "out")[0]
    wav, rate = soundfile.read(first.path)
    assert rate == 16_000 and len(wav) == 64_000 and first.duration == 4
    assert np.corrcoef(wav, tone(5)[:64_000])[0, 1] > 0.98


def test_every_rule_can_be_used():
    rules = CaptionRules(CAPTIONS)
    assert set(rules.rules) == set(BY_NAME)
    for package, entries in rules.rules.items():
        for pattern, caption in entries:
            assert caption == "-" or re.fullmatch(r"[a-z0-9{}' ,-]+", caption), (package, caption)
            assert ("{1}" in caption) <= (pattern.groups >= 1)
    assert rules.caption("openttd-opensfx", "02.wav") == "a wet muddy splat"
    assert rules.caption("openttd-opensfx", "00.wav") is None
    assert rules.caption("openttd-opensfx", "unknown") is None


def test_sounds_are_trimmed(tmp_path):
    silence = np.zeros(8000)
    padded = np.concatenate([silence, tone(), silence])
    (piece,), rate = trimmed(wav_bytes(tmp_path, padded), 16_000)
    assert rate == 16_000
    assert piece.dtype == np.int16 and abs(len(piece) - 8000) < 1000
    assert abs(np.abs(piece).max() - 0.89 * 32767) < 20
    assert trimmed(wav_bytes(tmp_path, silence), 16_000) == ([], 16_000)
    assert trimmed(wav_bytes(tmp_path, tone(0.1)), 16_000) == ([], 16_000)
    long, rate = trimmed(wav_bytes(tmp_path, tone(25, 8000), 8000), 16_000)
    assert [len(piece) for piece in long] == [160_000, 160_000] and rate == 8000
    short, _ = trimmed(wav_bytes(tmp_path, tone(11)), 16_000)
    assert [len(piece) for piece in short] == [160_000]


def package_tree(tmp_path, name, copyright):
    """The folder of a package without sounds."""
    tree = tmp_path / "tree" / name
    documents = tree / "usr/share/doc" / name
    documents.mkdir(parents=True)
    (documents / "copyright").write_text(copyright)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1.0-1\nArchitecture: all\nMaintainer: x <x@y.z>\n"
        "Description: x\n"
    )
    return tree


def build_package(tree, folder):
    folder.mkdir(exist_ok=True)
    deb = folder / f"{tree.name}_1.0-1_all.deb"
    command = ["dpkg-deb", "--build", "--root-owner-group", str(tree), str(deb)]
    subprocess.run(command, check=True, capture_output=True)
    return deb


@needs_dpkg
def test_a_corpus_from_a_package(tmp_path, monkeypatch):
    tree = package_tree(tmp_path, "ufoai-sound", COPYRIGHT)
    sounds = {
        "sound/footsteps/gravel1.wav": tone(0.5, step=0.1),
        "sound/footsteps/gravel2.wav": tone(0.5, step=0.1),  # the same once more
        "sound/footsteps/gravel3.wav": tone(0.6, step=0.2),
        "sound/other/hovernet.wav": tone(0.6, step=0.3),
        "sound/footsteps/zzz.wav": tone(0.6, step=0.4),
    }
    with zipfile.ZipFile(tree / "usr/share/0snd.pk3", "w") as archive:
        for name, samples in sounds.items():
            archive.writestr(name, wav_bytes(tmp_path, samples))
        archive.writestr("sound/footsteps/gravel5.wav", b"no sound")
    debs = tmp_path / "debs"
    deb = build_package(tree, debs)
    assert {m.name for m in members(deb)} >= set(sounds)

    caption = CaptionRules(CAPTIONS).caption("ufoai-sound", "sound/footsteps/gravel1.wav")
    assert "gravel" in caption
    ufo = [BY_NAME["ufoai-sound"]]
    with pytest.raises(InvalidInputError, match="ufoai-sound_1.0-1_all.deb, of which no checksum"):
        build(tmp_path / "out", debs, ufo, 16_000)
    rows = build(tmp_path / "out", debs, ufo, 16_000, any_version=True)
    assert [row["member"] for row in rows] == [
        "sound/footsteps/gravel1.wav",
        "sound/footsteps/gravel3.wav",
    ]
    manifest = read_manifest(tmp_path / "out")
    assert [meta.extra["caption"] for meta in manifest] == [caption] * 2
    for meta, row in zip(manifest, rows, strict=True):
        assert soundfile.info(meta.path).duration == pytest.approx(meta.duration)
        assert meta.extra["licence"] == "CC-BY-SA-3.0" and meta.extra["source_version"] == "1.0-1"
        assert row["member"] in (tmp_path / "out" / "ATTRIBUTION.md").read_text()
    assert build(tmp_path / "again", debs, ufo, 16_000, any_version=True) == rows
    more = build(tmp_path / "others", debs, ufo, 16_000, others=True, any_version=True)
    assert [row for row in more if row["licence"] in FREE] == rows
    (other,) = (row for row in more if row["licence"] not in FREE)
    assert (other["member"], other["split"]) == ("sound/other/hovernet.wav", "metric")

    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    checksums = tmp_path / "checksums.txt"
    monkeypatch.setattr(build_module, "CHECKSUMS", checksums)
    checksums.write_text(f"{digest}  {deb.name}\n")
    assert build(tmp_path / "known", debs, ufo, 16_000) == rows
    checksums.write_text(f"{'0' * 64}  {deb.name}\n")
    with pytest.raises(DataError, match=f"SHA-256 is {digest}, and not 000"):
        build(tmp_path / "known", debs, ufo, 16_000)
    with pytest.raises(InvalidInputError, match="has no scratch_"):
        build(tmp_path / "none", debs, [BY_NAME["scratch"]], 16_000)
    deb.write_bytes(deb.read_bytes()[:200])
    with pytest.raises(DataError, match="ufoai-sound_1.0-1_all.deb"):
        list(members(deb))


@needs_dpkg
def test_large_packages_only_teach(tmp_path, monkeypatch):
    """All their sounds are learnt from, under more licences, but for captions held out elsewhere;
    `others` adds nothing."""
    names = [f"audio/Wave{n}.wav" for n in range(40)]  # a fifth of other packages' would judge
    tree = package_tree(tmp_path, "0ad-data", "")
    (tree / "usr/mods/public").mkdir(parents=True)
    with zipfile.ZipFile(tree / "usr/mods/public/public.zip", "w") as archive:
        for number, name in enumerate((*names, "audio/voice.wav", "audio/held.wav", "else.wav")):
            samples = tone(0.3, step=0.05 + number / 100)
            archive.writestr(name, wav_bytes(tmp_path, samples))
    held = next(c for c in map("caption {}".format, range(200)) if is_held_out(c))
    captions = tmp_path / "captions.tsv"
    rules = (("(WAVE)", "an ocean {1}"), ("voice", "-"), ("held", held), (".", "a noise"))
    captions.write_text("".join(f"0ad-data\t{rule}\t{caption}\n" for rule, caption in rules))
    monkeypatch.setattr(build_module, "CAPTIONS", captions)
    build_package(tree, tmp_path / "debs")
    package = BY_NAME["0ad-data"]
    for licence in (package.licence, *FREE_TOO):
        free = [replace(package, licence=licence)]
        rows = build(tmp_path / "out", tmp_path / "debs", free, 16_000, any_version=True)
        assert sorted(row["member"] for row in rows) == sorted(names)
        assert {(r["split"], r["held_out"], r["caption"]) for r in rows} == {
            ("train", "", "an ocean wave")
        }
    other = [replace(package, licence="GPL-2+")]
    assert build(tmp_path / "no", tmp_path / "debs", other, 16_000, True, any_version=True) == []
    for licence in FREE_TOO:
        judged = [replace(package, licence=licence, held_out=True)]
        assert build(tmp_path / "no", tmp_path / "debs", judged, 16_000, any_version=True) == []
    judged = [replace(package, held_out=True)]
    rows = build(tmp_path / "all", tmp_path / "debs", judged, 16_000, any_version=True)
    assert {row["split"] for row in rows} == {"train", "metric", "test"}
