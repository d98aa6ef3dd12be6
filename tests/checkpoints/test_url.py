"""Checkpoints behind plain URLs, served on this machine."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch

from audiogen_fast import AudioGen, CheckpointError
from audiogen_fast.models.hub import HubOptions, Place
from audiogen_fast.models.loaders import load_compression_model, load_lm_model


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("AUDIOGEN_FAST_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def serve(hub):
    """Serve folders below `/plain/NAME/`; the URL of the last one."""

    def add(**folders: Path) -> str:
        hub.repositories["plain"] = folders
        hub.log.clear()
        return f"{hub.address}/plain/{list(folders)[-1]}"

    return add


def got(hub) -> list[str]:
    return [path.removeprefix("/plain/") for method, path in hub.log if method == "GET"]


def same(model: AudioGen, folder: Path) -> bool:
    expected = AudioGen.get_pretrained(folder, device="cpu")
    for part in ("lm", "compression_model"):
        state, other = getattr(model, part).state_dict(), getattr(expected, part).state_dict()
        if not all(torch.equal(tensor, other[name]) for name, tensor in state.items()):
            return False
    return True


def test_released_folder(released, serve, hub, cache):
    url = serve(model=released)
    assert same(AudioGen.get_pretrained(url, device="cpu"), released)
    files = ["model/compression_state_dict.bin", "model/state_dict.bin"]
    assert sorted(set(got(hub)) - {"model/config.json"}) == files
    hub.log.clear()
    assert same(AudioGen.get_pretrained(url + "/", device="cpu"), released)
    assert [path for path in got(hub) if path.endswith(".bin")] == []
    hub.log.clear()
    model = AudioGen.get_pretrained(url, device="cpu", local_files_only=True)
    assert same(model, released) and hub.log == []
    assert not list(cache.rglob("*.partial"))


def test_one_file_stands_for_the_model(released, serve, hub, cache):
    url = serve(model=released)
    assert same(AudioGen.get_pretrained(f"{url}/state_dict.bin", device="cpu"), released)
    hub.log.clear()
    load_compression_model(f"{url}/compression_state_dict.bin")
    assert got(hub) == []


def test_own_format_with_its_text_encoder(released_t5, serve, hub, cache, tmp_path):
    folder = tmp_path / "model"
    model = AudioGen.get_pretrained(released_t5, device="cpu")
    model.save_pretrained(folder)
    url = serve(model=folder)
    again = AudioGen.get_pretrained(url, device="cpu")
    assert same(again, released_t5)
    conditioner = again.lm.condition_provider.conditioners["description"]
    assert Path(conditioner.source).is_relative_to(cache)
    texts = ["a dog barks", None]
    expected = model.lm.condition_provider.conditioners["description"].tokenize(texts)
    assert torch.equal(conditioner.tokenize(texts)["input_ids"], expected["input_ids"])
    hub.log.clear()
    AudioGen.get_pretrained(url, device="cpu", local_files_only=True)
    assert hub.log == []


def test_two_models_with_files_of_the_same_names(data, serve, cache):
    folders = {name: data / "golden_options" / name for name in ("lut_sum", "lut_prepend")}
    url = serve(**folders).rpartition("/")[0]
    for name, folder in folders.items():
        assert same(AudioGen.get_pretrained(f"{url}/{name}", device="cpu"), folder)


def test_query(released, serve, hub, cache):
    """A signature goes with every file, and models that differ in it are different ones."""
    url = serve(model=released)
    seen = []
    for query in ("?key=1", "?key=2"):
        load_lm_model(f"{url}/state_dict.bin{query}")
        load_compression_model(f"{url}{query}")
        seen.append(len([path for path in got(hub) if path.endswith(".bin")]))
    assert seen == [2, 4]


def test_hash_in_the_name(released, serve, hub, cache, tmp_path):
    """Checked when downloaded, as torch.hub does."""
    content = (released / "state_dict.bin").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (f"lm-{digest[:8]}.bin", f"lm-{digest}.bin", "lm-0123abcd.bin", "lm-v2.bin"):
        (folder / name).write_bytes(content)
    url = serve(model=folder)
    for name in (f"lm-{digest[:8]}.bin", f"lm-{digest}.bin", "lm-v2.bin"):
        load_lm_model(f"{url}/{name}")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"hash is {digest}, the name says 0123abcd"):
            load_lm_model(f"{url}/lm-0123abcd.bin")
    assert sorted(path.name for path in cache.rglob("*.*")) == sorted(
        name for name in os.listdir(folder) if "0123abcd" not in name
    )


def test_dropped_connection(released, serve, hub, cache):
    """Half a file is not kept, so trying again works."""
    url = serve(model=released)
    hub.failures = {"/plain/model/state_dict.bin": ["drop", 500]}
    size = (released / "state_dict.bin").stat().st_size
    with pytest.raises(
        CheckpointError, match=f"connection ended after {size // 2} of {size} bytes"
    ):
        load_lm_model(url)
    with pytest.raises(CheckpointError, match="cannot be downloaded: HTTP Error 500"):
        load_lm_model(url)
    assert not list(cache.rglob("*state_dict*"))
    load_lm_model(url)


def test_what_is_not_there(released, serve, hub, cache, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    url = serve(model=released, empty=empty)
    with pytest.raises(CheckpointError, match=rf"{url}: holds none of .*404"):
        load_lm_model(url)
    with pytest.raises(CheckpointError, match=rf"{url}/x\.bin: holds none of x\.bin .*404"):
        load_lm_model(f"{url}/x.bin")
    with pytest.raises(CheckpointError, match="cannot be downloaded: .*refused"):
        load_lm_model("http://127.0.0.1:9/model")
    hub.log.clear()
    with pytest.raises(CheckpointError, match="holds none of .* nothing may be downloaded"):
        load_lm_model(f"{url}/other", local_files_only=True)
    assert hub.log == []


def test_names(tmp_path, monkeypatch):
    """What counts as which kind of place."""
    options = HubOptions(cache_dir=tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "lm.th").write_text("x")
    monkeypatch.chdir(tmp_path)
    cases = {
        "https://host/a/b.bin?x=1#y": ("https://host/a", "b.bin"),
        "https://host/a/b/": ("https://host/a/b", None),
        "https://host/" + "a" * 300 + "/b": ("https://host/" + "a" * 300 + "/b", None),
        "model/lm.th": ("model", "lm.th"),
        "model": ("model", None),
        str(tmp_path / "model"): (str(tmp_path / "model"), None),
        "org/model": ("org/model", None),
    }
    for name, expected in cases.items():
        place = Place(name, options)
        assert (place.base, place.given) == expected, name


def test_cache_folder_settings(monkeypatch):
    for name in ("AUDIOGEN_FAST_CACHE_DIR", "AUDIOCRAFT_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert HubOptions().cache is None
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", "/a")
    assert HubOptions().cache == "/a"
    monkeypatch.setenv("AUDIOGEN_FAST_CACHE_DIR", "/b")
    assert HubOptions().cache == "/b"
    assert HubOptions(cache_dir=Path("/c")).cache == "/c"


def test_copied_cache_is_not_needed(released, serve, cache, tmp_path):
    """Nothing remembers the cache's place."""
    url = serve(model=released)
    load_lm_model(url)
    shutil.move(cache, tmp_path / "moved")
    load_lm_model(url, cache_dir=tmp_path / "moved", local_files_only=True)
