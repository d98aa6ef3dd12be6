"""`launch/` needs a GPU, or the interpreter, which test_interpreted.py turns on in a process."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.fixture
def compile_ahead(tmp_path, monkeypatch) -> Callable[..., dict[str, Any]]:
    """Compiles a kernel without a GPU: `(kernel, types, constexprs, aligned, capability) -> asm`.

    `types` names the Triton type of each argument that is not in `constexprs`; `aligned` lists the
    arguments that a launch would find divisible by 16.
    """
    compiler = pytest.importorskip("triton.compiler")
    target = pytest.importorskip("triton.backends.compiler").GPUTarget
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def compile_kernel(kernel, types, constexprs, aligned, capability):
        names = kernel.arg_names
        signature = {name: types.get(name, "constexpr") for name in names}
        attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
        source = compiler.ASTSource(kernel, signature, constexprs, attributes)
        return compiler.compile(source, target=target("cuda", capability, 32)).asm

    return compile_kernel


@pytest.fixture
def spilled_bytes(tmp_path) -> Callable[[str], int]:
    """Bytes of registers that ptxas stores to and loads from local memory for some PTX."""
    nvidia = pytest.importorskip("triton.knobs").nvidia

    def count(ptx: str) -> int:
        source = tmp_path / "kernel.ptx"
        source.write_text(ptx)
        architecture = re.search(r"\.target (\w+)", ptx)[1]
        for tool in (nvidia.ptxas, nvidia.ptxas_blackwell):  # one of the two knows this PTX version
            command = [tool.path, "-v", f"--gpu-name={architecture}", source, "-o", os.devnull]
            run = subprocess.run(command, capture_output=True, text=True)
            report = run.stdout + run.stderr
            if run.returncode == 0:
                spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
                assert len(spills) >= 2, report
                return sum(map(int, spills))
        raise AssertionError(report)

    return count
