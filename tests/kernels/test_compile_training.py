"""The training kernels compile for each generation of GPU, with no GPU present, at real sizes."""

import re

import pytest

CAPABILITIES = [80, 90, 100, 120]


def pointers(**types):
    return {f"{name}_ptr": f"*{kind}" for name, kind in types.items()}


def case(module, kernel, types, integers, constexprs, wide_loads, floats=()):
    """One specialisation; `wide_loads` is how many arrays are read 16 bytes at a time."""
    types = types | dict.fromkeys(integers, "i32") | dict.fromkeys(floats, "fp32")
    return pytest.param(module, kernel, types, constexprs, wide_loads, id=f"{kernel}")


NORM = {"BLOCK_N": 2048}
ATTENTION = {"D": 64, "BLOCK_T": 64, "BLOCK_L": 32, "BLOCK_D": 64}
CODES = ("codes_stride_b", "codes_stride_k", "codes_stride_s")


def strides(*names):
    return [f"{name}_stride_{axis}" for name in names for axis in "bht"]


def inputs(kind, *names):
    return {name: kind for name in names}


CASES = [
    case(
        "codebook_embedding",
        "codebook_embedding_backward_kernel",
        pointers(grad="fp32", codes="i64", grad_tables="fp32"),
        ("S", "ROWS", "D", *CODES),
        {"K": 4, "BLOCK_D": 512},
        1,
    ),
    case(
        "codebook_embedding",
        "codebook_embedding_sorted_backward_kernel",
        pointers(grad="fp32", order="i64", starts="i64", grad_tables="fp32"),
        ("TOKENS", "ROWS", "D"),
        {"BLOCK_TOKENS": 8, "BLOCK_D": 512},
        1,
    ),
    case(
        "add_layer_norm",
        "add_layer_norm_kernel",
        pointers(
            **inputs("bf16", "x", "weight", "bias", "out"),
            **inputs("fp32", "residual", "sum", "mean", "rstd"),
        ),
        ("N", "x_stride", "residual_stride"),
        {**NORM, "HAS_BIAS": True},
        4,
        floats=["eps"],
    ),
    case(
        "add_layer_norm",
        "add_layer_norm_backward_kernel",
        pointers(
            **inputs("bf16", "grad_out", "weight"),
            **inputs("fp32", "grad_sum", "sum", "mean", "rstd", "grad"),
            **inputs("fp32", "grad_weight", "grad_bias"),
        ),
        ("M", "N", "grad_out_stride", "grad_sum_stride"),
        NORM,
        4,
    ),
    case("mlp", "gelu_kernel", pointers(u="bf16", out="bf16"), ("size",), {"BLOCK": 1024}, 1),
    case(
        "mlp",
        "gelu_backward_kernel",
        pointers(grad="bf16", u="bf16", out="bf16"),
        ("size",),
        {"BLOCK": 1024},
        2,
    ),
    case(
        "cross_attention_train",
        "cross_attention_kernel",
        pointers(
            **inputs("bf16", "q", "k", "v", "out"),
            **inputs("i64", "lengths", "n_pad"),
            stats="fp32",
        ),
        ("H", "T", "L", *strides("q", "k", "v")),
        ATTENTION,
        3,
        floats=["scale"],
    ),
    case(
        "cross_attention_train",
        "cross_attention_backward_q_kernel",
        pointers(
            **inputs("bf16", "do", "out", "q", "k", "v", "dq"),
            **inputs("fp32", "stats", "delta"),
            lengths="i64",
        ),
        ("H", "T", "L", *strides("do", "q", "k", "v")),
        ATTENTION,
        5,
        floats=["scale"],
    ),
    case(
        "cross_attention_train",
        "cross_attention_backward_kv_kernel",
        pointers(
            **inputs("bf16", "do", "q", "k", "v", "dk", "dv"),
            **inputs("fp32", "stats", "delta"),
            lengths="i64",
        ),
        ("H", "T", "L", *strides("do", "q", "k", "v")),
        ATTENTION,
        4,
        floats=["scale"],
    ),
    case(
        "codebook_cross_entropy",
        "cross_entropy_kernel",
        pointers(logits="bf16", targets="i64", share="fp32", losses="fp32"),
        ("first", "S", "K", "CARD"),
        {"WRITE_GRADIENT": True, "BLOCK": 2048},
        1,
    ),
]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("module", "kernel", "types", "constexprs", "wide_loads"), CASES)
def test_compiles_without_spills_and_with_wide_loads(
    module, kernel, types, constexprs, wide_loads, capability, compile_ahead, spilled_bytes
):
    kernel = getattr(pytest.importorskip(f"audiogen_fast.kernels.{module}"), kernel)
    aligned = [name for name in types if name.endswith("_ptr") or "stride_" in name]
    aligned += [name for name in ("N", "D", "CARD", "size") if name in types]
    aligned += [name for name in types if name.endswith("_stride")]
    asm = compile_ahead(kernel, types, constexprs, aligned, capability)
    assert asm["cubin"].startswith(b"\x7fELF")
    assert spilled_bytes(asm["ptx"]) == 0
    wide = re.findall(
        r"ld\.global\.\S*v4\.(?:b32|f32)|cp\.async\.cg\.\S+ \[[^;]*, 0x10", asm["ptx"]
    )
    assert len(wide) >= wide_loads, asm["ptx"].count("ld.global")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_rvq_decode(capability, compile_ahead, spilled_bytes):
    module = pytest.importorskip("audiogen_fast.kernels.rvq_decode")
    books = ("*fp32",) * 4
    asm = compile_ahead(
        module.rvq_decode_kernel,
        types={
            "codes_ptr": "*i64",
            "codebook_ptrs": books,
            "out_ptr": "*fp32",
            **dict.fromkeys(("T", "ROWS", "D"), "i32"),
            **dict.fromkeys([f"codes_stride_{axis}" for axis in "bkt"], "i32"),
        },
        constexprs={"K": 4, "BLOCK_T": 32, "BLOCK_D": 64},
        aligned=["codes_ptr", "out_ptr", "D"],
        capability=capability,
    )
    assert asm["cubin"].startswith(b"\x7fELF")
    assert spilled_bytes(asm["ptx"]) == 0
