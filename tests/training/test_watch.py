"""What a run tells, and how it ends when something is wrong with it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from audiogen_fast.errors import MissingDependencyError
from audiogen_fast.training.solver import TrainingDiverged
from audiogen_fast.training.watch import line

SCRIPT = Path(__file__).with_name("run_small.py")


def test_the_line_of_progress():
    metrics = {
        "loss": 2.5,
        "ce_q2": 3.0,
        "ce_q1": 2.0,
        "grad_norm": 0.123456,
        "tokens_per_s": 12345.6,
        "audio_s_per_s": 3.21,
        "eta": 3723.0,
    }
    assert line("train", 7, 100, metrics) == (
        "train 7/100 | loss 2.5000 | ce_q 2.000/3.000 | grad_norm 0.123 | tokens_per_s 12346 | "
        "audio_s_per_s 3.21 | eta 1:02:03"
    )


def test_records(make_solver, small_config):
    solver = make_solver(small_config("run"))
    solver.run()
    records = [json.loads(text) for text in (solver.folder / "log.jsonl").read_text().splitlines()]
    train = [record for record in records if record["stage"] == "train"]
    assert [record["step"] for record in train] == list(range(1, 11))
    wanted = {"loss", "ppl", "ce_q1", "ce_q4", "grad_norm", "lr", "tokens_per_s", "audio_s_per_s"}
    assert wanted | {"eta", "waiting"} <= train[0].keys()
    for record in train:
        mean = sum(record[f"ce_q{k}"] for k in range(1, 5)) / 4
        assert record["loss"] == pytest.approx(mean, rel=1e-5)
        # 50 frames a second in 4 codebooks
        assert record["tokens_per_s"] == pytest.approx(200 * record["audio_s_per_s"], rel=1e-3)
    valid = [record for record in records if record["stage"] == "valid"]
    assert [record["step"] for record in valid] == [5, 10]
    assert valid[0]["ppl_q2"] == pytest.approx(torch.tensor(valid[0]["ce_q2"]).exp().item())


def test_tensorboard(make_solver, small_config):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    solver = make_solver(small_config("run", "logging.log_tensorboard=true"))
    solver.run()
    events = EventAccumulator(str(solver.folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 11))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_missing_loggers_say_what_to_install(make_solver, small_config, monkeypatch, name):
    for module in ("tensorboard", "torch.utils.tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, module, None)
    solver = make_solver(small_config("run", f"logging.log_{name}=true"))
    with pytest.raises(MissingDependencyError, match=f"pip install {name}"):
        solver.run()


def poison(solver, step):
    """From that update on, a weight is not a number."""
    update = solver.update

    def poisoned(batch):
        if solver.step == step:
            with torch.no_grad():
                solver.lm.out_norm.weight[0] = float("nan")
        return update(batch)

    solver.update = poisoned


def test_batches_that_are_not_finite_are_written_down(make_solver, small_config, lines):
    solver = make_solver(
        small_config("run", "safety.max_non_finite=3", "dataset.valid.source=none")
    )
    poison(solver, 2)
    with pytest.raises(TrainingDiverged, match="3 updates in a row"):
        solver.run()
    files = sorted((solver.folder / "non_finite").iterdir())
    assert [file.name for file in files] == [f"step-0000000{n}-rank-0.json" for n in (3, 4, 5)]
    record = json.loads(files[0].read_text())
    assert len(record["batch"]) == 3
    assert {"id", "path", "seek_time", "description"} <= record["batch"][0].keys()
    assert record["metrics"]["loss"] == "nan"
    assert solver.schedules["lr"].updates == 2
    assert any(str(files[0]) in text for text in lines)


def test_stop_at_the_first(make_solver, small_config):
    solver = make_solver(small_config("run", "safety.non_finite=stop", "dataset.valid.source=none"))
    poison(solver, 1)
    with pytest.raises(TrainingDiverged):
        solver.run()
    assert solver.step == 2


def test_a_hang_ends_with_the_stacks_of_all_processes(small_changes, tmp_path):
    """One process sleeps in its third update; the other one waits for it in a collective."""
    script = tmp_path / "hang.py"
    script.write_text(
        f"""
import os, runpy, sys, time
from audiogen_fast.training.solver_lm import LMSolver
update = LMSolver.update
def hanging(self, batch):
    while self.step == 2 and self.ranks.rank == 1:
        time.sleep(1)  # here it hangs
    return update(self, batch)
LMSolver.update = hanging
sys.argv = sys.argv[1:]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [script, SCRIPT, tmp_path / "run", "--", *small_changes, "dataset.batch_size=4"]
    command += ["safety.timeout=12", "parallel.threads=1"]
    began = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=200
    )
    assert done.returncode != 0
    assert done.stderr.count("Timeout (0:00:12)!") == 2
    assert "hanging" in done.stderr and "all_reduce" in done.stderr
    assert time.monotonic() - began < 150


def test_what_could_not_be_read_is_told_after_each_epoch(
    small_config, make_solver, lines, project_root, tmp_path
):
    sounds = sorted((project_root / "tests/data/recordings").glob("*.flac"))
    rows = [{"path": str(path), "duration": 1.0, "description": "x"} for path in sounds]
    rows.append({"path": str(tmp_path / "none.wav"), "duration": 1.0, "description": "x"})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    solver = make_solver(small_config("run", f"dataset.train.source={tmp_path}"))
    solver.validate = dict
    solver.run()
    told = [line for line in lines if line.startswith("skipped ")]
    assert len(told) == 2 and told[-1] == solver.loader.report()
    assert "none.wav: FileNotFoundError" in told[0]
