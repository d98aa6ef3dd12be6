"""Embeddings that are kept."""

from pathlib import Path

import torch

from audiogen_fast.evaluation.encoders.base import AudioEncoder, TextEncoder
from audiogen_fast.evaluation.encoders.cache import cache_folder, cached


class Moments(AudioEncoder):
    """Power and length, and which is more; counts what it is asked for."""

    name, version, sample_rate = "moments", "1", 16000

    def __init__(self):
        self.asked = 0

    def encode(self, waves):
        self.asked += len(waves)
        rows = torch.stack([torch.tensor([w.square().mean(), float(len(w))]) for w in waves])
        return {"embedding": rows, "posteriors": rows.softmax(dim=1)}


class Joint(Moments, TextEncoder):
    name = "joint"

    def embed_texts(self, texts):
        return torch.tensor([[float(len(text)), 0.0] for text in texts])


def test_what_is_kept_is_not_computed_again(tmp_path: Path):
    waves = [torch.ones(5), torch.full((5,), 2.0), torch.ones(6), torch.ones(5)]
    plain = Moments().encode(waves)
    encoder = Moments()
    for _ in range(2):
        found = cached(encoder, tmp_path).encode(waves)
        assert found.keys() == plain.keys()
        assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert encoder.asked == 3  # one is there twice
    cached(encoder, tmp_path).embed([waves[2], torch.ones(7)])
    assert encoder.asked == 4
    assert not list(tmp_path.rglob("*.tmp"))


def test_another_version_keeps_its_own(tmp_path: Path):
    encoder = Moments()
    cached(encoder, tmp_path).embed([torch.ones(5)])
    encoder.version = "2"
    cached(encoder, tmp_path).embed([torch.ones(5)])
    assert encoder.asked == 2 and len(list(tmp_path.iterdir())) == 2


def test_damaged_entries_are_made_again(tmp_path: Path):
    encoder, wave = Moments(), torch.ones(5)
    expected = cached(encoder, tmp_path).embed([wave])
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-3], whole[:20], b"\xff" * len(whole), whole + b"x"):
        path.write_bytes(damaged)
        assert torch.equal(cached(encoder, tmp_path).embed([wave]), expected)
        assert path.read_bytes() == whole


def test_a_joint_encoder_stays_one(tmp_path: Path):
    assert not isinstance(cached(Moments(), tmp_path), TextEncoder)
    joint = cached(Joint(), tmp_path)
    assert isinstance(joint, TextEncoder)
    assert joint.embed_texts(["rain"]).tolist() == [[4.0, 0.0]]


def test_default_folder_follows_the_environment(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("AUDIOGEN_FAST_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path / "evaluation"
    monkeypatch.delenv("AUDIOGEN_FAST_CACHE_DIR")
    monkeypatch.delenv("AUDIOCRAFT_CACHE_DIR", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert cache_folder() == tmp_path / "torch" / "hub" / "audiogen_fast" / "evaluation"
