"""`norm_linear` in every form, on a GPU or, in its own process, interpreted on the CPU."""

import math
import os

import pytest
import torch

from audiogen_fast.ops import reference
from audiogen_fast.ops.weight_formats import dequantize, quantize

norm_linear = pytest.importorskip("audiogen_fast.kernels.norm_linear")
configs = pytest.importorskip("audiogen_fast.kernels.norm_linear_config")
statistics = pytest.importorskip("audiogen_fast.kernels.row_statistics")
launch, Config = norm_linear.norm_linear, configs.Config
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
NAN = float("nan")
# In float32 too, which a GPU's ordinary cores can multiply in tiles as small as these.
SMALL_TILES = Config("tiles", 16, 64, 16, 1, 4)
# R, K, N: one, odd, whole blocks, several programs, more than one block of rows.
SHAPES = [(1, 1, 1), (2, 40, 24), (3, 130, 37), (4, 64, 16), (5, 33, 70), (16, 96, 40), (70, 48, 9)]
FORMATS = ["float32", "float16", "bfloat16", "int8", "int4-64", "int4-128"]


def random(*shape, seed=0, dtype=torch.float32) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(DEVICE, dtype)


def packed(weight: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor | None, object]:
    """(weight as the kernel takes it, scale, the float32 matrix it stands for)."""
    if name.startswith("int"):
        format, _, group = name.partition("-")
        both = quantize(weight, format, int(group or 128))
        return both.data, both.scale, dequantize(both)
    weight = weight.to(getattr(torch, name))
    return weight, None, weight.float()


def poisoned(*shape, dtype=torch.float32) -> torch.Tensor:
    return torch.full(shape, NAN, device=DEVICE, dtype=dtype)


def assert_near(actual, exact, *, compute=torch.float32, terms=1.0):
    """Within rounding: of the operands in the dtype of the product, and of float32 sums."""
    step = {torch.float32: 2**-22, torch.float16: 2**-10, torch.bfloat16: 2**-7}[compute]
    limit = step * terms
    error = (actual.double() - exact).abs().max().item()
    assert error <= limit, f"largest error {error:.3g}, limit {limit:.3g}"


def size_of_terms(a: torch.Tensor, weight: torch.Tensor) -> float:
    """Largest sum of the magnitudes that a product adds: what its rounding is relative to."""
    return (a.abs().double() @ weight.abs().double().t()).max().item() + 1e-30


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_plain_product(shape, name):
    rows, k, n = shape
    weight, scale, stands_for = packed(random(n, k, seed=1), name)
    x, out = random(rows, k), poisoned(rows, n)
    assert launch(x, weight, out, scale=scale, compute_dtype=torch.float32) is out
    exact = x.double() @ stands_for.double().t()
    few = rows <= configs.GEMV_ROWS
    rounded = torch.float16 if name == "float16" else torch.bfloat16 if name[0] == "b" else None
    compute = torch.float32 if few or rounded is None else rounded
    assert_near(out, exact, compute=compute, terms=size_of_terms(x, stands_for))


@pytest.mark.parametrize("name", ["float32", "float16", "int8", "int4-64"])
@pytest.mark.parametrize(("rows", "slots"), [(2, 1), (3, 3), (6, 3)])
def test_norm_guidance_bias_and_gelu(rows, slots, name):
    k, n = 72, 21
    weight, scale, stands_for = packed(random(n, k, seed=1), name)
    norm = (random(k, seed=2) + 1, random(k, seed=3))
    bias, x = random(n, seed=4), random(2 * rows, k, seed=5) * 3 + 2
    guidance = torch.linspace(1.0, 3.0, slots, device=DEVICE)
    out = poisoned(rows, n)
    launch(
        x, weight, out, scale=scale, bias=bias, norm=norm, guidance=guidance, gelu=True,
        compute_dtype=torch.float32,
    )  # fmt: skip
    exact = reference.norm_linear(
        x.double(),
        stands_for.double(),
        bias.double(),
        (norm[0].double(), norm[1].double()),
        guidance=guidance.repeat(rows // slots),
        gelu=True,
    )
    few = rows <= configs.GEMV_ROWS or name != "float16"
    a = reference.layer_norm(x, *norm, 1e-5).abs()
    terms = 5 * size_of_terms(a, stands_for)
    assert_near(out, exact, compute=torch.float32 if few else torch.float16, terms=terms)


@pytest.mark.parametrize("rows", [2, 6])
def test_residual_is_added_once_and_only_to_active_rows(rows):
    x, weight = random(rows, 50), random(30, 50, seed=1)
    before = random(rows, 30, seed=2)
    active = torch.tensor([True, False], device=DEVICE)
    out = before.clone()
    out[1::2] = NAN  # an inactive row is neither read into others nor written
    launch(x, weight, out, residual=True, active=active)
    exact = before.double() + x.double() @ weight.double().t()
    assert_near(out[::2], exact[::2], terms=size_of_terms(x, weight))
    assert out[1::2].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [3, 6, 36])
