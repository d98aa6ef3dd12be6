"""The embedding of the codes that slots drew last, on a GPU or interpreted on the CPU."""

import os

import pytest
import torch

from audiogen_fast.ops import reference

module = pytest.importorskip("audiogen_fast.kernels.step_embedding")
launch = module.step_embedding
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def make(batch, n_codebooks, steps, card, dim, rows, dtype=torch.float32):
    """(arguments but the last, for slots that are each at a step of their own)."""
    generator = torch.Generator().manual_seed(0)
    sequence = torch.randint(0, card + 1, (batch, n_codebooks, steps), generator=generator)
    step = torch.arange(batch, dtype=torch.int32) % steps + 1
    tables = torch.randn(n_codebooks, card + 1, dim, generator=generator).to(dtype)
    positions = (step - 1).repeat(rows // batch).contiguous()
    table = reference.sin_embedding(torch.arange(steps), dim)
    active = torch.ones(batch, dtype=torch.bool)
    return [t.to(DEVICE) for t in (sequence, step, active, positions, tables, table)]


def expected(sequence, step, active, positions, tables, table):
    codes = sequence.gather(2, (step.long() - 1).view(-1, 1, 1).expand(-1, sequence.shape[1], 1))
    total = reference.codebook_embedding(codes, list(tables)).squeeze(1)
    return total.repeat(len(positions) // len(step), 1) + table[positions.long()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 4, 1), (2, 4, 5, 16, 64, 4), (3, 9, 4, 7, 130, 3), (2, 3, 6, 5, 516, 4)]
)
def test_equals_the_reference_to_the_last_bit(shape, dtype):
    arguments = make(*shape, dtype=dtype)
    buffer = torch.full([shape[5] * shape[4] + 128], float("nan"), device=DEVICE)
    out = buffer[64:-64].view(shape[5], shape[4])
    assert launch(*arguments, out) is out
    assert torch.equal(out, expected(*arguments))
    assert buffer[:64].isnan().all() and buffer[-64:].isnan().all()


def test_inactive_slots_are_left_alone():
    arguments = make(2, 3, 4, 9, 16, 4)
    arguments[2][1] = False
    out = torch.full((4, 16), float("nan"), device=DEVICE)
    launch(*arguments, out)
    assert torch.equal(out[::2], expected(*arguments)[::2]) and out[1::2].isnan().all()


@pytest.mark.parametrize("dim", [4, 130, 516])
def test_statistics_are_those_of_the_rows_that_were_written(dim):
    statistics = pytest.importorskip("audiogen_fast.kernels.row_statistics")
    arguments = make(2, 3, 4, 9, dim, 4)
    arguments[2][1] = False
    out = torch.full((4, dim), float("nan"), device=DEVICE)
    left = torch.full(statistics.statistics_shape(4, dim), float("nan"), device=DEVICE)
    launch(*arguments, out, left)
    assert torch.equal(out[::2], expected(*arguments)[::2])
    right = statistics.row_statistics(out, torch.empty_like(left))
    torch.testing.assert_close(left[..., ::2], right[..., ::2], rtol=1e-5, atol=1e-6)
    assert out[1::2].isnan().all() and left[..., 1::2].isnan().all()


@pytest.mark.parametrize("wrong", ["code", "unknown", "step", "position"])
def test_what_lies_outside_a_table_shows(wrong):
    arguments = make(2, 3, 4, 9, 16, 2)
    sequence, step, _, positions, _, _ = arguments
    if wrong == "step":
        step[1] = 0
    elif wrong == "position":
        positions[1] = 4
    else:
        sequence[1, 2, step[1] - 1] = 10 if wrong == "code" else -1
    out = torch.zeros(2, 16, device=DEVICE)
    launch(*arguments, out)
    assert out[1].isnan().all() and out[0].isfinite().all()


def test_a_strided_sequence():
    arguments = make(2, 3, 4, 9, 16, 4)
    right = expected(*arguments)
    wide = torch.full((2, 3, 9), -1, device=DEVICE)
    wide[:, :, 3:7] = arguments[0]
    out = torch.empty(4, 16, device=DEVICE)
    assert torch.equal(launch(wide[:, :, 3:7], *arguments[1:], out), right)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(2, 3, dtype=torch.int64), r"sequence must be \[B, K, S\]"),
        (0, torch.zeros(2, 3, 4), "sequence must be one of.*int64"),
        (1, torch.zeros(2, dtype=torch.int64), "step must be one of.*int32"),
        (2, torch.zeros(3, dtype=torch.bool), r"active must have the shape \(2,\)"),
        (3, torch.zeros(3, dtype=torch.int32), "a multiple of 2 rows, got 3"),
        (4, torch.zeros(4, 10, 16), r"tables must have the shape \(3, 10, 16\)"),
        (5, torch.zeros(4, 15), r"position_table must have the shape \(4, 16\)"),
        (6, torch.zeros(4, 16).half(), "out must be one of.*float32"),
    ],
)
def test_wrong_arguments(place, value, message):
    arguments = [t.cpu() for t in make(2, 3, 4, 9, 16, 4)] + [torch.zeros(4, 16)]
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        launch(*arguments)
