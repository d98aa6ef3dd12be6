"""Fixtures for every folder of tests."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout that these tests belong to."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread: the tensors are so small that handing them out costs more than it brings."""
    torch.set_num_threads(1)
