"""Sounds for the encoders."""

import csv
from pathlib import Path

import pytest
import torch

from audiogen_fast.data.audio import audio_read
from audiogen_fast.data.resample import resample_frac
from audiogen_fast.errors import MissingDependencyError
from audiogen_fast.evaluation.encoders import load_encoder


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def load_or_skip(name: str):
    try:
        return load_encoder(name)
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def aisfx():
    return load_or_skip("aisfx")


@pytest.fixture(scope="session")
def minilm():
    return load_or_skip("minilm")


@pytest.fixture(scope="session")
def corpus(project_root: Path):
    """Function from captions to real clips `(wave, caption)` of them, up to 4 each, at 44.1 kHz."""
    folder = project_root / "training" / "corpus" / "subset"
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    def clips(captions):
        found = []
        for caption in captions:
            paths = [row["path"] for row in rows if row["caption"] == caption][:4]
            for path in paths:
                wav, sample_rate = audio_read(folder / path)
                found.append((resample_frac(wav.mean(0), sample_rate, 44100), caption))
        return found

    return clips