def test_keys_and_values_go_to_their_positions(rows, dtype):
    heads, width, capacity, k = 3, 5, 7, 20
    x, weight = random(rows, k), random(3 * heads * width, k, seed=1)
    # Caches inside a larger tensor, so that their strides are not those of their shape.
    caches = poisoned(2, rows, heads, capacity + 2, width, dtype=dtype)[:, :, :, :capacity]
    positions = torch.arange(rows, device=DEVICE, dtype=torch.int32) % capacity
    positions[0], positions[1] = capacity, -1  # outside: nothing is written
    out = poisoned(rows, heads * width)
    append = norm_linear.KVAppend(caches[0], caches[1], positions)
    launch(x, weight, out, append=append, config=SMALL_TILES if rows > 32 else None)
    q, keys, values = (x.double() @ weight.double().t()).chunk(3, dim=1)
    assert_near(out, q, terms=size_of_terms(x, weight))
    expected = poisoned(2, rows, heads, capacity, width, dtype=dtype)
    for row in range(2, rows):
        expected[0, row, :, positions[row]] = keys[row].view(heads, width).to(dtype)
        expected[1, row, :, positions[row]] = values[row].view(heads, width).to(dtype)
    written = expected.isfinite()
    assert torch.equal(caches.isfinite(), written)
    step = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(caches[written], expected[written], rtol=step, atol=1e-5)


@pytest.mark.parametrize("name", ["float32", "float16", "int8", "int4-64"])
@pytest.mark.parametrize(
    "config",
    [
        Config("gemv", 2, 4, 0, 3, 4),
        Config("gemv", 4, 16, 0, 2, 4),
        Config("rows", 16, 32, 64, 2, 4),
        Config("rows", 16, 16, 64, 4, 4),
        Config("tiles", 64, 64, 64, 2, 4),
        Config("tiles", 16, 16, 64, 4, 4),
    ],
)
def test_split_products_equal_whole_ones_and_leave_the_counters_zero(config, name):
    rows, k, n = 2, 300, 21
    weight, scale, stands_for = packed(random(n, k, seed=1), name)
    x, norm = random(rows, k), (random(k, seed=2), random(k, seed=3))
    sizes = configs.workspace_sizes(config, rows, n)
    workspace = norm_linear.Workspace(
        poisoned(sizes[0] + 3), torch.zeros(sizes[1], dtype=torch.int32, device=DEVICE)
    )
    exact = reference.norm_linear(
        x.double(), stands_for.double(), None, (norm[0].double(), norm[1].double())
    )
    for _ in range(2):  # the second launch finds the counters as the first did
        out = poisoned(rows, n)
        launch(
            x, weight, out, scale=scale, norm=norm, workspace=workspace, config=config,
            compute_dtype=torch.float32,
        )  # fmt: skip
        half = name == "float16" and config.kind != "gemv"
        a = reference.layer_norm(x, *norm, 1e-5)
        compute = torch.float16 if half else torch.float32
        assert_near(out, exact, compute=compute, terms=size_of_terms(a, stands_for))
        assert not workspace.counters.any() and workspace.partial[-3:].isnan().all()


