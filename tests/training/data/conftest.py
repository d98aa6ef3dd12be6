"""Recordings that tell where they come from, and manifests of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiogen_fast.training.data import Manifest, read_manifest

RATE = 16_000
SECONDS = (0.5, 1.0, 2.0, 3.5)


@pytest.fixture(scope="session")
def recordings(project_root) -> Path:
    """Three real ones: 2.66 s, 1.31 s and 0.64 s, mono, 16 kHz."""
    return project_root / "tests" / "data" / "recordings"


@pytest.fixture(scope="session")
def checkpoint(project_root) -> Path:
    """A tiny random model: 16 kHz, 50 frames a second, four codebooks of 64, T5 of width 512."""
    return project_root / "tests" / "data" / "golden" / "plain" / "checkpoint"


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Recordings of noise, 0.5 to 3.5 s, each with a sidecar in the original's layout."""
    folder = tmp_path_factory.mktemp("noise")
    rows = []
    for number, seconds in enumerate(SECONDS):
        noise = np.random.default_rng(number).integers(-9000, 9000, int(seconds * RATE))
        path = folder / f"noise-{number}.wav"
        soundfile.write(path, noise.astype(np.int16), RATE, "PCM_16")
        info = {"description": f" Noise number {number}", "weight": None, "tempo": 90 + number}
        path.with_suffix(".json").write_text(json.dumps(info))
        rows.append(original_row(path, seconds))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "data.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="session")
def manifest(folder) -> Manifest:
    return read_manifest(folder)


def original_row(path, seconds) -> dict:
    """A line as the original's tool writes it."""
    return {
        "path": str(path),
        "duration": seconds,
        "sample_rate": RATE,
        "amplitude": None,
        "weight": None,
        "info_path": None,
    }
