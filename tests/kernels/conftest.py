"""`launch/` needs a GPU, or the interpreter, which test_interpreted.py turns on in a process."""

import json
import os
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# An interpreted kernel cannot be compiled, a compiled one cannot be launched without a GPU.
collect_ignore = ["test_compile.py"] if INTERPRETED else []
if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore.append("launch")


@pytest.fixture(scope="session", autouse=True)
def record_launches():
    """Writes what every kernel is launched with to the file that RECORD_LAUNCHES names."""
    path = os.environ.get("RECORD_LAUNCHES")
    if path is None:
        yield
        return
    from audiogen_fast.launches.record import recording

    with recording(execute=True) as launches:
        yield
    # A launch of other sizes is another record, of which many compile to the same.
    different = {json.dumps(launch.to_json()): None for launch in launches}
    Path(path).write_text("[" + ",".join(different) + "]")
