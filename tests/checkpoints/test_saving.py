"""`save_pretrained` and back: the same model, no network, and never half of one."""

import json
import os
import shutil
import socket
import stat
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from audiogen_fast import AudioGen, CheckpointError, InvalidInputError
from audiogen_fast.models import saving
from audiogen_fast.models.loaders import load_compression_model, load_lm_model, stored_dtype
from audiogen_fast.models.saving import save_pretrained


@pytest.fixture
def no_network(monkeypatch):
    """Any connection is an error."""

    def refuse(*args):
        raise AssertionError(f"connects to {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def load(place) -> AudioGen:
    return AudioGen.get_pretrained(place, device="cpu")


def state_of(model: AudioGen) -> dict[str, torch.Tensor]:
    parts = {"lm": model.lm, "codec": model.compression_model}
    return {f"{p}.{n}": t for p, module in parts.items() for n, t in module.state_dict().items()}


def assert_same_state(model: AudioGen, other: AudioGen) -> None:
    state, other_state = state_of(model), state_of(other)
    assert state.keys() == other_state.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, other_state[name]), name


@pytest.mark.parametrize(
    "case", ["lut_sum", "stereo_codebooks", "stereo_timesteps", "codec_fewer_codebooks"]
)
def test_round_trip(case, data, tmp_path, greedy, no_network):
    model = load(data / "golden_options" / case)
    folder = model.save_pretrained(tmp_path / "a" / "model")
    again = AudioGen.from_pretrained(folder, device="cpu", local_files_only=True)
    assert_same_state(model, again)
    audio, codes = greedy(model)
    other_audio, other_codes = greedy(again)
    assert torch.equal(codes, other_codes) and torch.equal(audio, other_audio)
    assert type(again.compression_model) is type(model.compression_model)
    assert again.max_duration == model.max_duration and again.cfg == model.cfg


@pytest.mark.parametrize(
    "case", ["codec_spectral_norm", "codec_no_norm", "codec_group_norm", "codec_causal", "lut_sum"]
)
def test_folded_codec(case, data, own, tmp_path):
    """The norm of its weights is computed once; saved, they load to the last bit."""
    lm = load_lm_model(own)
    codec = load_compression_model(data / "golden_options" / case)
    again = load_compression_model(save_pretrained(tmp_path, lm, codec))
    state, other = codec.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert not any("parametrizations" in name or name.endswith("weight_g") for name in state)
    assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())


def test_text_encoder_and_tokenizer(released_t5, tmp_path, greedy, no_network):
    model = load(released_t5)
    folder = model.save_pretrained(tmp_path / "model")
    moved = folder.rename(tmp_path / "moved")
    again = load(moved)
    conditioner = again.lm.condition_provider.conditioners["description"]
    assert conditioner.source == str(moved / "t5-small")
    texts = ["a dog barks", "Ünïcode, and   spaces", None, ""]
    tokens = conditioner.tokenize(texts)
    expected = model.lm.condition_provider.conditioners["description"].tokenize(texts)
    assert all(torch.equal(tokens[name], expected[name]) for name in expected)
    assert torch.equal(greedy(again)[1], greedy(model)[1])


def test_codec_of_transformers(
    hf_encodec, packages, write, configure, tmp_path, greedy, no_network
):
    state = packages["lm"]["best_state"]
    generator = torch.Generator().manual_seed(0)
    for k in range(4):
        width = state[f"emb.{k}.weight"].shape[1]
        state[f"emb.{k}.weight"] = torch.randn(1025, width, generator=generator)
        state[f"linears.{k}.weight"] = torch.randn(1024, width, generator=generator)
    lm = configure("lm", {"transformer_lm.card": 1024}) | {"best_state": state}
    model = load(write(lm=lm, compression_model={"pretrained": str(hf_encodec)}))
    folder = model.save_pretrained(tmp_path / "model")
    assert str(hf_encodec) not in (folder / "config.json").read_text()
    again = load(folder.rename(tmp_path / "moved"))
    audio, codes = greedy(again)
    expected_audio, expected_codes = greedy(model)
    assert torch.equal(codes, expected_codes) and torch.equal(audio, expected_audio)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_is_kept(dtype, released, tmp_path):
    model = AudioGen.get_pretrained(released, device="cpu", dtype=dtype)
    folder = model.save_pretrained(tmp_path)
    assert stored_dtype(folder) == dtype
    again = load_lm_model(folder, dtype=dtype)
    state = model.lm.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in again.state_dict().items())
    assert {t.dtype for t in load_lm_model(folder).state_dict().values()} == {torch.float32}


def test_files(own, released):
    assert sorted(os.listdir(own)) == [
        "compression_model.safetensors",
        "config.json",
        "model.safetensors",
    ]
    config = json.loads((own / "config.json").read_text())
    assert config["format"] == "audiogen_fast" and config["version"] == 1
    cfg = yaml.safe_load(torch.load(released / "state_dict.bin")["xp.cfg"])
    assert config["lm"] == cfg
    assert load_file(own / "model.safetensors").keys() == load_lm_model(own).state_dict().keys()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in own.iterdir()}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o666 & ~umask}


