"""Every kernel compiles to machine code for each generation of GPU, with no GPU present.

A launch fails when it does not compile, spills a register, takes more shared memory than there
is, or reads an argument in pieces of less than 16 bytes although its layout allows them. The quick
cases run always; all of them: `pytest tests/kernels/test_compile.py -m "slow or not slow"`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from audiogen_fast.launches.cases import all_cases  # noqa: E402
from audiogen_fast.launches.compile import CAPABILITIES  # noqa: E402
from audiogen_fast.launches.examine import examine, record_case  # noqa: E402
from audiogen_fast.launches.record import Launch  # noqa: E402

CASES = {str(case): case for case in all_cases()}
QUICK = [name for name, case in CASES.items() if case.quick]
SLOW = [name for name, case in CASES.items() if not case.quick]


@pytest.fixture(scope="module")
def complaints(request):
    """(name of a case, capability) -> what is wrong with its launches; compiled all at once."""
    with pytest.MonkeyPatch.context() as patch:
        # Kept between runs: Triton finds what it compiled from the same source.
        patch.setenv("TRITON_CACHE_DIR", str(request.config.cache.mkdir("triton")))
        wanted = {
            item.callspec.params["name"]
            for item in request.session.items
            if getattr(item, "callspec", None) and item.path == request.path
        }
        launches = {
            (name, capability): record_case(CASES[name], capability)
            for name in sorted(wanted)
            for capability in CAPABILITIES
        }
        jobs = [(launch, place[1]) for place, group in launches.items() for launch in group]
        examined = iter(examine(jobs))
    found = {}
    for (name, capability), group in launches.items():
        assert group, f"{name} launched nothing"
        found[name, capability] = [
            f"{launch.name} {complaint}"
            for launch in group
            for complaint in next(examined).complaints()
        ]
    return found


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", QUICK)
def test_quick_case(name, capability, complaints):
    assert complaints[name, capability] == []


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", SLOW)
def test_other_case(name, capability, complaints):
    assert complaints[name, capability] == []


@pytest.mark.slow
def test_everything_that_the_interpreter_runs(tmp_path, monkeypatch, request):
    """Every launch of the interpreted tests compiles for every GPU, odd shapes included."""
    path = tmp_path / "launches.json"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "RECORD_LAUNCHES": str(path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    subprocess.run([*command, str(Path(__file__).parent / "launch")], env=environment, check=True)
    recorded = [Launch.from_json(record) for record in json.loads(path.read_text())]
    # Kernels of the tests themselves cannot be imported elsewhere.
    launches = [launch for launch in recorded if launch.kernel.startswith("audiogen_fast.")]
    assert len({launch.kernel for launch in launches}) >= 10
    monkeypatch.setenv("TRITON_CACHE_DIR", str(request.config.cache.mkdir("triton")))
    failed = [
        f"{one.launch.name} on sm_{one.code and one.code.capability}: {one.error}"
        for one in examine((launch, c) for launch in launches for c in CAPABILITIES)
        if one.code is None
    ]
    assert failed == []
