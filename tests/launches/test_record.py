"""What is recorded of a launch, and that nothing is lost on the way through JSON."""

import json

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from audiogen_fast.launches.compile import compile_launch  # noqa: E402
from audiogen_fast.launches.record import Launch, Named, Pointer, recording  # noqa: E402


@triton.jit
def double(x):
    return x * 2


@triton.jit
def scale_kernel(
    x_ptr,
    out_ptr,
    N,
    factor,
    optional_ptr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    FUNCTION: tl.constexpr,
):
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + cols, mask=cols < N, other=0.0).to(KIND)
    if optional_ptr is not None:
        x += tl.load(optional_ptr)
    tl.store(out_ptr + cols, FUNCTION(x * factor).to(out_ptr.dtype.element_ty), mask=cols < N)


def record(x, n=100, **options):
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with recording(execute=False) as launches:
        scale_kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](
            x, out, n, 0.5, None, BLOCK=64, KIND=tl.float32, FUNCTION=double, **options
        )
    return launches[0]


def test_fields():
    whole = torch.empty(32, 32, device="meta", dtype=torch.bfloat16)
    launch = record(whole[1:, 3:5], num_warps=2)
    assert launch.name == "scale_kernel"
    assert launch.kernel == f"{__name__}:scale_kernel"
    # 1 row of 32 and 3 elements of 2 bytes: 70 = 4 * 16 + 6
    assert launch.arguments["x_ptr"] == Pointer("bfloat16", 6, (31, 2), (32, 1))
    assert launch.arguments["N"] == 100 and launch.arguments["factor"] == 0.5
    assert launch.arguments["optional_ptr"] is None
    assert launch.arguments["KIND"] == Named("dtype", "fp32")
    assert launch.arguments["FUNCTION"].kind == "kernel"
    assert launch.options == {"num_warps": 2}
    assert launch.grid == (2, 1, 1)


def test_json_keeps_everything():
    launch = record(torch.empty(7, device="meta"))
    assert Launch.from_json(json.loads(json.dumps(launch.to_json()))) == launch


def test_nothing_stays_patched():
    before = triton.runtime.jit.JITFunction.run
    with pytest.raises(RuntimeError, match="inside"), recording(execute=False):
        assert triton.runtime.jit.JITFunction.run is not before
        raise RuntimeError("inside")
    assert triton.runtime.jit.JITFunction.run is before


def test_only_plain_arguments_are_recorded():
    with pytest.raises(TypeError, match="object"):
        with recording(execute=False):
            scale_kernel[(1,)](object(), None, 1, 1.0, None, BLOCK=1, KIND=None, FUNCTION=None)


def test_compiles_what_the_launch_would(tmp_path, monkeypatch):
    """Alignment, divisibility, ones, options and constants all reach the compiler."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    driver = triton.runtime.driver._active
    aligned = compile_launch(record(torch.empty(128, device="meta"), 128, num_warps=1), 90)
    assert aligned.metadata.num_warps == 1 and aligned.metadata.target.arch == 90
    assert ".target sm_90" in aligned.asm["ptx"]
    assert "ld.global.v2.b32" in aligned.asm["ptx"]  # 64 elements of 32 threads
    odd = compile_launch(record(torch.empty(128, device="meta")[1:], 127, num_warps=1), 90)
    assert "ld.global.v2.b32" not in odd.asm["ptx"]
    one = compile_launch(record(torch.empty(1, device="meta"), 1, num_warps=1), 80)
    assert one.src.signature["N"] == "constexpr"  # Triton makes a constant of 1
    assert one.src.signature["optional_ptr"] == "constexpr"
    assert one.src.signature["factor"] == "fp32"
    assert ".target sm_80" in one.asm["ptx"]
    assert triton.runtime.driver._active is driver