@pytest.mark.parametrize("rows", [2, 5, 35])
def test_extremes(rows):
    """A large mean does not eat the norm, and a row of one value is its bias."""
    k, n = 640, 8
    weight = random(n, k, seed=1)
    norm = (torch.ones(k, device=DEVICE), torch.full([k], 0.5, device=DEVICE))
    x = random(rows, k) + 1e4
    x[0] = 3e18
    x[1, 128:] -= 2e4  # the first columns say little about the others
    out = poisoned(rows, n)
    launch(x, weight, out, norm=norm, config=SMALL_TILES if rows > 32 else None)
    exact = reference.norm_linear(
        x.double(), weight.double(), None, (norm[0].double(), norm[1].double())
    )
    same = reference.norm_linear(x, weight, None, norm)
    limit = 2 * (same.double() - exact).abs().max() + 1e-5
    assert (out.double() - exact).abs().max() <= limit
    zero = torch.zeros(rows, k, device=DEVICE)
    launch(zero, weight, out)
    assert not out.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [3, 8, 40])
def test_error_is_at_most_twice_that_of_torch(rows, dtype):
    """Half precision inputs and outputs: layer norm in float32, product in the weights' dtype."""
    k, n = 256, 48
    weight, norm = random(n, k, seed=1, dtype=dtype), (random(k, seed=2), random(k, seed=3))
    x, out = random(rows, k), poisoned(rows, n, dtype=dtype)
    launch(x, weight, out, norm=norm)
    exact = reference.norm_linear(
        x.double(), weight.double(), None, (norm[0].double(), norm[1].double())
    )
    normed = reference.layer_norm(x, *norm, 1e-5).to(dtype)
    theirs = torch.nn.functional.linear(normed, weight)
    assert (out.double() - exact).norm() <= 2 * (theirs.double() - exact).norm()


