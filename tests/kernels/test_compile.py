"""Every kernel compiles to machine code for each generation of GPU, with no GPU present."""

import pytest

INTEGERS = (
    "S",
    "ROWS",
    "D",
    "codes_stride_b",
    "codes_stride_k",
    "codes_stride_s",
    "positions_stride_b",
    "positions_stride_s",
)


@pytest.mark.parametrize("has_positions", [False, True])
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_codebook_embedding(capability, has_positions, compile_ahead, spilled_bytes):
    module = pytest.importorskip("audiogen_fast.kernels.codebook_embedding")
    pointers = {
        "codes_ptr": "*i64",
        "tables_ptr": "*fp32",
        "positions_ptr": "*i64",
        "divisors_ptr": "*fp32",
        "out_ptr": "*fp32",
    }
    asm = compile_ahead(
        module.codebook_embedding_kernel,
        types={**pointers, **dict.fromkeys(INTEGERS, "i32")},
        constexprs={"K": 4, "HAS_POSITIONS": has_positions, "BLOCK_D": 512},
        aligned=[*pointers, "D"],
        capability=capability,
    )
    assert asm["cubin"].startswith(b"\x7fELF")
    assert spilled_bytes(asm["ptx"]) == 0
    # Four rows, and the divisors with positions, each read 16 bytes at a time.
    assert asm["ptx"].count("ld.global.v4.b32") == 4 + has_positions
