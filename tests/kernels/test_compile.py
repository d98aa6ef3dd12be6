"""Every kernel compiles to machine code for each generation of GPU, with no GPU present.

A launch fails when it does not compile, spills a register, takes more shared memory than there
is, or reads an argument in pieces of less than 16 bytes although its layout allows them. The quick
cases run always; all of them: `pytest tests/kernels/test_compile.py -m "slow or not slow"`.
"""

import pytest

pytest.importorskip("triton")

from audiogen_fast.launches.cases import all_cases  # noqa: E402
from audiogen_fast.launches.compile import CAPABILITIES  # noqa: E402
from audiogen_fast.launches.examine import examine, record_case  # noqa: E402

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
