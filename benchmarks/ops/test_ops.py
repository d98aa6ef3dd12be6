"""Micro-benchmarks of every op, with the bytes that it needs and GB/s in their extra info.

    python -m pytest benchmarks/ops [-k "norm_linear and 2 rows"] [--benchmark-json ops.json]

On the CPU the plain definition and, where there is one, the native form; on a GPU the definition
and the Triton kernel, each time with a cold cache.
"""

import pytest

pytest.importorskip("triton")
pytest.importorskip("pytest_benchmark", reason="pip install 'audiogen-fast[benchmark]'")

import torch  # noqa: E402

from audiogen_fast.launches.cases import all_cases  # noqa: E402
from audiogen_fast.ops import dispatch, native, reference  # noqa: E402
from benchmarks.gpu.timing import COLD_BYTES, synchronize  # noqa: E402

CASES = {str(case): case for case in all_cases()}


def run(benchmark, call, device, needed_bytes, rounds=10):
    """Benchmark single calls; on a GPU each finds the cache filled with something else."""
    flush = torch.empty(COLD_BYTES if device.type == "cuda" else 0, device=device).byte()

    def cold():
        flush.zero_()
        synchronize(device.type)

    def timed():
        call()
        synchronize(device.type)

    with torch.no_grad():
        benchmark.pedantic(timed, setup=cold, rounds=rounds, warmup_rounds=2)
    benchmark.extra_info["bytes"] = needed_bytes
    if benchmark.stats is not None:  # None with --benchmark-disable
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["gb_s"] = round(needed_bytes / seconds / 1e9, 3)


@pytest.mark.parametrize("implementation", ["reference", "native", "triton"])
@pytest.mark.parametrize("name", CASES)
def test_op(benchmark, name, implementation, device):
    case = CASES[name]
    if (implementation, device.type) in (("triton", "cpu"), ("native", "cuda")):
        pytest.skip("not an implementation for this device")
    prepare = {"reference": case.reference, "native": case.native, "triton": case.prepare}
    if prepare[implementation] is None or (implementation == "native" and not native.available()):
        pytest.skip("there is no such implementation")
    benchmark.group = name
    run(benchmark, prepare[implementation](device), device, case.needed_bytes)


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("implementation", ["reference", "native"])
def test_philox_exponential(benchmark, implementation, rows, device):
    module = {"reference": reference, "native": dispatch}[implementation]
    if implementation == "native" and (device.type == "cuda" or not native.available()):
        pytest.skip("there is no such implementation")
    seeds = torch.arange(rows, device=device)
    benchmark.group = f"philox_exponential[{rows} rows]"
    run(
        benchmark,
        lambda: module.philox_exponential(seeds, seeds, 3, 4, 2048),
        device,
        rows * 4 * 2048 * 4,
    )
