"""Fixtures of the command line and the demo."""

import json
from pathlib import Path

import pytest

from audiogen_fast.cli import main


@pytest.fixture(scope="session")
def checkpoint(project_root) -> Path:
    """A tiny random model with windows of 3 s, 16 kHz, 50 frames a second."""
    return project_root / "tests" / "data" / "golden" / "plain" / "checkpoint"


@pytest.fixture(scope="session")
def recordings(project_root) -> list[Path]:
    """The shortest two: 1.31 s and 0.64 s."""
    folder = project_root / "tests" / "data" / "recordings"
    return [next(folder.glob("openttd-opensfx-36-*")), next(folder.glob("sonic-pi-samples-*"))]


@pytest.fixture
def run_json(capsys):
    """Runs a command line with `--json`; returns its exit status and the object it printed."""

    def run(*arguments):
        capsys.readouterr()
        status = main([*map(str, arguments), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run
