"""Runs `interpreted/` under Triton's interpreter, which is chosen when a kernel is decorated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_engine_with_the_fused_step_under_the_interpreter():
    pytest.importorskip("triton")
    folder = Path(__file__).parent / "interpreted"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(run.stdout, run.stderr)
    assert run.returncode == 0, run.stdout[-4000:]
