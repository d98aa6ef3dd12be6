"""Memory that a process keeps for what it allocates next."""

import subprocess
import sys

import pytest

CODE = """
import platform, resource, torch
from audiogen_fast.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(8 << 20)  # 32 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
for _ in range(4):
    faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the page faults of Linux")
def test_freed_memory_is_used_again():
    run = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    pages = 3 * (32 << 20) // 4096
    assert int(run.stdout) < pages / 10  # without it, every page of every tensor
