"""A recorded checkpoint of AudioGen's structure, loaded once."""

from pathlib import Path

import pytest

from audiogen_fast import AudioGen

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="session")
def loaded() -> AudioGen:
    return AudioGen.get_pretrained(DATA / "golden" / "plain" / "checkpoint", device="cpu")


@pytest.fixture
def model(loaded: AudioGen) -> AudioGen:
    """The model with short, sampled clips of one window (its windows are 3 s)."""
    loaded.set_custom_progress_callback(None)
    loaded.set_generation_params(duration=0.4)
    return loaded