MANY = [(33, 130, 37), (64, 64, 192), (70, 200, 9), (129, 96, 130), (160, 256, 64)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", MANY)
def test_many_rows_with_a_norm(shape, name):
    """The statistics are made by a launch of their own, and are those of somebody else's rows."""
    rows, k, n = shape
    config = SMALL_TILES if name == "float32" else None
    weight, scale, stands_for = packed(random(n, k, seed=1), name)
    x, norm = random(rows, k) * 3 + 4, (random(k, seed=2), random(k, seed=3))
    out = poisoned(rows, n)
    launch(x, weight, out, scale=scale, norm=norm, config=config)
    exact = reference.norm_linear(
        x.double(), stands_for.double(), None, (norm[0].double(), norm[1].double())
    )
    a = reference.layer_norm(x, *norm, 1e-5)
    rounded = {"float16": torch.float16, "float32": torch.float32}.get(name, torch.bfloat16)
    assert_near(out, exact, compute=rounded, terms=4 * size_of_terms(a, stands_for))
    wrong = torch.stack([torch.full_like(x[0], 3.0)] * rows)
    given = torch.full(statistics.statistics_shape(rows + 5, k), NAN, device=DEVICE)
    given[..., :rows] = statistics.row_statistics(wrong, poisoned(2, -(-k // 64), rows))
    launch(x, weight, out, scale=scale, norm=norm, eps=1.0, statistics=given, config=config)
    exact = ((x - 3) * norm[0] + norm[1]).double() @ stands_for.double().t()
    a = (x - 3) * norm[0] + norm[1]
    assert_near(out, exact, compute=rounded, terms=4 * size_of_terms(a, stands_for))


@pytest.mark.parametrize("slots", [1, 40])
def test_many_rows_with_guidance_and_gelu(slots):
    rows, k, n = 40, 72, 21
    weight, norm = random(n, k, seed=1), (random(k, seed=2) + 1, random(k, seed=3))
    bias, x = random(n, seed=4), random(2 * rows, k, seed=5) * 3 + 2
    guidance = torch.linspace(1.0, 3.0, slots, device=DEVICE)
    out = poisoned(rows, n)
    launch(
        x, weight, out, bias=bias, norm=norm, guidance=guidance, gelu=True, config=SMALL_TILES
    )  # fmt: skip
    exact = reference.norm_linear(
        x.double(),
        weight.double(),
        bias.double(),
        (norm[0].double(), norm[1].double()),
        guidance=guidance.repeat(rows // slots),
        gelu=True,
    )
    terms = 5 * size_of_terms(reference.layer_norm(x, *norm, 1e-5).abs(), weight)
    assert_near(out, exact, terms=terms)


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("shape", [(37, 50, 30), (70, 200, 128), (40, 70, 193)])
def test_statistics_of_the_sum_are_left_for_the_next_norm(shape, split):
    """Those of the rows that were written, and no others."""
    rows, k, n = shape
    x, weight, before = random(rows, k), random(n, k, seed=1), random(rows, n, seed=2) + 100
    active = torch.arange(rows, device=DEVICE) % 3 != 1
    out, after = before.clone(), poisoned(2, -(-n // 64), rows + 2)
    config = Config("tiles", 16, 128, 16, split, 4)
    launch(
        x, weight, out, residual=True, active=active, out_statistics=after, config=config
    )  # fmt: skip
    exact = before.double() + x.double() @ weight.double().t()
    assert_near(out[active], exact[active], terms=size_of_terms(x, weight) + 100)
    assert torch.equal(out[~active], before[~active])
    assert after[..., :rows][..., ~active].isnan().all() and after[..., rows:].isnan().all()
    for part in range(-(-n // 64)):
        columns = out[active][:, 64 * part : 64 * part + 64].double()
        assert_near(after[0, part, :rows][active], columns.mean(1), terms=100)
        spread = columns.var(1, correction=0) * columns.shape[1]
        torch.testing.assert_close(
            after[1, part, :rows][active].double(), spread, rtol=1e-4, atol=1e-4
        )


SIZES = ((4608, 1536), (1536, 1536), (6144, 1536), (1536, 6144), (8192, 1536))  # of the model


def test_configurations_fill_a_gpu_and_cover_k():
    """At the sizes of the released model, for an H100's 132 multiprocessors."""
    for rows in (1, 2, 4, 5, 8, 16, 32):
        for n, k in SIZES:
            for bits, group in ((32, 0), (16, 0), (8, k), (4, 64), (4, 128)):
                if rows > 8 and bits < 32:
                    continue  # tiles, below
                config = configs.choose_config(rows, n, k, bits, group, 132)
                tiles = -(-n // config.block_n) * config.split
                assert config.kind == ("gemv" if rows <= 4 else "rows")
                assert tiles * -(-rows // config.block_m) >= 132
                assert config.block_m * -(-rows // config.block_m) >= rows


@pytest.mark.parametrize(
    ("processors", "shared"), [(132, 232448), (108, 166912), (128, 101376), (170, 101376)]
)
def test_large_blocks_move_little_and_fit(processors, shared):
    """Of an H100, an A100, and the two that have the least shared memory: 4090 and 5090."""
    for rows in (9, 16, 33, 64, 128, 160, 256):
        for n, k in SIZES:
            for bits, group in ((16, 0), (8, k), (4, 64), (4, 128)):
                for inputs in (2, 4, 8):
                    config = configs.choose_config(
                        rows, n, k, bits, group, processors, inputs=inputs, shared=shared
                    )
                    assert config.kind == "tiles" and config.num_stages >= 3
                    stage = config.block_k * (config.block_m * inputs + config.block_n * bits / 8)
                    assert stage * (config.num_stages - 1) <= shared
                    assert config.block_n % statistics.PART == 0
                    tiles = -(-n // config.block_n) * -(-rows // config.block_m)
                    assert tiles * config.split >= processors / 4
                    # Every part of K has work to do.
                    part = math.ceil(k / config.split / config.block_k) * config.block_k
                    assert part * (config.split - 1) < k <= part * config.split
                    # What 32 rows at a time would move: all rows twice, and all weights again.
                    height = min(rows, config.block_m)
                    moved = tiles * k * (height * inputs + config.block_n * bits / 8)
                    moved += 8 * rows * n * config.split * (config.split > 1)
                    before = configs._rows_config(rows, n, k, bits, group, processors)
                    programs = -(-n // before.block_n) * -(-rows // before.block_m)
                    norm = 2 if inputs > 2 else 1
                    height = min(rows, before.block_m)
                    old = programs * k * (height * inputs * norm + before.block_n * bits / 8)
                    assert moved < old


def test_no_rows():
    out = torch.empty(0, 6, device=DEVICE)
    assert launch(torch.empty(0, 4, device=DEVICE), torch.ones(6, 4, device=DEVICE), out) is out


BASE = {"x": torch.zeros(2, 16), "weight": torch.zeros(6, 16), "out": torch.zeros(2, 6)}
TILES = Config("tiles", 16, 64, 16, 1, 4)
INT4 = {"weight": torch.zeros(6, 32, dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 16)}, r"x must be \[R, K\]"),
        ({"x": torch.zeros(16, 2).t()}, "x must be contiguous"),
        ({"x": torch.zeros(2, 16, dtype=torch.float64)}, "x must be one of.*float64"),
        ({"weight": torch.zeros(6, 15)}, r"weight must have the shape \(6, 16\), got \(6, 15\)"),
        ({"weight": torch.zeros(6, 16, dtype=torch.int16)}, "weight must be a float.*int16"),
        ({"weight": torch.zeros(6, 16, dtype=torch.int8)}, "int8 weights need a scale"),
        ({"weight": torch.zeros(6, 16, device="meta")}, "weight must be on cpu, got meta"),
        (INT4, r"int4 weights need a scale"),
        ({**INT4, "scale": torch.zeros(6, 2, dtype=torch.bfloat16)}, "whole groups of 64 or 128"),
        ({**INT4, "scale": torch.zeros(6, 1)}, "scale must be one of.*bfloat16"),
        ({"scale": torch.zeros(6)}, "scale must be None"),
        ({"out": torch.zeros(2, 5)}, r"out must have the shape \(2, 6\)"),
        ({"bias": torch.zeros(5)}, r"bias must have the shape \(6,\)"),
        ({"norm": (torch.zeros(16), torch.zeros(3))}, "norm bias must have the shape"),
        ({"guidance": torch.ones(1), "out": torch.zeros(1, 6)}, "guidance needs norm"),
        ({"x": torch.zeros(3, 16), "guidance": torch.ones(1)}, "2 R rows with guidance, got 3"),
        ({"gelu": True, "residual": True}, "at most one of gelu, residual and append"),
        ({"residual": True, "out": torch.zeros(2, 6).half()}, "out must be float32"),
        ({"active": torch.ones(2)}, "active must be one of.*torch.bool"),
        (
            {"out_statistics": torch.zeros(2, 1, 2)},
            "written by the tiled form only, this is 'gemv'",
        ),
        (
            {"out_statistics": torch.zeros(2, 1, 2), "config": TILES},
            "out_statistics needs residual",
        ),
        (
            {"out_statistics": torch.zeros(2, 1, 1), "config": TILES, "residual": True},
            "out_statistics must have 2 rows, got 1",
        ),
        (
            {"statistics": torch.zeros(1, 1, 2), "config": TILES, "norm": (torch.zeros(16),) * 2},
            r"statistics must have the shape \(2, 1, 2\), got \(1, 1, 2\)",
        ),
        (
            {
                "out_statistics": torch.zeros(2, 1, 2),
                "config": Config("tiles", 16, 16, 16, 1, 4),
                "residual": True,
            },
            "blocks of a multiple of 64, got 16",
        ),
        (
            {
                "append": norm_linear.KVAppend(
                    torch.zeros(2, 1, 4, 2), torch.zeros(2, 1, 4, 2), torch.zeros(2)
                ),
                "out": torch.zeros(2, 2),
            },
            "positions must be one of.*int32",
        ),
        (
            {
                "workspace": norm_linear.Workspace(
                    torch.zeros(3), torch.zeros(9, dtype=torch.int32)
                ),
                "config": Config("gemv", 2, 4, 0, 2, 4),
            },
            "workspace.partial must have at least 24 elements, got 3",
        ),
    ],
)
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        launch(**{**BASE, **change})
