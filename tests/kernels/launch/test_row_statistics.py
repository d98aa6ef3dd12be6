"""Statistics of parts of rows, on a GPU or interpreted on the CPU."""

import os

import pytest
import torch

module = pytest.importorskip("audiogen_fast.kernels.row_statistics")
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
NAN = float("nan")


def rows_of(rows, columns, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, columns, generator=generator) * 3 + torch.arange(rows).view(-1, 1)
    return x.to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 64), (2, 65), (5, 130), (2, 1000), (7, 512)])
def test_means_and_squares_of_each_part(shape, dtype):
    x = rows_of(*shape, dtype)
    size = module.statistics_shape(*shape)
    buffer = torch.full([size[0] * size[1] * size[2] + 64], NAN, device=DEVICE)
    out = buffer[:-64].view(size)
    assert module.row_statistics(x, out) is out
    for part in range(size[1]):
        columns = x[:, 64 * part : 64 * part + 64].double()
        torch.testing.assert_close(out[0, part].double(), columns.mean(1), rtol=1e-5, atol=1e-5)
        squares = (columns - columns.mean(1, keepdim=True)).square().sum(1)
        torch.testing.assert_close(out[1, part].double(), squares, rtol=1e-4, atol=1e-4)
    assert buffer[-64:].isnan().all()


def test_a_large_mean_costs_nothing():
    """Values a unit apart on 1e6: squares of sums would lose all of it in float32."""
    x = torch.arange(64.0, device=DEVICE).view(1, 64) + 1e6
    out = module.row_statistics(x, torch.full((2, 1, 1), NAN, device=DEVICE))
    assert out.flatten().tolist() == [1e6 + 31.5, 64 * (64**2 - 1) / 12]


def test_no_rows():
    x = torch.empty(0, 70, device=DEVICE)
    out = torch.empty(2, 2, 0, device=DEVICE)
    assert module.row_statistics(x, out) is out


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (torch.zeros(3), torch.zeros(2, 1, 3), r"x must be \[R, K\], got the shape \(3,\)"),
        (torch.zeros(3, 65), torch.zeros(2, 1, 3), r"out must have the shape \(2, 2, 3\)"),
        (torch.zeros(3, 4).double(), torch.zeros(2, 1, 3), "x must be one of.*float64"),
        (torch.zeros(4, 3).t(), torch.zeros(2, 1, 3), "x must be contiguous"),
        (torch.zeros(3, 4), torch.zeros(2, 1, 3).half(), "out must be one of.*float32"),
    ],
)
def test_wrong_arguments(x, out, message):
    with pytest.raises(ValueError, match=message):
        module.row_statistics(x, out)
