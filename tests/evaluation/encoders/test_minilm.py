"""Sentence vectors, from the packaged model and from tiny ones."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.errors import CheckpointError
from audiogen_fast.evaluation.encoders.minilm import MiniLM, installed_folder

TEXTS = [
    "a dog barking",
    "a puppy yelping loudly in the yard",
    "heavy rain falling on a tin roof",
    "rain",
    "",
    "x " * 400,
]


def test_meaning_counts(minilm):
    vectors = minilm.embed_texts(TEXTS)
    assert vectors.shape == (6, 384)
    assert_close(vectors.norm(dim=1), torch.ones(6))
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > cosines[0, 2] + 0.2 and cosines[2, 3] > cosines[0, 3] + 0.2
    # A word that is not in the other sentence, and no word in common
    assert minilm.embed_texts(["an automobile"]) @ minilm.embed_texts(["a car"]).T > 0.7


def test_states_are_those_of_a_padded_batch(minilm):
    """Texts computed by length agree with the ordinary way: padded, and masked."""
    minilm.tokenizer.enable_padding()
    try:
        batch = minilm.tokenizer.encode_batch(TEXTS[:5])
    finally:
        minilm.tokenizer.no_padding()
    tokens, mask = (torch.tensor([getattr(e, n) for e in batch]) for n in ("ids", "attention_mask"))
    with torch.no_grad():
        expected = minilm.model(tokens, attention_mask=mask).last_hidden_state
    states = minilm.token_states(TEXTS)
    assert [len(s) for s in states] == [*mask.sum(dim=1).tolist(), 256]
    for row, found, length in zip(expected, states, mask.sum(dim=1), strict=False):
        assert_close(found, row[:length], rtol=1e-3, atol=1e-5)
    weights = mask.unsqueeze(2).float()
    means = (expected * weights).sum(dim=1) / weights.sum(dim=1)
    means = torch.nn.functional.normalize(means, dim=1)
    assert_close(minilm.embed_texts(TEXTS[:5]), means, rtol=1e-3, atol=1e-5)


def test_no_texts_and_one_alone(minilm):
    assert minilm.embed_texts([]).shape == (0, 384)
    assert_close(minilm.embed_texts(TEXTS)[2:3], minilm.embed_texts(TEXTS[2:3]))


def test_incomplete_and_damaged_folders_are_refused(minilm, tmp_path: Path):
    with pytest.raises(CheckpointError, match="no config.json and no model.safetensors"):
        MiniLM(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(installed_folder() / name, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="model.safetensors"):
        MiniLM(tmp_path)