def test_own_sampling(own, tmp_path):
    model = load(own)
    model.cfg["sampling"] = {"top_k": 7, "temperature": 0.5}
    again = load(model.save_pretrained(tmp_path / "model"))
    assert again.default_sampling == {"top_k": 7, "temperature": 0.5}
    assert (again.generation_params["top_k"], again.generation_params["temp"]) == (7, 0.5)
    again.cfg["sampling"] = {"top_k": "all"}
    with pytest.raises(CheckpointError, match="top_k must be an int >= 0, got 'all'"):
        load(again.save_pretrained(tmp_path / "wrong"))


def test_values_that_json_lacks(packages, write, configure, tmp_path):
    """YAML makes dates of what looks like one, and knows infinity."""
    package = configure("lm", {"device": float("inf")})
    package["xp.cfg"] += "date: 2023-08-01\n1: one\n"
    folder = write(lm=package)
    again = load(load(folder).save_pretrained(tmp_path / "model"))
    assert again.cfg["date"] == "2023-08-01" and again.cfg["device"] == float("inf")
    assert again.cfg["1"] == "one"


def test_tied_weights(own, tmp_path):
    """A fine-tuned text encoder has such; the format allows no shared memory."""
    lm, codec = load_lm_model(own), load_compression_model(own)
    lm.emb[1].weight = lm.emb[0].weight
    again = load_lm_model(save_pretrained(tmp_path, lm, codec))
    assert torch.equal(again.emb[1].weight, lm.emb[0].weight)


def changed(model: AudioGen) -> AudioGen:
    with torch.no_grad():
        model.lm.emb[0].weight.add_(1.0)
    return model


def test_over_the_folder_it_is_mapped_from(own, tmp_path, logits):
    folder = tmp_path / "model"
    shutil.copytree(own, folder)
    other = load(folder)
    model = changed(load(folder))
    expected, before = logits(model.lm), logits(other.lm)
    for _ in range(2):
        model.save_pretrained(folder)
        assert sorted(os.listdir(folder)) == sorted(os.listdir(own))
        assert torch.equal(logits(model.lm), expected) and torch.equal(logits(other.lm), before)
        assert torch.equal(logits(load(folder).lm), expected)
    assert not torch.equal(expected, before)


def test_over_a_released_checkpoint(released, tmp_path, logits):
    """The model that was saved last is the one that is loaded."""
    folder = tmp_path / "model"
    shutil.copytree(released, folder)
    model = changed(load(folder))
    model.save_pretrained(folder)
    assert torch.equal(logits(load(folder).lm), logits(model.lm))
    released_file = load_lm_model(folder / "state_dict.bin")
    assert torch.equal(logits(released_file), logits(load_lm_model(released)))


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class Full(OSError):
    """The disk is full."""


@pytest.mark.parametrize("step", ["weights", "configuration", *range(8)])
def test_failure_leaves_the_older_model(step, released_t5, own, tmp_path, monkeypatch):
    """While writing, or at any of the renames: four things out, four in."""
    folder = tmp_path / "model"
    shutil.copytree(own, folder)
    (folder / "t5-small").mkdir()
    (folder / "t5-small" / "note.txt").write_text("kept")
    (folder / "README.md").write_text("mine")
    before = contents(folder)
    model = load(released_t5)
    calls = iter(range(100))
    real_rename = os.rename

    def fail(*args, **kwargs):
        raise Full

    def rename(source, target):
        if next(calls) == step:
            raise Full
        real_rename(source, target)

    if step == "weights":
        monkeypatch.setattr("safetensors.torch.save_file", fail)
    elif step == "configuration":
        monkeypatch.setattr(saving.json, "dumps", fail)
    else:
        monkeypatch.setattr(saving.os, "rename", rename)
    with pytest.raises(Full):
        model.save_pretrained(folder)
    assert next(calls) == (0 if isinstance(step, str) else 2 * step + 1)  # all undone
    assert contents(folder) == before
    monkeypatch.undo()
    load(folder)
    model.save_pretrained(folder)
    assert contents(folder)["README.md"] == b"mine"
    assert "t5-small/note.txt" not in contents(folder)


def test_no_moment_with_parts_of_two_models(own, tmp_path, monkeypatch):
    """Whenever there is a configuration, all that belongs to it is there."""
    folder = tmp_path / "model"
    shutil.copytree(own, folder)
    before, seen = contents(folder), []
    real_rename = os.rename

    def rename(source, target):
        real_rename(source, target)
        files = contents(folder)
        seen.append({name: files[name] for name in before if name in files})

    monkeypatch.setattr(saving.os, "rename", rename)
    changed(load(folder)).save_pretrained(folder)
    after = contents(folder)
    assert len(seen) == 6 and after != before
    for files in seen:
        assert "config.json" not in files or files in (before, after)


def test_folder_that_cannot_be(own, tmp_path):
    model = load(own)
    (tmp_path / "file").write_text("text")
    with pytest.raises(
        InvalidInputError, match="folder must be a folder or not exist, got the file"
    ):
        model.save_pretrained(tmp_path / "file")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(InvalidInputError, match="config.json of another program"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"model_type": "t5"}'


def test_model_without_a_configuration(tmp_path):
    model = AudioGen.get_pretrained("debug", device="cpu")
    with pytest.raises(InvalidInputError, match="lm has no configuration"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(CheckpointError):
        load(tmp_path / "model")
