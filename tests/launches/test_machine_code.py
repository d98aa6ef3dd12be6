"""The reader of compiled kernels sees spills, narrow loads and matrix instructions."""

import dataclasses

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from audiogen_fast.kernels._launch import OPTIONS  # noqa: E402
from audiogen_fast.launches import machine_code  # noqa: E402
from audiogen_fast.launches.examine import examine  # noqa: E402
from audiogen_fast.launches.record import recording  # noqa: E402


@triton.jit
def sum_kernel(x_ptr, y_ptr, out_ptr, stride, BLOCK: tl.constexpr, ROUNDS: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for _ in range(ROUNDS):
        x = tl.load(x_ptr + cols * stride).to(tl.float32)
        total += x * tl.sum(x, axis=0)
        x_ptr += BLOCK
    tl.store(out_ptr + cols, total + tl.load(y_ptr + cols).to(tl.float32))


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at))
    tl.store(out_ptr + at, product)


@triton.jit
def lookup_kernel(pointers_ptr, out_ptr):
    ptr = tl.load(pointers_ptr).to(tl.pointer_type(tl.float32))
    tl.store(out_ptr, tl.load(ptr))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def compiled(launcher, capability=90):
    with recording(execute=False) as launches:
        launcher()
    (one,) = examine([(launches[0], capability)], processes=1)
    assert not one.error, one.error
    return one


def run_sum(x, y, stride=1, block=512, **options):
    return lambda: sum_kernel[(1,)](
        x, y, meta(block), stride, BLOCK=block, ROUNDS=3, **OPTIONS | options
    )


@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_loads_by_argument_through_a_loop(capability):
    one = compiled(run_sum(meta(2048), meta(512, dtype=torch.float16)), capability)
    assert set(one.code.loads) == {"x_ptr", "y_ptr"}
    assert max(one.code.loads["x_ptr"]) == 16  # 4 floats of 128 threads
    assert one.code.loads["y_ptr"] == {8: 1}
    assert one.code.stores == {"out_ptr": {16: 1}}
    assert one.code.widest_load == 16
    assert one.code.spilled_bytes == 0 and one.code.shared_bytes > 0
    assert one.code.threads == 128 and 8 < one.code.registers < 128
    assert one.complaints() == ["reads y_ptr only 8 bytes at a time"]


def test_small_arguments_may_be_read_narrowly():
    assert compiled(run_sum(meta(65536), meta(512, dtype=torch.float16))).complaints() == []


@pytest.mark.parametrize("x", [meta(4097)[1:], meta(2049, 2)[:, 0], meta(4096, dtype=torch.int32)])
def test_layouts_that_allow_no_vectors(x):
    """Misaligned, not contiguous, integers (which index rather than stream)."""
    one = compiled(run_sum(x, meta(512, dtype=torch.float16), stride=3))
    assert max(one.code.loads["x_ptr"]) == 4
    assert not any("x_ptr" in line for line in one.complaints())


def test_strided_reading_of_a_contiguous_row_is_narrow():
    one = compiled(run_sum(meta(4096), meta(512), stride=3))
    assert one.complaints() == ["reads x_ptr only 4 bytes at a time"]


def test_spills():
    x, y = meta(8192), meta(2048)
    assert compiled(run_sum(x, y, block=2048)).code.spilled_bytes == 0
    one = compiled(run_sum(x, y, block=2048, maxnreg=24))
    assert one.code.spilled_bytes > 0 and one.code.registers <= 24
    assert any("spills" in line for line in one.complaints())


def test_shared_memory_limit():
    operands = [meta(128, 128, dtype=torch.float16) for _ in range(2)]
    one = compiled(lambda: dot_kernel[(1,)](*operands, meta(128, 128), N=128, **OPTIONS), 120)
    assert one.code.shared_bytes >= 2 * 128 * 128 * 2
    assert not any("shared" in line for line in one.complaints())
    larger = dataclasses.replace(one.code, shared_bytes=101377)
    complaints = dataclasses.replace(one, code=larger).complaints()
    assert "takes 101377 bytes of shared memory of 101376" in complaints


@pytest.mark.parametrize(
    "capability, instruction", [(80, "mma.sync"), (90, "wgmma.mma_async"), (100, "tcgen05.mma")]
)
def test_matrix_instructions(capability, instruction):
    operands = [meta(128, 128, dtype=torch.float16) for _ in range(2)]
    one = compiled(
        lambda: dot_kernel[(1,)](*operands, meta(128, 128), N=128, **OPTIONS), capability
    )
    assert instruction in one.code.matrix


def test_loads_without_an_argument_are_reported():
    one = compiled(lambda: lookup_kernel[(1,)](meta(1, dtype=torch.int64), meta(1), **OPTIONS))
    assert "has loads that belong to no argument" in one.complaints()


def test_compile_error_is_a_result():
    with recording(execute=False) as launches:
        dot_kernel[(1,)](meta(9), meta(9), meta(9), N=3, **OPTIONS)
    (one,) = examine([(launches[0], 90)], processes=1)
    assert one.complaints()[0].startswith("does not compile: CompilationError")


def test_ptx_agrees_with_the_machine_code():
    from audiogen_fast.launches.compile import compile_launch

    with recording(execute=False) as launches:
        run_sum(meta(2048), meta(512))()
    cubin = compile_launch(launches[0], 80).asm["cubin"]
    found = machine_code.instructions(cubin)
    assert any(name.startswith("LDG") and ".128" in name for name in found)
    assert any(name.startswith("STG") and ".128" in name for name in found)
    assert not any(name.startswith(("LDL", "STL")) for name in found)


def test_asynchronous_copies_are_loads():
    ptx = """
    .visible .entry k(.param .u64 k_param_0) {
    ld.param.b64 %rd1, [k_param_0];
    add.s64 %rd2, %rd1, %rd9;
    cp.async.cg.shared.global [ %r1 + 0 ], [ %rd2 + 0 ], 0x10, 0x10;
    }"""
    assert machine_code.accesses(ptx, ["weight_ptr"]) == ({"weight_ptr": {16: 1}}, {})
