"""The corpus from packages, with packages made here."""

import re
import shutil
import struct
import subprocess
import zipfile
import zlib

import numpy as np
import pytest
import soundfile

from audiogen_fast.errors import DataError, InvalidInputError
from audiogen_fast.training.corpus.build import CAPTIONS, build, trimmed
from audiogen_fast.training.corpus.containers import members, read_c4group, read_openttd
from audiogen_fast.training.corpus.packages import PACKAGES, CaptionRules
from audiogen_fast.training.data import read_manifest

BY_NAME = {package.name: package for package in PACKAGES}
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
    (piece,) = trimmed(wav_bytes(tmp_path, np.concatenate([silence, tone(), silence])), 16_000)
    assert piece.dtype == np.int16 and abs(len(piece) - 8000) < 1000
    assert abs(np.abs(piece).max() - 0.89 * 32767) < 20
    assert trimmed(wav_bytes(tmp_path, silence), 16_000) == []
    assert trimmed(wav_bytes(tmp_path, tone(0.1)), 16_000) == []
    long = trimmed(wav_bytes(tmp_path, tone(25, 8000), 8000), 16_000)
    assert [len(piece) for piece in long] == [160_000, 160_000]
    short = trimmed(wav_bytes(tmp_path, tone(11)), 16_000)
    assert [len(piece) for piece in short] == [160_000]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_corpus_from_a_package(tmp_path):
    tree = tmp_path / "tree"
    documents = tree / "usr/share/doc/ufoai-sound"
    documents.mkdir(parents=True)
    (documents / "copyright").write_text(COPYRIGHT)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: ufoai-sound\nVersion: 1.0-1\nArchitecture: all\nMaintainer: x <x@y.z>\n"
        "Description: x\n"
    )
    sounds = {
        "sound/footsteps/gravel1.wav": tone(0.5, step=0.1),
        "sound/footsteps/gravel2.wav": tone(0.5, step=0.1),  # the same once more
        "sound/footsteps/gravel3.wav": tone(0.6, step=0.2),
        "sound/other/gravel4.wav": tone(0.6, step=0.3),
        "sound/footsteps/zzz.wav": tone(0.6, step=0.4),
    }
    with zipfile.ZipFile(tree / "usr/share/0snd.pk3", "w") as archive:
        for name, samples in sounds.items():
            archive.writestr(name, wav_bytes(tmp_path, samples))
        archive.writestr("sound/footsteps/gravel5.wav", b"no sound")
    debs = tmp_path / "debs"
    debs.mkdir()
    deb = debs / "ufoai-sound_1.0-1_all.deb"
    command = ["dpkg-deb", "--build", "--root-owner-group", str(tree), str(deb)]
    subprocess.run(command, check=True, capture_output=True)
    assert {m.name for m in members(deb)} >= set(sounds)

    caption = CaptionRules(CAPTIONS).caption("ufoai-sound", "sound/footsteps/gravel1.wav")
    assert "gravel" in caption
    rows = build(tmp_path / "out", debs, [BY_NAME["ufoai-sound"]], 16_000)
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
    assert build(tmp_path / "again", debs, [BY_NAME["ufoai-sound"]], 16_000) == rows
    with pytest.raises(InvalidInputError, match="has no scratch_"):
        build(tmp_path / "none", debs, [BY_NAME["scratch"]], 16_000)
    deb.write_bytes(deb.read_bytes()[:200])
    with pytest.raises(DataError, match="ufoai-sound_1.0-1_all.deb"):
        list(members(deb))
