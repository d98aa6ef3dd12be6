"""Caches: what is in them, interruption, damage."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiogen_fast.cli import main
from audiogen_fast.data.audio import audio_read
from audiogen_fast.errors import DataError, InvalidInputError
from audiogen_fast.models import loaders
from audiogen_fast.models.builders import get_debug_compression_model
from audiogen_fast.models.hub import HubOptions, Place
from audiogen_fast.training.data import (
    Loader,
    TokenCache,
    TokenDataset,
    TokenDatasetConfig,
    read_manifest,
    write_manifest,
)
from audiogen_fast.training.data.encode import encode_manifest
from audiogen_fast.training.data.shards import read_index
from audiogen_fast.training.data.text_encoders import FrozenTextEncoder
from audiogen_fast.training.data.windows import EncodeConfig

CONFIG = EncodeConfig(segment_duration=0.5, shard_items=4)
CAPTIONS = ["a bell", ["a sheep", "Bleating"], "a bell", ""]
"""Of the recordings in the order of their names, and of the first one once more."""


@pytest.fixture(scope="module")
def models(checkpoint):
    place = Place(checkpoint, HubOptions())
    codec, lm = loaders.load_models(place, torch.device("cpu"))
    return codec, FrozenTextEncoder(lm.condition_provider.conditioners["description"])


@pytest.fixture(scope="module")
def manifest(recordings, tmp_path_factory):
    files = sorted(recordings.glob("*.flac"))
    rows = [
        {
            "path": str(file),
            "duration": len(audio_read(file)[0][0]) / 16_000,
            "description": caption,
            "weight": weight,
            "id": f"sound {weight}",
        }
        for file, caption, weight in zip([*files, files[0]], CAPTIONS, (1, 2, 3, 4), strict=True)
    ]
    path = tmp_path_factory.mktemp("manifest") / "data.jsonl"
    write_manifest(path, rows)
    return read_manifest(path)


@pytest.fixture(scope="module")
def cache(models, manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "tokens"
    encode_manifest(manifest, folder, *models, CONFIG, batch_size=3)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_codes_are_what_the_codec_gives(cache, models, manifest):
    codec, _ = models
    tokens = TokenCache(cache)
    # 2.66 s give 5 (the last third of a half second is too little), 1.31 s 3, 0.64 s 1
    assert len(tokens) == 5 + 3 + 1 + 5
    number = 0
    for meta, count in zip(manifest, (5, 3, 1, 5), strict=True):
        for place in range(count):
            sample = tokens.sample(number)
            wav, _ = audio_read(meta.path, place * 0.5, 0.5, pad=True)
            with torch.no_grad():
                expected, _ = codec.encode(wav.unsqueeze(0))
            assert sample.codes.dtype == torch.int64
            assert torch.equal(sample.codes, expected[0])
            assert sample.row["seek_time"] == place * 0.5
            real = min(8000, int(meta.duration * 16_000) - place * 8000)
            assert (sample.row["n_frames"], sample.row["total_frames"]) == (real, 8000)
            assert (sample.row["id"], sample.row["weight"]) == (meta.id, meta.weight)
            number += 1
    assert tokens.settings["codec"]["frame_rate"] == 50 and tokens.settings["codec"]["card"] == 64
    assert list(tokens.column("weights")) == [1] * 5 + [2] * 3 + [3] + [4] * 5
    assert tokens.column("seconds")[7] == pytest.approx(manifest[1].duration - 1.0)


def test_each_text_is_encoded_once(cache, models):
    _, encoder = models
    tokens = TokenCache(cache)
    assert tokens.text_numbers() == {"a bell": 0, "a sheep": 1, "bleating": 2}
    assert [tokens.sample(n).row["description"] for n in (0, 5, 8, 9)] == [[0], [1, 2], [0], []]
    for text, number in tokens.text_numbers().items():
        ((expected),) = encoder.encode([text])
        found = tokens.embedding(number)
        assert found.shape == (len(expected), 512) and found.dtype == torch.float32
        # in a batch of others, so that rounding differs
        assert torch.allclose(found, torch.from_numpy(expected), atol=1e-5)


def test_batches_have_what_training_needs(cache, models):
    _, encoder = models
    data = TokenDataset(cache, TokenDatasetConfig(num_samples=60))
    loader = Loader(data, 6, num_workers=0)
    texts = set()
    for batch in loader:
        assert batch.wav is None
        assert batch.codes.shape == (6, 4, 25) and batch.codes.dtype == torch.int64
        assert batch.text_embeddings.shape[:2] == batch.text_mask.shape
        for row, info in enumerate(batch.infos):
            texts.add(info.description)
            length = int(batch.text_mask[row].sum())
            assert not batch.text_embeddings[row, length:].any()
            if info.description is None:
                assert length == 0
                continue
            ((expected),) = encoder.encode([info.description])
            assert torch.allclose(
                batch.text_embeddings[row, :length], torch.from_numpy(expected), atol=1e-5
            )
    assert texts == {"a bell", "a sheep", "bleating", None}
    # the model's projection of it is what the model makes of the text itself
    conditioner = encoder.conditioner
    with torch.no_grad():
        whole, mask = conditioner(conditioner.tokenize([i.description for i in batch.infos]))
        projected = conditioner.output_proj(batch.text_embeddings) * batch.text_mask.unsqueeze(-1)
    assert torch.equal(mask, batch.text_mask)
    assert torch.allclose(projected, whole, atol=1e-5)


def test_samples_are_drawn_like_recordings(cache):
    tokens = TokenCache(cache)
    data = TokenDataset(tokens)
    names = [[_key(data.read(epoch, index)) for index in range(14)] for epoch in (0, 1)]
    assert len(set(names[0])) == 14 and set(names[0]) == set(names[1]) and names[0] != names[1]
    still = TokenDataset(tokens, TokenDatasetConfig(shuffle=False))
    in_order = [_key(still.read(3, index)) for index in range(14)]
    assert in_order == [
        (tokens.sample(n).row["id"], tokens.sample(n).row["seek_time"]) for n in range(14)
    ]
    weighted = TokenDataset(
        tokens,
        TokenDatasetConfig(num_samples=3000, permutation_on_files=False, sample_on_weight=True),
    )
    ids = [weighted.read(0, index).info.id for index in range(3000)]
    expected = 3000 * 6 / (5 + 6 + 3 + 20)
    assert abs(ids.count(tokens.sample(5).row["id"]) - expected) < 4 * np.sqrt(expected)
    with pytest.raises(InvalidInputError, match="permutation_on_files excludes"):
        TokenDatasetConfig(sample_on_weight=True)


def _key(item):
    return item.info.id, item.info.seek_time


def test_parts_of_samples(cache):
    tokens = TokenCache(cache)
    data = TokenDataset(tokens, TokenDatasetConfig(segment_duration=0.2, num_samples=200))
    whole = {}
    for number in range(len(tokens)):
        sample = tokens.sample(number)
        whole[sample.row["id"], sample.row["seek_time"]] = sample
    starts = set()
    for index in range(200):
        item = data.read(0, index)
        assert item.codes.shape == (4, 10)
        assert 0 < item.info.n_frames <= item.info.total_frames == 3200
        origin = item.info.seek_time // 0.5 * 0.5
        start = round((item.info.seek_time - origin) * 50)
        if start < 25:
            sample = whole[item.info.id, origin]
            assert torch.equal(item.codes, sample.codes[:, start : start + 10])
            starts.add(start)
    assert starts == set(range(16))


def test_frames_that_are_not_all_padding(cache):
    """Of every number of whole frames and one sample less or more: 320 samples are a frame."""
    tokens = TokenCache(cache)
    for frames in range(1, 500):
        for n_frames, expected in ((0, frames), (-1, frames), (1, frames + 1)):
            row = {"n_frames": 320 * frames + n_frames, "sample_rate": 16_000}
            assert tokens.real_frames(row) == expected
    # A recording of another rate is resampled before.
    assert tokens.real_frames({"n_frames": 44_100, "sample_rate": 44_100}) == 50


def test_workers_resume_from_a_cache(cache):
    data = TokenDataset(cache)
    expected = [b.codes.tolist() for _, b in zip(range(7), Loader(data, 3).forever(), strict=False)]
    first = Loader(data, 3)
    batches = first.forever()
    found = [next(batches).codes.tolist() for _ in range(5)]
    second = Loader(pickle.loads(pickle.dumps(data)), 3, num_workers=1)
    second.load_state_dict(first.state_dict())
    found += [b.codes.tolist() for _, b in zip(range(2), second.forever(), strict=False)]
    second.close()
    assert found == expected


def test_what_cannot_be_encoded_is_left_out_and_listed(models, manifest, tmp_path):
    rows = [manifest.row(2), {"path": "none.wav", "duration": 0.7, "description": "x"}]
    write_manifest(tmp_path / "data.jsonl", rows)
    index = encode_manifest(read_manifest(tmp_path), tmp_path / "out", models[0], config=CONFIG)
    (skipped,) = index.skipped
    assert skipped["path"].endswith("none.wav") and "No such file" in skipped["reason"]
    tokens = TokenCache(tmp_path / "out")
    assert len(tokens) == 1 and tokens.text_dim is None and tokens.skipped == index.skipped
    assert tokens.text_numbers() == {"a bell": 0}
    item = TokenDataset(tokens).read(0, 0)
    assert item.text_embedding is None and item.info.description == "a bell"
    write_manifest(tmp_path / "data.jsonl", rows[1:])
    with pytest.raises(DataError, match="none of 1 samples can be encoded.*No such file"):
        encode_manifest(read_manifest(tmp_path), tmp_path / "bad", models[0], config=CONFIG)


def test_windows_overlap_by_the_stride(models, manifest, tmp_path):
    config = replace(CONFIG, stride=0.1, min_segment_ratio=1.0)
    encode_manifest(manifest.select([2]), tmp_path / "c", models[0], config=config)
    tokens = TokenCache(tmp_path / "c")
    seeks = [tokens.sample(n).row["seek_time"] for n in range(len(tokens))]
    assert seeks == pytest.approx([0.0, 0.1])  # 0.64 s hold two of 0.5 s
    assert all(tokens.sample(n).row["n_frames"] == 8000 for n in range(2))


def test_a_large_codebook_and_small_vectors(models, manifest, tmp_path):
    codec = get_debug_compression_model(sample_rate=16_000)
    codec.quantizer.bins = 2**16  # as a codec would say that has so many
    config = replace(CONFIG, text_dtype="float16")
    encode_manifest(manifest.select([2]), tmp_path / "c", codec, models[1], config)
    tokens = TokenCache(tmp_path / "c")
    assert tokens._shard(0).get_tensor("codes").dtype == np.uint16
    assert tokens.embedding(0).dtype == torch.float16
    codec.quantizer.bins += 1
    with pytest.raises(InvalidInputError, match="at most 16 bits .* the codec has 65537"):
        encode_manifest(manifest, tmp_path / "d", codec, config=CONFIG)


def test_a_killed_run_goes_on(checkpoint, models, manifest, tmp_path):
    """Whenever it is killed, it leaves whole files, and the same command makes the rest."""
    whole, output = tmp_path / "whole", tmp_path / "tokens"
    config = replace(CONFIG, shard_items=1)
    encode_manifest(manifest, whole, *models, config, batch_size=3)
    command = [sys.executable, "-m", "audiogen_fast", "encode", manifest.source]
    command += ["--checkpoint", str(checkpoint), "--output", str(output), "--batch-size", "3"]
    command += ["--segment-duration", "0.5", "--shard-items", "1", "--json"]
    # as many threads as here, or rounding differs
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while not list(output.glob("shard-00002*")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    done = read_index(output).position
    assert 2 <= done < 14
    with pytest.raises(InvalidInputError, match=f"has {done} of 14 samples.*interrupted"):
        TokenCache(output)
    (output / ".left.tmp").write_bytes(b"half a file")
    assert main(command[3:]) == 0
    assert contents(output) == contents(whole)


@pytest.mark.parametrize("place", [3, 500, -1])
def test_a_flipped_bit_is_found(place, cache, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(cache, folder)
    path = folder / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="shard-00001.safetensors: is damaged: its SHA-256"):
        TokenCache(folder)
    lazy = TokenCache(folder, verify="lazy")
    assert len(lazy) == 14
    lazy.sample(3)
    with pytest.raises(DataError, match="shard-00001.safetensors: is damaged"):
        lazy.sample(4)
    assert len(TokenCache(folder, verify="off")) == 14
    path.unlink()
    with pytest.raises(DataError, match="shard-00001.safetensors: cannot be read"):
        TokenCache(folder)


def test_a_damaged_index_is_found(cache, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(cache, folder)
    path = folder / "index.json"
    content = path.read_bytes()
    digits = [i for i, byte in enumerate(content) if byte in b"123456789"]
    for place in digits[:: len(digits) // 12]:
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="index.json: is damaged"):
            TokenCache(folder)
    path.write_bytes(content[:-40])
    with pytest.raises(DataError, match="index.json: is damaged"):
        TokenCache(folder)
    with pytest.raises(InvalidInputError, match="has no index.json"):
        TokenCache(tmp_path)


def test_other_settings_do_not_mix(cache, models, manifest, tmp_path):
    before = contents(cache)
    for change, name in [
        ({"config": replace(CONFIG, segment_duration=1.0)}, "config"),
        ({"manifest": manifest.select([0, 1])}, "manifest"),
        ({"text_encoder": None}, "text"),
        ({"codec": get_debug_compression_model(sample_rate=16_000)}, "codec"),
    ]:
        arguments = {"manifest": manifest, "codec": models[0], "text_encoder": models[1]}
        arguments |= {"config": CONFIG} | change
        with pytest.raises(InvalidInputError, match=f"a cache made with another {name}"):
            encode_manifest(output=cache, **arguments)
    assert contents(cache) == before
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InvalidInputError, match="must be a new or an empty folder.*notes.txt"):
        encode_manifest(manifest, tmp_path, models[0], config=CONFIG)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_the_command(cache, checkpoint, manifest, tmp_path, capsys):
    output = tmp_path / "tokens"
    command = ["encode", manifest.source, "--checkpoint", str(checkpoint), "--output", str(output)]
    command += ["--segment-duration", "0.5", "--no-text"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["samples"], report["texts"], report["texts_encoded"]) == (14, 3, False)
    assert report["bytes"] == sum(p.stat().st_size for p in output.glob("shard-*"))
    codes = [TokenCache(folder).sample(9).codes for folder in (cache, output)]
    assert torch.equal(*codes)
    assert main(command) == 0  # nothing left to do
    assert "14 samples, 3 texts (not encoded)" in capsys.readouterr().out
    for arguments, message in [
        (["--where", "split"], "--where must be COLUMN=VALUE, got 'split'"),
        (["--where", "split=x"], "at least one recording with {'split': 'x'}"),
        (["--checkpoint", "debug"], "debug has none"),
        (["--stride", "0.1"], "a cache made with another config"),
    ]:
        assert main([*command, *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segment_duration": 0}, "segment_duration must be positive, got 0"),
        ({"stride": -1.0}, "stride must be positive, got -1.0"),
        ({"min_segment_ratio": 2}, "min_segment_ratio must lie in 0..1, got 2"),
        ({"shard_items": 0}, "shard_items must be at least 1, got 0"),
        ({"text_dtype": "int8"}, "text_dtype must be one of .*, got 'int8'"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        replace(CONFIG, **changes)
