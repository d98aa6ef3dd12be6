"""Learning rates against the formulas, written out again."""

import math

import pytest
import torch

from audiogen_fast.training.config import ScheduleConfig
from audiogen_fast.training.schedules import Schedule

LR, TOTAL, WARMUP = 0.5, 40, 10


def course(**options):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter]}], lr=LR)
    schedule = Schedule(optimizer, ScheduleConfig(warmup=WARMUP, **options), TOTAL)
    rates = []
    for _ in range(TOTAL + 3):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.advance()
    return rates


def test_constant():
    assert course() == [LR] * (TOTAL + 3)


def test_inverse_sqrt():
    expected = [
        0.1 + n * (LR - 0.1) / WARMUP if n < WARMUP else LR * math.sqrt(WARMUP / n)
        for n in range(1, TOTAL + 4)
    ]
    assert course(lr_scheduler="inverse_sqrt", warmup_init_lr=0.1) == pytest.approx(expected)


@pytest.mark.parametrize("cycle", [1.0, 0.5])
def test_cosine(cycle):
    expected = []
    for n in range(TOTAL + 3):
        share = (n - WARMUP) / (TOTAL - WARMUP)
        wave = 0.1 + 0.9 * (1 + math.cos(math.pi * share / cycle)) / 2
        expected.append(LR * (n / WARMUP if n < WARMUP else wave if n <= TOTAL else 0.1))
    found = course(lr_scheduler="cosine", lr_min_ratio=0.1, cycle_length=cycle)
    assert found == pytest.approx(expected)
    assert found[0] == 0 and found[WARMUP] == LR


def test_linear_warmup():
    expected = [LR * min(1, n / WARMUP) for n in range(TOTAL + 3)]
    assert course(lr_scheduler="linear_warmup") == pytest.approx(expected)


def test_polynomial_decay():
    expected = []
    for n in range(TOTAL + 3):
        if n < 5:
            expected.append(0)
        elif n < 15:
            expected.append(LR * (n - 5) / 10)
        else:
            left = max(0, 1 - (n - 15) / (TOTAL - 15))
            expected.append(0.01 + (LR - 0.01) * left**2)
    found = course(lr_scheduler="polynomial_decay", zero_lr_warmup_steps=5, end_lr=0.01, power=2.0)
    assert found == pytest.approx(expected)


def test_groups_keep_their_ratio():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, (1.0, 0.1), strict=True)]
    optimizer = torch.optim.SGD(groups, lr=9.0)
    schedule = Schedule(optimizer, ScheduleConfig(lr_scheduler="cosine", warmup=4), 20)
    for _ in range(11):
        schedule.advance()
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert 0 < first < 1 and second == pytest.approx(0.1 * first)
