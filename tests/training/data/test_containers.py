"""Files in archives."""

import io
import pickle
import tarfile
import zipfile

import pytest
import torch

from audiogen_fast.data.audio import audio_read, audio_write
from audiogen_fast.errors import DataError
from audiogen_fast.training.data.containers import Archives, contents_or_path, split_path


@pytest.fixture
def archives(recordings, tmp_path):
    """A tar and a zip with the recordings, in a folder of an awkward name."""
    folder = tmp_path / "with.zip:colon"
    folder.mkdir()
    files = sorted(recordings.glob("*.flac"))
    with tarfile.open(folder / "a.tar", "w") as tar, zipfile.ZipFile(folder / "a.zip", "w") as z:
        for file in files:
            tar.add(file, f"./deep/{file.name}")
            z.write(file, f"deep/{file.name}", compress_type=zipfile.ZIP_DEFLATED)
    return folder, files


def test_members_are_the_files(archives):
    folder, files = archives
    store = Archives()
    for name in ("a.tar", "a.zip"):
        archive = str(folder / name)
        assert store.names(archive) == [f"deep/{file.name}" for file in files]
        for file in reversed(files):
            assert split_path(f"{archive}:deep/{file.name}") == (archive, f"deep/{file.name}")
            assert store.read(archive, f"deep/{file.name}") == file.read_bytes()
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read(archive, f"deep/{files[0].name}") == files[0].read_bytes()
    with pytest.raises(FileNotFoundError, match="has no member 'x'"):
        store.read(archive, "x")
    store.close()


def test_plain_paths_stay(recordings):
    path = str(next(recordings.glob("*.flac")))
    assert split_path(path) == (path, None)
    assert contents_or_path(Archives(), path) == path
    assert split_path("/none/b.tar:c/d.wav") == ("/none/b.tar", "c/d.wav")


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_parts_of_members_are_parts_of_files(format, recordings, tmp_path):
    wav, rate = audio_read(next(recordings.glob("*-14-*")))
    path = audio_write(tmp_path / "sound", wav, rate, format)
    contents = io.BytesIO(path.read_bytes())
    for seek, length in [(0.0, -1.0), (0.5, 1.0), (2.0, 5.0)]:
        expected, _ = audio_read(path, seek, length)
        found, found_rate = audio_read(contents, seek, length)
        assert found_rate == rate and torch.equal(found, expected)


def test_damaged_archives(archives):
    folder, files = archives
    content = (folder / "a.tar").read_bytes()
    (folder / "short.tar").write_bytes(content[:-20_000])
    (folder / "none.tar").write_bytes(b"x" * 4000)
    (folder / "none.zip").write_bytes(b"x" * 4000)
    store = Archives()
    for name in ("short.tar", "none.tar", "none.zip"):
        with pytest.raises(DataError, match="cannot be read as an archive"):
            store.names(str(folder / name))
    damaged = bytearray((folder / "a.zip").read_bytes())
    damaged[2000] ^= 255
    (folder / "damaged.zip").write_bytes(damaged)
    with pytest.raises(DataError, match="cannot be unpacked"):
        store.read(str(folder / "damaged.zip"), f"deep/{files[0].name}")
    store.names(str(folder / "a.tar"))
    with open(folder / "a.tar", "r+b") as file:
        file.truncate(1000)  # after its members were found
    with pytest.raises(DataError, match="the archive ends within it"):
        store.read(str(folder / "a.tar"), f"deep/{files[0].name}")
