"""CLAP by transformers, with tiny random weights in a folder; nothing is downloaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    PreTrainedTokenizerFast,
)

from audiogen_fast.errors import CheckpointError, InvalidInputError
from audiogen_fast.evaluation.encoders import load_encoder
from audiogen_fast.evaluation.encoders.base import AudioEncoder, TextEncoder
from audiogen_fast.evaluation.encoders.clap import Clap
from audiogen_fast.models.hub import HubOptions

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "dog", "barking", "rain", "on", "roof"]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clap")
    audio = ClapAudioConfig(
        patch_embeds_hidden_size=8,
        hidden_size=64,
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1],
        num_mel_bins=64,
        spec_size=256,
        projection_dim=16,
    )
    text = ClapTextConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=80,
        projection_dim=16,
    )
    config = ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ClapModel(config)
        for parameter in model.parameters():  # the published ones are far from the initial ones
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(path)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clap(folder) -> Clap:
    return load_encoder(f"clap:{folder}")


def test_it_is_a_joint_encoder_at_48_khz(clap):
    assert isinstance(clap, AudioEncoder) and isinstance(clap, TextEncoder)
    assert clap.sample_rate == 48000


def test_short_sounds_are_what_the_model_makes_of_them(clap, folder):
    model = ClapModel.from_pretrained(folder).eval()
    features = ClapFeatureExtractor.from_pretrained(folder)
    tone = torch.sin(torch.arange(480_000) * 0.1)
    waves = [noise(48000), tone, noise(5000, seed=2) * torch.linspace(0, 1e-3, 5000)]
    found = clap.embed(waves)
    assert_close(found.norm(dim=1), torch.ones(3))
    for wave, row in zip(waves, found, strict=True):
        inputs = features(wave.numpy(), sampling_rate=48000, return_tensors="pt")
        with torch.no_grad():
            pooled = model.audio_model(**inputs).pooler_output
            expected = torch.nn.functional.normalize(model.audio_projection(pooled)[0], dim=0)
        assert_close(row, expected, rtol=1e-4, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_long_sounds_are_means_of_windows_and_nothing_is_random(clap):
    wave = torch.cat([noise(480_000), noise(200_000, seed=1) * torch.linspace(0, 1, 200_000)])
    windows = clap.embed([wave[:480_000], wave[-480_000:]])
    expected = torch.nn.functional.normalize(windows.mean(dim=0), dim=0)
    np.random.seed(0)
    first = clap.embed([wave])[0]
    np.random.seed(1)
    assert torch.equal(clap.embed([wave])[0], first)
    assert_close(first, expected)


def test_texts(clap, folder):
    texts = ["a dog barking", "rain on a roof", "unknown", "a " * 100]
    found = clap.embed_texts(texts)
    assert found.shape == (4, 16)
    assert_close(found.norm(dim=1), torch.ones(4))
    model = ClapModel.from_pretrained(folder).eval()
    tokens = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        pooled = model.text_model(input_ids=tokens, attention_mask=tokens > 0).pooler_output
        expected = torch.nn.functional.normalize(model.text_projection(pooled)[0], dim=0)
    assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3
    assert torch.equal(clap.embed_texts(["a " * 77]), found[3:])  # cut there


def test_version_follows_the_weights(clap, folder, tmp_path):
    model = ClapModel.from_pretrained(folder)
    with torch.no_grad():
        model.audio_projection.linear1.bias[0] += 1
    model.save_pretrained(tmp_path)
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert Clap(tmp_path).version != clap.version == Clap(folder).version


def test_what_cannot_be_loaded_is_named(tmp_path, clap):
    offline = HubOptions(local_files_only=True, cache_dir=tmp_path)
    for source in (tmp_path, "laion/clap-htsat-unfused"):
        with pytest.raises(CheckpointError, match="clap:FOLDER"):
            Clap(source, options=offline)
    with pytest.raises(InvalidInputError, match="at least 1 text"):
        clap.embed_texts([])
