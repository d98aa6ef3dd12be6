"""The solver of the language model against recorded values and against itself."""

import json

import pytest
import torch


def log(solver, stage):
    lines = (solver.folder / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["stage"] == stage]


@pytest.mark.parametrize("name", ["plain", "biased"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_golden_step(golden_solver, name, accumulate):
    """Losses of the original before and after two updates, the batch whole or in parts."""
    solver = golden_solver(name)
    size = len(solver.loader.batch)
    solver.config.optim.accumulate = accumulate if size % accumulate == 0 else size
    assert solver.run() == 0
    expected = solver.tensors
    train, (valid,) = log(solver, "train"), log(solver, "valid")
    assert train[0]["loss"] == pytest.approx(expected["train.loss"].item(), rel=1e-5)
    ce = [train[0][f"ce_q{k + 1}"] for k in range(4)]
    assert ce == pytest.approx(expected["train.ce_per_codebook"].tolist(), rel=1e-5)
    after = expected["train.loss_after_two_updates"].item()
    assert valid["ce"] == pytest.approx(after, rel=2e-5)


def test_gradient_clipping_limits_the_norm(golden_solver):
    solver = golden_solver("plain", "optim.max_norm=0.01")
    seen = []
    step = solver.optimizer.step

    def spy():
        gradients = [p.grad.flatten() for p in solver.lm.parameters() if p.grad is not None]
        seen.append(torch.cat(gradients).norm().item())
        step()

    solver.optimizer.step = spy
    solver.run()
    assert seen == pytest.approx([0.01, 0.01], rel=1e-3)
    assert log(solver, "train")[0]["grad_norm"] > 0.1


def test_recomputation_changes_nothing(golden_solver):
    plain, again = (
        golden_solver("plain", f"transformer_lm.checkpointing={kind}") for kind in ("none", "torch")
    )
    for solver in (plain, again):
        assert solver.run() == 0
    expected = plain.lm.state_dict()
    for name, tensor in again.lm.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(golden_solver, dtype):
    solver = golden_solver("plain", f"parallel.dtype={dtype}")
    solver.run()
    first = log(solver, "train")[0]
    assert first["loss"] == pytest.approx(solver.tensors["train.loss"].item(), rel=2e-3)
    after = solver.tensors["train.loss_after_two_updates"].item()
    assert log(solver, "valid")[0]["ce"] == pytest.approx(after, rel=2e-3)
    assert all(p.dtype == torch.float32 for p in solver.lm.parameters())


def test_float16_searches_its_scale(golden_solver, lines):
    """A scale that overflows is halved, and neither schedule nor weights move meanwhile."""
    solver = golden_solver("plain", "parallel.dtype=float16", "schedule.lr_scheduler=inverse_sqrt")
    solver.scaler.scale = 2.0**40
    before = {name: p.detach().clone() for name, p in solver.lm.named_parameters()}
    assert solver.run() == 0
    assert solver.scaler.scale == 2.0**38
    assert solver.schedules["lr"].updates == 0
    assert all(torch.equal(p, before[name]) for name, p in solver.lm.named_parameters())
    assert not (solver.folder / "non_finite").exists()
