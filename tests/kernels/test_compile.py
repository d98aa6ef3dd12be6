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
from audiogen_fast.launches.steps import record_step  # noqa: E402
from audiogen_fast.models.loaders import load_lm_model  # noqa: E402

CASES = {str(case): case for case in all_cases()}
QUICK = [name for name, case in CASES.items() if case.quick]
SLOW = [name for name, case in CASES.items() if not case.quick]
MEDIUM = {"dim": 1536, "num_heads": 24, "num_layers": 48, "n_q": 4, "card": 2048}
GOLDEN = {"dim": 128, "num_heads": 4, "num_layers": 3, "n_q": 4, "card": 64}
STEPS = {  # size, format of the weights, descriptions
    "golden, float32, 2": (GOLDEN, "float32", 2),
    "medium, bfloat16, 1": (MEDIUM, "bfloat16", 1),
    "medium, int8, 1": (MEDIUM, "int8", 1),
    "medium, int4, 8": (MEDIUM, "int4", 8),
}
OTHER_STEPS = {
    f"medium, {weights}, {descriptions}": (MEDIUM, weights, descriptions)
    for weights in ("bfloat16", "float16", "int8", "int4")
    for descriptions in (1, 4, 8, 32, 64)
    if f"medium, {weights}, {descriptions}" not in STEPS
}


PRODUCTS = ("gemv_kernel", "rows_kernel", "tiles_kernel")
# Kernel of training or the codec -> arrays that it reads 16 bytes at a time, at least.
WIDE = {
    "codebook_embedding_backward_kernel": 1,
    "codebook_embedding_sorted_backward_kernel": 1,
    "add_layer_norm_kernel": 4,
    "add_layer_norm_backward_kernel": 4,
    "gelu_kernel": 1,
    "gelu_backward_kernel": 2,
    "cross_attention_kernel": 3,
    "cross_attention_backward_q_kernel": 5,
    "cross_attention_backward_kv_kernel": 4,
    "cross_entropy_kernel": 1,
    "rvq_decode_kernel": 1,
}


def launches_of(name, capability):
    """The launches of a case or of a decode step."""
    if name in CASES:
        return record_case(CASES[name], capability)
    shape, weights, descriptions = (STEPS | OTHER_STEPS)[name]
    return record_step(shape, descriptions, weights, capability=capability)


@pytest.fixture(scope="module")
def examined(request):
    """(name, capability) -> its launches, compiled and read; all of them at once."""
    with pytest.MonkeyPatch.context() as patch:
        # Kept between runs: Triton finds what it compiled from the same source.
        patch.setenv("TRITON_CACHE_DIR", str(request.config.cache.mkdir("triton")))
        parameters = [
            item.callspec.params
            for item in request.session.items
            if getattr(item, "callspec", None) and item.path == request.path
        ]
        wanted = dict.fromkeys(
            (one["name"], one["capability"]) for one in parameters if "capability" in one
        )
        launches = {place: launches_of(*place) for place in wanted}
        jobs = [(launch, place[1]) for place, group in launches.items() for launch in group]
        found = iter(examine(jobs))
    return {place: [next(found) for _ in group] for place, group in launches.items()}


def complaints(examined, name):
    """What is wrong with the launches of a case or a step."""
    assert examined, f"{name} launched nothing"
    lines = [f"{one.launch.name} {line}" for one in examined for line in one.complaints()]
    if name.startswith("golden"):
        # Rows of 128 numbers are not enough for 16 bytes a thread.
        lines = [line for line in lines if " reads " not in line]
    return sorted(set(lines))


def products_without_matrix_instructions(examined):
    """Kernels that multiply on the matrix cores, and were compiled to something else."""
    forms = ("rows_kernel", "tiles_kernel", "cross_attention_kernel")
    return {
        one.launch.name
        for one in examined
        if one.launch.name in forms
        and one.launch.pointers.get("weight_ptr", one.launch.pointers.get("q_ptr")).dtype
        != "float32"
        and not one.code.matrix
    }


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", [*QUICK, *STEPS])
def test_compiles(name, capability, examined):
    launches = examined[name, capability]
    assert complaints(launches, name) == []
    assert products_without_matrix_instructions(launches) == set()
    for one in launches:
        assert one.code.threads >= 32 and one.code.registers >= 16
        wide = sum(widths.get(16, 0) for widths in one.code.loads.values())
        assert wide >= WIDE.get(one.launch.name, 0), one.launch.name


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", [*SLOW, *OTHER_STEPS])
def test_compiles_too(name, capability, examined):
    assert complaints(examined[name, capability], name) == []
    assert products_without_matrix_instructions(examined[name, capability]) == set()


def test_every_training_kernel_is_among_the_quick_cases():
    seen = {launch.name for name in QUICK for launch in record_case(CASES[name], CAPABILITIES[0])}
    assert set(WIDE) <= seen


@pytest.mark.parametrize(
    ("capability", "instruction"),
    [(80, "mma.sync"), (90, "wgmma.mma_async"), (100, "tcgen05.mma"), (120, "mma.sync")],
)
@pytest.mark.parametrize("name", [f"norm_linear[{r} bfloat16, 128 rows]" for r in ("ff1", "out")])
def test_large_products_use_the_newest_matrix_instruction(name, capability, instruction, examined):
    (one,) = examined[name, capability]
    assert one.launch.name == "tiles_kernel" and set(one.code.matrix) == {instruction}


@pytest.mark.parametrize(
    "weights, gigabytes", [("bfloat16", 3.196), ("int8", 1.601), ("int4", 0.824)]
)
@pytest.mark.parametrize("descriptions", [1, 64])
def test_a_step_launches_and_reads_no_more_than_it_must(descriptions, weights, gigabytes):
    """8 launches a layer and 3 more, and each weight once: 1598 million of the released size."""
    launches = record_step(MEDIUM, descriptions, weights)
    assert len(launches) == 8 * 48 + 3
    products = [one.pointers for one in launches if one.name in PRODUCTS]
    assert len(products) == 6 * 48 + 1
    total = sum(pointers["weight_ptr"].nbytes for pointers in products)
    if weights in ("int8", "int4"):
        total += sum(pointers["scale_ptr"].nbytes for pointers in products)
    assert total / 1e9 == pytest.approx(gigabytes, abs=1e-3)


def test_golden_shape():
    """The step of the golden model is compiled above in the shape that it has."""
    lm = load_lm_model(Path(__file__).parents[1] / "data" / "golden" / "plain" / "checkpoint")
    layers = lm.transformer.layers
    shape = (lm.dim, layers[0].self_attn.num_heads, len(layers), lm.n_q, lm.card)
    assert shape == tuple(GOLDEN.values())
    assert layers[0].linear1.out_features == 4 * lm.dim


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
