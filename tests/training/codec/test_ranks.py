"""Two processes learn what one process learns from the same sounds."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

SCRIPT = Path(__file__).with_name("run_ranks.py")
# Small steps: Adam's first ones are signs of gradients, also of those that are all rounding.
CALM = ["optim.lr=3e-4", "weight_init=torch", "rvq.decay=0.99"]
DRAWS = ["rvq.q_dropout=true", "rvq.threshold_ema_dead_code=3.0", "balancer.penalty_weight=2.0"]


def train(folder: Path, world_size: int, changes: list[str]) -> list[dict]:
    outputs = [folder / f"{world_size}-{rank}.pt" for rank in range(world_size)]
    store = folder / f"store-{world_size}"
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(world_size), store, output, *changes]
        )
        for rank, output in enumerate(outputs)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()
    return [torch.load(output) for output in outputs]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_values):
    folder = tmp_path_factory.mktemp("ranks")
    changes = [f"{key}={value}" for key, value in small_values.items()]
    changes += [f"folder={folder / 'run'}", *CALM, *DRAWS, "energies.weight=0.5"]
    return train(folder, 1, changes)[0], train(folder, 2, changes)


def test_losses(runs):
    """The mean over the ranks of each loss is that of one process, update by update."""
    one, ranks = runs
    for step, expected in enumerate(one["losses"]):
        found = [rank["losses"][step] for rank in ranks]
        names = ("l1", "msspec", "adv_msstftd", "feat_msstftd", "d_msstftd", "penalty", "energies")
        for name in names:
            mean = sum(values[name] for values in found) / 2
            assert mean == pytest.approx(expected[name], rel=1e-4, abs=1e-6), (step, name)
        assert found[0]["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


def test_codebooks_and_weights(runs):
    one, (first, second) = runs
    replaced = 0
    for name, tensor in first["tensors"].items():
        assert torch.equal(tensor, second["tensors"][name]), name
        if "_codebook" in name and not name.startswith("ema"):
            assert_close(tensor, one["tensors"][name], rtol=1e-3, atol=1e-4)
            replaced += name.endswith("cluster_size") and int((tensor == 3).sum())
    assert replaced > 0  # entries that died in the last update


def test_validation(runs):
    """Each recording counts once, whichever process has it."""
    one, (first, second) = runs
    assert first["valid"] == second["valid"]
    for name in ("l1", "mel_distance", "usage_q1", "perplexity_q2", "energies"):
        assert first["valid"][name] == pytest.approx(one["valid"][name], rel=1e-2)
