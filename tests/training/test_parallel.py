"""Two processes give the losses of one, and one goes on where two have stopped."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run_small.py")
CHANGES = [
    "dataset.batch_size=4",
    "transformer_lm.dropout=0",
    "optim.updates_per_epoch=10",
    "optim.epochs=2",
    "checkpoint.every=10",
]


def losses(folder):
    records = map(json.loads, Path(folder, "log.jsonl").read_text().splitlines())
    return {
        (record["stage"], record["step"]): (record.get("loss", record.get("ce")), record["ce_q4"])
        for record in records
    }


def run_two(folder, changes):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(SCRIPT), str(folder), "--", *changes, "parallel.threads=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def single(tmp_path_factory, small_changes):
    """Losses of one process, twenty updates."""
    from audiogen_fast.training.parallel import Ranks
    from audiogen_fast.training.recipe import load_recipe
    from audiogen_fast.training.solver_lm import LMSolver

    folder = tmp_path_factory.mktemp("single")
    config = load_recipe("debug", [*small_changes, *CHANGES, f"folder={folder}"])
    LMSolver(config, Ranks(), lambda _: None).run()
    return losses(folder)


def assert_near(found, expected):
    assert found.keys() == expected.keys() and len(found) == 22
    for key, values in found.items():
        assert values == pytest.approx(expected[key], rel=1e-5), key


def test_fsdp_and_resuming_with_one(single, small_changes, small_config, make_solver, tmp_path):
    run_two(tmp_path / "fsdp", [*small_changes, *CHANGES, "parallel.mode=fsdp"])
    assert_near(losses(tmp_path / "fsdp"), single)
    shutil.rmtree(tmp_path / "fsdp" / "checkpoints" / "step-00000020")
    make_solver(small_config("fsdp", *CHANGES)).run()
    assert_near(losses(tmp_path / "fsdp"), single)


def test_ddp_with_accumulation(single, small_changes, tmp_path):
    run_two(tmp_path / "ddp", [*small_changes, *CHANGES, "parallel.mode=ddp", "optim.accumulate=2"])
    assert_near(losses(tmp_path / "ddp"), single)
