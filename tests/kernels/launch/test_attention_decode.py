"""Flash decoding against the reference, on a GPU or, in its own process, interpreted."""

import os

import pytest
import torch

from audiogen_fast.ops import reference

module = pytest.importorskip("audiogen_fast.kernels.attention_decode")
launch, CHUNK = module.attention_decode, module.CHUNK
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
NAN = float("nan")


def make(rows, heads, capacity, width, positions, dtype=torch.float32, seed=0):
    """(q, keys, values, positions): random up to each row's position, NaN past it."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, heads * width, generator=generator).to(DEVICE, dtype)
    cache = torch.randn(2, rows, heads, capacity, width, generator=generator).to(DEVICE, dtype)
    for row, position in enumerate(positions):
        cache[:, row, :, position + 1 :] = NAN
    return q, cache[0], cache[1], torch.tensor(positions, dtype=torch.int32, device=DEVICE)


def exact(q, keys, values, positions):
    rows, heads, _, width = keys.shape
    q = q.view(rows, heads, width).double()
    return reference.attention_decode(q, keys.double(), values.double(), positions).flatten(1)


@pytest.mark.parametrize(
    ("rows", "heads", "capacity", "width", "positions"),
    [
        (1, 1, 1, 1, [0]),
        (2, 3, 5, 8, [0, 4]),
        (3, 2, CHUNK, 20, [CHUNK - 1, 1, 63]),
        (4, 1, 3 * CHUNK + 7, 64, [CHUNK, 2 * CHUNK - 1, 3 * CHUNK + 6, 0]),
        (1, 2, 9 * CHUNK, 16, [9 * CHUNK - 1]),
    ],
)
def test_equals_the_reference_and_reads_nothing_past_the_position(
    rows, heads, capacity, width, positions
):
    arguments = make(rows, heads, capacity, width, positions)
    out = torch.full((rows, heads * width), NAN, device=DEVICE)
    assert launch(*arguments, out) is out
    torch.testing.assert_close(out.double(), exact(*arguments), rtol=2e-6, atol=2e-6)


def test_launches_follow_each_other_on_one_workspace():
    rows, heads, capacity, width = 2, 2, 3 * CHUNK, 8
    workspace = module.Workspace.make(rows, heads, capacity, width, DEVICE)
    workspace.values.fill_(NAN)
    workspace.weights.fill_(NAN)
    for seed, positions in enumerate(([300, 5], [130, 383], [0, 127])):
        arguments = make(rows, heads, capacity, width, positions, seed=seed)
        out = torch.full((rows, heads * width), NAN, device=DEVICE)
        launch(*arguments, out, workspace=workspace)
        torch.testing.assert_close(out.double(), exact(*arguments), rtol=2e-6, atol=2e-6)
        assert not workspace.counters.any()


def test_a_launch_sized_for_a_range_of_positions():
    arguments = make(2, 2, 4 * CHUNK, 8, [CHUNK + 3, 9])
    out = torch.full((2, 16), NAN, device=DEVICE)
    launch(*arguments, out, limit=2 * CHUNK)
    torch.testing.assert_close(out.double(), exact(*arguments), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("position", [3, CHUNK + 3])
def test_inactive_rows_write_nothing(position):
    arguments = make(4, 2, 2 * CHUNK, 8, [position] * 4)
    out = torch.full((4, 16), NAN, device=DEVICE)
    launch(*arguments, out, active=torch.tensor([False, True], device=DEVICE))
    expected = exact(*arguments)
    assert out[::2].isnan().all()
    torch.testing.assert_close(out[1::2].double(), expected[1::2], rtol=2e-6, atol=2e-6)


def test_strided_caches():
    q, keys, values, positions = make(2, 3, 10, 8, [4, 9])
    strided = [c.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for c in (keys, values)]
    out = torch.full((2, 24), NAN, device=DEVICE)
    launch(q, *strided, positions, out)
    torch.testing.assert_close(
        out.double(), exact(q, keys, values, positions), rtol=2e-6, atol=2e-6
    )


def test_extreme_scores_and_shifts():
    """Scores of thousands neither overflow nor lose the others; equal scores give the mean."""
    q, keys, values, positions = make(2, 1, 2 * CHUNK, 4, [2 * CHUNK - 1, CHUNK])
    out = torch.empty(2, 4, device=DEVICE)
    launch(q * 1e3, keys * 1e2, values, positions, out)
    torch.testing.assert_close(
        out.double(), exact(q * 1e3, keys * 1e2, values, positions), rtol=1e-4, atol=1e-5
    )
    launch(torch.zeros_like(q), keys, values, positions, out)
    mean = torch.stack([values[0, 0].mean(0), values[1, 0, : CHUNK + 1].mean(0)])
    torch.testing.assert_close(out, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_error_is_at_most_twice_that_of_torch(dtype):
    q, keys, values, positions = make(2, 4, 2 * CHUNK, 32, [200, 140], dtype)
    out = torch.full((2, 128), NAN, device=DEVICE, dtype=dtype)
    launch(q, keys, values, positions, out)
    right, error, theirs = exact(q, keys, values, positions), 0.0, 0.0
    for row, position in enumerate(positions.tolist()):
        end = position + 1
        same = torch.nn.functional.scaled_dot_product_attention(
            q[row].view(1, 4, 1, 32), keys[row : row + 1, :, :end], values[row : row + 1, :, :end]
        )
        theirs += (same.flatten().double() - right[row]).norm()
        error += (out[row].double() - right[row]).norm()
    assert error <= 2 * theirs


def test_nothing_to_do():
    empty = torch.empty(0, 2, 4, 8, device=DEVICE)
    positions = torch.empty(0, dtype=torch.int32, device=DEVICE)
    out = torch.empty(0, 16, device=DEVICE)
    assert launch(torch.empty(0, 16, device=DEVICE), empty, empty, positions, out) is out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(2, 8, 4)}, r"keys must be \[R, H, C, d\]"),
        ({"q": torch.zeros(2, 5)}, r"q must have the shape \(2, 8\)"),
        ({"q": torch.zeros(2, 8, dtype=torch.int32)}, "q must be one of.*int32"),
        ({"values": torch.zeros(2, 2, 6, 4, dtype=torch.float16)}, "values must be one of"),
        ({"values": torch.zeros(6, 2, 2, 4).transpose(0, 2)}, "same strides"),
        ({"positions": torch.zeros(2, dtype=torch.int64)}, "positions must be one of.*int32"),
        ({"out": torch.zeros(8, 2).t()}, "out must be contiguous"),
        ({"active": torch.ones(2)}, "active must be one of.*bool"),
        ({"limit": 7}, "limit must lie in 1..6, got 7"),
        (
            {"workspace": module.Workspace.make(1, 2, 6, 4, "cpu")},
            "workspace.values must have the shape",
        ),
        ({"q": torch.zeros(2, 8, device="meta")}, "q must be on cpu"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {
        "q": torch.zeros(2, 8),
        "keys": torch.zeros(2, 2, 6, 4),
        "values": torch.zeros(2, 2, 6, 4),
        "positions": torch.zeros(2, dtype=torch.int32),
        "out": torch.zeros(2, 8),
    }
    with pytest.raises(ValueError, match=message):
        launch(**{**arguments, **change})
