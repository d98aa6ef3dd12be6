"""Whatever happens to a file, it loads or is refused by name: never another error."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiogen_fast import CheckpointError
from audiogen_fast.models.checkpoint import read_checkpoint, read_safetensors
from audiogen_fast.models.loaders import load_compression_model, load_lm_model

FILES = {"bin": "compression_state_dict.bin", "safetensors": "compression_model.safetensors"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def contents(released, own) -> dict[str, bytes]:
    sources = {"bin": released, "safetensors": own}
    return {kind: (sources[kind] / file).read_bytes() for kind, file in FILES.items()}


def refused(load, path: Path) -> bool:
    try:
        load(path)
    except CheckpointError as error:
        assert str(error).startswith(str(path)), error
        return True
    return False


READ = {"bin": read_checkpoint, "safetensors": read_safetensors}


@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_truncated_anywhere(kind, place, contents, data):
    content = contents[kind]
    end = data.draw(
        st.integers(0, len(content) - 1) | st.integers(len(content) - 120, len(content) - 1)
    )
    path = place / f"truncated.{kind}"
    path.write_bytes(content[:end])
    assert refused(READ[kind], path)


@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_bytes_changed_anywhere(kind, place, contents, data):
    """Numbers may come out wrong; there is no checksum over them."""
    content = bytearray(contents[kind])
    ends = st.integers(0, 4000) | st.integers(len(content) - 12000, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(ends)
        piece = data.draw(st.binary(min_size=1, max_size=8) | st.just(bytes(64)))
        piece = piece[: len(content) - start]
        content[start : start + len(piece)] = piece
    path = place / f"changed.{kind}"
    path.write_bytes(content)
    refused(READ[kind], path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_changed_pickle(place, contents, released, repack, pickle_of, data):
    """In an archive whose checksums are right; the YAML text is in there too."""
    source = released / FILES["bin"]
    pickle = bytearray(pickle_of(source))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(pickle) - 1))
        length = data.draw(st.integers(0, 8))
        other = data.draw(st.integers(0, len(pickle) - 1))
        copied = bytes(pickle[other : other + data.draw(st.integers(0, 12))])
        pickle[start : start + length] = data.draw(st.binary(max_size=4) | st.just(copied))
    path = repack(source, place / "pickle.bin", replace={"data.pkl": bytes(pickle)})
    refused(load_compression_model, path)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_changed_header(place, contents, data):
    """Characters of the JSON text before the numbers of a safetensors file."""
    content = contents["safetensors"]
    length = int.from_bytes(content[:8], "little")
    header = bytearray(content[8 : 8 + length])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(header) - 1))
        header[start : start + 1] = data.draw(
            st.sampled_from(list(b'0123456789"[]{},:-eF')).map(lambda byte: bytes([byte]))
        )
    path = place / "header.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    refused(read_safetensors, path)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_folder_of_the_own_format(place, own, data):
    folder = place / "own"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(own, folder)
    path = folder / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    content = path.read_bytes()
    kept = data.draw(st.integers(0, min(len(content), 7000)))
    path.write_bytes(content[:kept] + data.draw(st.binary(max_size=3)))
    with pytest.raises(CheckpointError, match=f"^{path}"):
        load_lm_model(folder)


def test_missing_parts_of_the_own_format(own, tmp_path):
    for name in ("config.json", "model.safetensors"):
        folder = tmp_path / name
        shutil.copytree(own, folder)
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=f"^{folder}.*(config.json|model.safetensors)"):
            load_lm_model(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 1', '"version": 2', "version 2 of the format; this package reads 1"),
        ('"format": "audiogen_fast"', '"format": "other"', "holds none of"),
        ('"lm": {', '"other": {', "has no part 'lm'"),
        ('"lm_model"', '"model_lm"', "lm_model must be 'transformer_lm', got None"),
    ],
)
def test_configuration_of_the_own_format(own, tmp_path, old, new, message):
    folder = tmp_path / "model"
    shutil.copytree(own, folder)
    text = (folder / "config.json").read_text()
    assert old in text
    (folder / "config.json").write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=f"^{folder}.*{message}"):
        load_lm_model(folder)


def test_large_or_odd_json(own, tmp_path):
    for content in (b"[]", b"3", b" " * (2 << 20), b"[" * 100_000, b"\xff\xfe", b'{"a": nan}'):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"config\.json: (has|holds|not valid)"):
            load_lm_model(tmp_path)
