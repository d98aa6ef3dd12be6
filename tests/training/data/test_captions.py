"""Where descriptions come from."""

import json
import zipfile

import numpy as np
import pytest

from audiogen_fast.errors import DataError
from audiogen_fast.training.data import AudioMeta
from audiogen_fast.training.data.captions import Captions
from audiogen_fast.training.data.containers import Archives

RNG = np.random.default_rng(0)


def read(captions, meta, rng=RNG):
    return captions.read(meta, Archives(), rng)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" Rain on a Roof\n", "rain on a roof"),
        ("", None),
        ("  ", None),
        ("None", None),
        (None, None),
        ({"a": 1}, None),
        (True, None),
        (7, "7"),
        ([], None),
        (["", None, "Only"], "only"),
    ],
)
def test_texts(value, text):
    meta = AudioMeta("a.wav", 1.0, "a", extra={"description": value})
    assert read(Captions(), meta) == (text, {})


def test_one_of_several_is_drawn():
    meta = AudioMeta("a.wav", 1.0, "a", extra={"description": ["a", "b", "c", ""]})
    found = [read(Captions(), meta)[0] for _ in range(300)]
    counts = [found.count(text) for text in "abc"]
    assert sum(counts) == 300 and min(counts) > 70
    again = [read(Captions(), meta, np.random.default_rng(5))[0] for _ in range(3)]
    assert len(set(again)) == 1


def test_case_stays_if_asked():
    meta = AudioMeta("a.wav", 1.0, "a", extra={"caption": " A Bell", "place": "Rome"})
    assert read(Captions(["place"], lowercase=False), meta) == ("A Bell", {"place": "Rome"})


def test_sources_in_their_order(tmp_path):
    path = tmp_path / "a.v2.wav"
    external = tmp_path / "external"
    external.mkdir()
    captions = Captions(["tempo"], external)
    meta = AudioMeta(str(path), 1.0, "a")
    with pytest.raises(DataError, match="has no description"):
        read(captions, meta)
    assert read(Captions(["tempo"], required=False), meta) == (None, {"tempo": None})

    (tmp_path / "a.v2.txt").write_text("from text\n")
    assert read(captions, meta) == ("from text", {"tempo": None})
    (external / "a.v2.json").write_text('{"description": "external", "tempo": 90}')
    assert read(captions, meta) == ("external", {"tempo": "90"})
    (tmp_path / "a.v2.json").write_text('{"description": "beside"}')
    assert read(captions, meta) == ("beside", {"tempo": None})
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("x/a.json", json.dumps({"description": "archived"}))
    in_zip = AudioMeta(str(path), 1.0, "a", info_path=str(tmp_path / "m.zip:x/a.json"))
    assert read(captions, in_zip) == ("archived", {"tempo": None})
    inline = AudioMeta(str(path), 1.0, "a", extra={"description": "inline"})
    assert read(captions, inline) == ("inline", {"tempo": None})


@pytest.mark.parametrize("text", ["{", "[1]", b"\xff\xfe{"])
def test_damaged_json(text, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match="a.json: is no valid JSON"):
        read(Captions(), AudioMeta(str(tmp_path / "a.wav"), 1.0, "a"))
    path.write_text('{"title": "x"}')
    with pytest.raises(DataError, match="has no description"):
        read(Captions(), AudioMeta(str(tmp_path / "a.wav"), 1.0, "a"))
