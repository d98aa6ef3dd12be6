"""Fixtures for every folder of tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout that these tests belong to."""
    return Path(__file__).resolve().parent.parent
