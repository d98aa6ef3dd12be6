"""The model in the package, as it is installed."""

import csv
import json
import socket

import pytest
import torch

import benchmarks.quality as quality
from audiogen_fast import AudioGen
from audiogen_fast.cli import main
from audiogen_fast.data.audio import audio_read
from audiogen_fast.demo_model import RECORDING, RECORDING_CAPTION
from audiogen_fast.models.loaders import load_compression_model
from audiogen_fast.pretrained import ABOUT, FOLDERS, TINY
from audiogen_fast.training.recipe import load_recipe

KNOWN = ("an explosion", "steady rain", "glass breaking", "a clap of thunder")


@pytest.fixture(scope="module")
def model():
    return AudioGen.get_pretrained(TINY, "cpu", dtype="float32")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise OSError("the model in the package needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_it_is_complete_and_says_what_it_is():
    folder = FOLDERS[TINY]
    card = (folder / "README.md").read_text("utf-8")
    for part in ("licence", "Data", "Metrics", "Limits", "shuffled captions", "noise"):
        assert part in card, part
    assert "CC-BY-SA" in (folder / "LICENSE").read_text("utf-8")
    assert "Apache License" in (folder / "minilm" / "LICENSE").read_text("utf-8")


def test_every_sound_it_learnt_from_is_credited_and_free():
    lines = (FOLDERS[TINY] / "ATTRIBUTION.md").read_text("utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| audio/")]
    assert len(rows) > 2000
    free = ("CC0", "CC-BY-3.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "public-domain")
    for row in rows:
        assert row[2].startswith(free), row
        assert not any(word in row[2] for word in ("GPL", "NC", "ND"))


def test_structure_is_that_of_audiogen(model):
    assert (model.sample_rate, model.frame_rate, model.audio_channels) == (16000, 50, 1)
    assert (model.lm.n_q, model.lm.card, model.max_duration) == (4, 1024, 4.0)
    assert model.lm.cfg["codebooks_pattern"]["modeling"] == "delay"
    assert model.name == TINY and TINY in ABOUT


def test_it_draws_as_its_recipe_says(model):
    own = load_recipe("tiny_lm").sampling.top_k
    assert own != 250 and model.default_sampling == {"top_k": own, "temperature": 1.0}
    assert model.generation_params["top_k"] == own
    assert f"`top_k` {own}" in (FOLDERS[TINY] / "README.md").read_text("utf-8")


def test_what_is_loaded_alone_is_the_same_codec(model):
    wav, _ = audio_read(RECORDING)
    codec = load_compression_model(TINY)
    with torch.no_grad():
        codes = [c.encode(wav[None])[0] for c in (codec, model.compression_model)]
    assert torch.equal(*codes)


@torch.no_grad()
def test_codec_gives_back_the_recording_and_not_noise(model):
    from audiogen_fast.evaluation.codec import MelDistance

    wav = audio_read(RECORDING)[0][None]
    codes, scale = model.compression_model.encode(wav)
    decoded = model.compression_model.decode(codes, scale)[..., : wav.shape[-1]]
    noise = torch.randn(wav.shape, generator=torch.Generator().manual_seed(0)) * wav.std()
    distance = MelDistance(16000)
    assert distance(decoded, wav) < 0.6 * distance(noise, wav)
    assert 0.3 < decoded.std() / wav.std() < 1.5


def test_captions_explain_the_sounds_that_they_belong_to(model):
    """Cross entropy of the codes of real sounds: with their own captions less than with others."""
    from audiogen_fast.evaluation.language import code_cross_entropy
    from audiogen_fast.modules.conditioners import ConditioningAttributes

    folder = FOLDERS[TINY].parents[2] / "training" / "corpus" / "subset"
    with open(folder / "manifest.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    rows = list({row["caption"]: row for row in rows if float(row["duration"]) > 1}.values())[::4]
    assert len(rows) > 25
    found = {"own": 0.0, "other": 0.0}
    for number, row in enumerate(rows):
        wav, _ = audio_read(folder / row["path"], duration=2)
        with torch.no_grad():
            codes = model.compression_model.encode(wav[None])[0]
            other = rows[(number + 7) % len(rows)]["caption"]
            for name, caption in (("own", row["caption"]), ("other", other)):
                attributes = [ConditioningAttributes(text={"description": caption})]
                ce, count = code_cross_entropy(model.lm, codes, attributes)
                found[name] += float(ce.sum() / count.sum()) / len(rows)
    assert found["own"] < found["other"] - 0.05, found


def test_engines_agree_token_for_token(model):
    eager = AudioGen.get_pretrained(TINY, "cpu", engine="eager")
    tokens = []
    for one in (model, eager):
        one.set_generation_params(duration=2, extend_stride=2)
        tokens.append(one.generate(list(KNOWN), seed=3, return_tokens=True)[1])
    if model.engine.name == "native":
        assert (tokens[0] == tokens[1]).float().mean() > 0.99
    assert len({tuple(row.flatten().tolist()) for row in tokens[0]}) == len(KNOWN)


@pytest.mark.parametrize(
    "description", [None, "", "  ", "zxqv jbfw", "🐕", "ein Hund bellt", "dog " * 300]
)
def test_any_description_gives_a_sound(model, description, recwarn):
    model.set_generation_params(duration=1, extend_stride=2)
    wav = model.generate([description], seed=1)
    assert wav.shape == (1, 1, 16000) and wav.isfinite().all()
    assert 1e-4 < wav.std() and wav.abs().max() < 10


def test_it_goes_on_past_its_window_and_from_a_recording(model):
    model.set_generation_params(duration=9, extend_stride=2)
    wav = model.generate(["steady rain"], seed=1)
    assert wav.shape[-1] == 9 * 16000
    tail = wav[..., 6 * 16000 :]
    assert tail.std() > 0.1 * wav[..., : 4 * 16000].std()
    model.set_generation_params(duration=4, extend_stride=2)
    prompt, rate = audio_read(RECORDING, duration=2)
    continued = model.generate_continuation(prompt, rate, [RECORDING_CAPTION], seed=1)
    with torch.no_grad():
        codec = model.compression_model
        heard = codec.decode(codec.encode(prompt[None])[0])
    torch.testing.assert_close(
        continued[..., :24000], heard[..., :24000], rtol=0, atol=2e-2 * float(heard.abs().max())
    )


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantised_weights_keep_the_distributions(model, name):
    if model.engine.name != "native":
        pytest.skip("needs the native module")
    found = quality.measure(
        AudioGen.get_pretrained(TINY, "cpu", dtype="float32", engine="eager"),
        [name],
        [3.0],
        1.0,
        quality.DESCRIPTIONS,  # the limits are of the mean: of a single one it may be thrice that
    )
    for row in found["results"]:
        assert row["kl_mean"] <= quality.LIMITS[name], row


def test_it_is_the_default_of_the_command_line(tmp_path, capsys):
    command = ["generate", "a dog barking", "--duration", "1", "--output", str(tmp_path), "--json"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert ABOUT[TINY] in said.err
    report = json.loads(said.out)
    assert report["settings"]["model"] == TINY
    assert audio_read(report["files"][0]["path"])[0].std() > 0.001
