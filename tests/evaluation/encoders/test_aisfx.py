"""The aiSFX network, against the package's own classes and on real sounds."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.errors import CheckpointError, InvalidInputError, MissingDependencyError
from audiogen_fast.evaluation.encoders import aisfx as aisfx_module
from audiogen_fast.evaluation.encoders import load_encoder, packages
from audiogen_fast.evaluation.encoders.aisfx import AiSFX, _blocks
from audiogen_fast.evaluation.statistics import cosine_similarities


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def original(aisfx):
    """The package's network with our weights; its file needs nothing but torch."""
    path = packages.package_file("aisfx", "models/cnn2d.py", "this test", "")
    spec = importlib.util.spec_from_file_location("aisfx_cnn2d", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.CrossNet(module.EmbeddingNet("max", 3, 1, 64), {"prosfx": (0, 78)}, "cpu")
    state = {k.replace("fc.", "fc.0."): v for k, v in aisfx.network.state_dict().items()}
    network.load_state_dict(state)
    return network.eval()


def test_it_is_the_network_of_the_package(aisfx):
    wave = noise(150_000) * torch.linspace(0, 1, 150_000)
    blocks = _blocks(aisfx.network.spectrogram(wave))
    assert blocks.shape == (2, 100, 96)
    with torch.no_grad():
        embedding, logits = original(aisfx)(blocks, "prosfx")
    found = aisfx.encode([wave])
    assert_close(found["embedding"][0], embedding.mean(dim=0), rtol=1e-5, atol=1e-6)
    assert_close(found["posteriors"][0], logits.softmax(dim=1).mean(dim=0), rtol=1e-5, atol=1e-7)
    assert_close(aisfx.embed([wave]), found["embedding"])
    assert_close(aisfx.posteriors([wave]), found["posteriors"])


def test_spectrogram_by_definition(aisfx):
    """In numpy, frame by frame, from the formulas."""
    wave = (noise(5000) * 0.3).numpy().astype(np.float64)
    padded = np.pad(wave / np.abs(wave).max(), 1024)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    frames = [padded[i : i + 2048] * window for i in range(0, len(padded) - 2047, 1024)]
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + 22050 / 700), 98) / 2595) - 1)
    bins = np.arange(1025) * 44100 / 2048
    expected = np.zeros((len(frames), 96))
    for band in range(96):
        low, centre, high = edges[band : band + 3]
        rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
        triangle = np.maximum(0, np.minimum(rising, falling))
        expected[:, band] = power @ (triangle / triangle.sum())
    expected = np.log10(1e4 * expected + 1) / 9.457798957824707
    found = aisfx.network.spectrogram(torch.from_numpy(wave).float())
    assert found.shape == expected.shape == (5, 96)
    assert_close(found, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "frames, starts",
    [(1, [0]), (100, [0]), (101, [0, 1]), (150, [0, 50]), (216, [0, 50, 100, 116])],
)
def test_blocks_cover_all_frames(frames, starts):
    x = torch.arange(frames).float().unsqueeze(1).expand(-1, 96) + 1
    blocks = _blocks(x)
    assert blocks[:, 0, 0].tolist() == [start + 1 for start in starts]
    assert blocks.max() == frames
    if frames < 100:
        assert (blocks[0, frames:] == 0).all()


def test_level_does_not_count_and_neither_do_the_others(aisfx):
    waves = [noise(30_000), noise(1, seed=1), torch.zeros(20_000), noise(44_100, seed=2)]
    found = aisfx.embed(waves)
    assert torch.isfinite(found).all() and found.shape == (4, 512)
    assert torch.equal(found[3], aisfx.embed(waves[3:])[0])
    assert_close(aisfx.embed([waves[0] / 1000])[0], found[0], rtol=1e-4, atol=1e-5)
    assert_close(aisfx.posteriors(waves).sum(dim=1), torch.ones(4))


def test_real_sounds_of_one_caption_are_neighbours(aisfx, corpus):
    captions = ["a footstep on dirt", "a person laughing", "coins clinking", "a clap of thunder"]
    clips = corpus(captions)
    assert len(clips) == 16
    vectors = aisfx.embed([wave for wave, _ in clips])
    cosines = cosine_similarities(vectors, vectors)
    same = torch.tensor([[a == b for _, b in clips] for _, a in clips])
    others = ~torch.eye(len(clips), dtype=torch.bool)
    assert cosines[same & others].mean() > cosines[~same].mean() + 0.05
    nearest = cosines.masked_fill(~others, -1).argmax(dim=1)
    right = same[torch.arange(len(clips)), nearest].float().mean()
    assert right >= 0.75  # chance: below 0.3


def test_mistakes_are_named(aisfx):
    bad = torch.ones(50)
    bad[7] = math.inf
    cases = [
        ([], "at least 1 sound"),
        ([noise(50), noise(2, 50)], r"waves\[1\] must be \[T\].*\[2, 50\]"),
        ([torch.ones(5, dtype=torch.int16)], "int16"),
        ([torch.zeros(0)], r"waves\[0\].*at least 1 sample"),
        ([noise(50), bad], r"waves\[1\] must be finite"),
    ]
    for waves, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            aisfx.embed(waves)
    with pytest.raises(InvalidInputError, match="one of aisfx.*'nothing'"):
        load_encoder("nothing")


def test_damaged_and_other_files_are_refused(tmp_path: Path):
    other, damaged = tmp_path / "other.pth", tmp_path / "damaged.pth"
    torch.save(({"weight": torch.ones(3)}, {}), other)
    damaged.write_bytes(other.read_bytes()[:100])
    for path in (other, damaged, tmp_path / "missing.pth"):
        with pytest.raises(CheckpointError, match=path.name):
            load_encoder(f"aisfx:{path}")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path):
    class Harm:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save(({"weight": Harm()}, {}), tmp_path / "harm.pth")
    with pytest.raises(CheckpointError, match="harm.pth"):
        AiSFX(tmp_path / "harm.pth")
    assert not (tmp_path / "ran").exists()


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(
        aisfx_module,
        "package_file",
        lambda package, *rest: packages.package_file("audiogen_fast_no_such_package", *rest),
    )
    with pytest.raises(MissingDependencyError, match="pip install --no-deps aisfx"):
        AiSFX()
