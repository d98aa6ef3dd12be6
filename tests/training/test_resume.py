"""Runs that are interrupted go on exactly: processes are killed and files damaged for it."""

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from audiogen_fast.errors import CheckpointError
from audiogen_fast.training.checkpoint import Checkpoints, read_state, tensors_of
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.parts import ModulePart
from audiogen_fast.training.runs import run_config

SCRIPT = Path(__file__).with_name("run_small.py")


def start(folder, changes, *fault):
    command = [sys.executable, SCRIPT, folder, *fault, "--", *changes, "parallel.threads=1"]
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def everything(solver):
    """All tensors and values that the solver's checkpoints hold."""
    values = {name: part.values() for name, part in (solver.common | solver.own).items()}
    tensors = {name: t.clone() for name, t in tensors_of(solver.common).items()}
    return tensors, json.loads(json.dumps(values))


def assert_same(one, other):
    assert one[0].keys() == other[0].keys() and len(one[0]) > 100
    for name, tensor in one[0].items():
        assert torch.equal(tensor, other[0][name]), name
    assert one[1] == other[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_changes):
    """What ten updates without an interruption give."""
    from audiogen_fast.training.recipe import load_recipe
    from audiogen_fast.training.solver_lm import LMSolver

    folder = tmp_path_factory.mktemp("whole")
    with torch.random.fork_rng(devices=[]):
        solver = LMSolver(
            load_recipe("debug", [*small_changes, f"folder={folder}"]), Ranks(), lambda _: None
        )
        solver.run()
        return everything(solver)


def test_the_draws_matter(whole, make_solver, small_config):
    """Or the tests below would prove little: another seed gives other weights."""
    solver = make_solver(small_config("other", "seed=1"))
    solver.run()
    one, other = whole[0]["model.emb.0.weight"], everything(solver)[0]["model.emb.0.weight"]
    assert not torch.equal(one, other)


def test_five_and_five_are_ten(whole, make_solver, small_config):
    first = make_solver(small_config("run", "dataset.num_workers=1"))
    first.config.optim.epochs = 1  # the schedule still knows of two
    first.run()
    assert first.step == 5
    second = make_solver(small_config("run"))
    second.run()
    assert_same(everything(second), whole)


def test_sigterm(whole, small_changes, make_solver, small_config, lines):
    config = small_config("run")
    process = start(config.folder, [*small_changes, "checkpoint.every=100"])
    log = Path(config.folder, "log.jsonl")
    while process.poll() is None and not (log.exists() and '"step": 2' in log.read_text()):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "stopped by signal 15 after update" in output
    solver = make_solver(config)
    saved = solver.checkpoints.steps()[-1]  # there may be that of the epoch's end too
    assert 2 <= saved < 10
    solver.run()
    assert lines[0] == f"going on from {solver.checkpoints.path(saved)}"
    assert_same(everything(solver), whole)


@pytest.mark.parametrize("point", ["data", "manifest", "rename", "retire"])
def test_sigkill_while_saving(whole, small_changes, make_solver, small_config, point):
    """The save of update 8 never ends; that of update 6 is used, or the one that was complete."""
    config = small_config("run", "checkpoint.every=2", "checkpoint.keep_last=1")
    changes = [*small_changes, "checkpoint.every=2", "checkpoint.keep_last=1"]
    process = start(config.folder, changes, point, 8)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == -signal.SIGKILL, output
    folder = Path(config.folder, "checkpoints")
    assert (folder / "step-00000008.tmp").is_dir() == (point != "retire")
    solver = make_solver(config)
    assert solver.checkpoints.steps()[-1] == (8 if point == "retire" else 6)
    solver.run()
    assert_same(everything(solver), whole)
    # The leftovers of the killed save are gone with the next one, and so are older checkpoints.
    names = sorted(path.name for path in folder.iterdir())
    assert "step-00000010" in names and not [n for n in names if n.endswith(".tmp")]
    assert len(names) <= 2  # the last and the best


def damage(path, kind):
    if kind == "bit":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("__0_0.distcp", "bit"),
        ("__0_0.distcp", "cut"),
        (".metadata", "gone"),
        ("state.json", "bit"),
        ("manifest.json", "cut"),
    ],
)
def test_damaged_newest(whole, make_solver, small_config, lines, file, kind):
    first = make_solver(small_config("run"))
    first.run()
    assert first.checkpoints.steps() == [5, 10]
    damage(first.checkpoints.path(10) / file, kind)
    lines.clear()
    second = make_solver(small_config("run"))
    second.run()
    told = "\n".join(lines[:2])
    assert "step-00000010 is damaged" in told and file in told
    assert "going on from" in told and "step-00000005" in told
    assert_same(everything(second), whole)


def test_all_damaged(make_solver, small_config):
    solver = make_solver(small_config("run", "optim.epochs=1"))
    solver.run()
    damage(solver.checkpoints.path(5) / "__0_0.distcp", "bit")
    with pytest.raises(CheckpointError, match="every one"):
        make_solver(small_config("run")).run()


def test_another_architecture_is_refused(make_solver, small_config):
    solver = make_solver(small_config("run", "optim.epochs=1"))
    solver.run()
    written = (solver.folder / "config.toml").read_text()
    with pytest.raises(CheckpointError, match="does not fit"):
        make_solver(small_config("run", "transformer_lm.dim=48")).run()
    # The good run is what it was, and can still be read.
    assert (solver.folder / "config.toml").read_text() == written
    assert run_config(solver.folder).transformer_lm.dim == 32


def test_hostile_index(make_solver, small_config, tmp_path):
    """The index of a checkpoint is a pickle; it must not run what is in it."""
    import hashlib
    import pickle

    solver = make_solver(small_config("run", "optim.epochs=1"))
    solver.run()
    folder, target = solver.checkpoints.path(5), tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (target,))

    content = pickle.dumps(Hostile())
    (folder / ".metadata").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[".metadata"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        make_solver(small_config("run")).run()
    assert not target.exists()


def test_the_best_is_kept(make_solver, small_config):
    solver = make_solver(small_config("run", "checkpoint.keep_last=1", "optim.epochs=3"))
    losses = iter([3.0, 1.0, 2.0])
    solver.validate = lambda: {"ce": next(losses)}
    solver.run()
    assert solver.checkpoints.steps() == [10, 15]


def noted_saves(solver):
    """The steps that a solver saves, as it goes."""
    steps, save = [], solver.checkpoints.save

    def noting(step, *args):
        steps.append(step)
        return save(step, *args)

    solver.checkpoints.save = noting
    return steps


def test_an_epoch_is_saved_before_its_later_stages(make_solver, small_config):
    """Or a stage that ends the process each time would keep the run from ever getting further."""
    solver = make_solver(small_config("run", "checkpoint.every=4"))
    steps, seen = noted_saves(solver), []
    solver.validate = lambda: {"ce": float(solver.step)}
    solver.after_epoch = lambda epoch: seen.append((epoch, solver.step, list(steps))) or {}
    assert solver.run() == 0
    assert seen == [(1, 5, [4, 5]), (2, 10, [4, 5, 8, 10])]
    found = {step: read_state(solver.checkpoints.path(step))["metrics"] for step in (5, 8, 10)}
    # Metrics are those of the very weights, not of an earlier validation.
    assert found == {5: {"ce": 5.0}, 8: {}, 10: {"ce": 10.0}}
    assert solver.checkpoints.choose("best", "ce") == 5


def test_what_later_stages_draw_changes_no_update(whole, make_solver, small_config):
    """They are not made again where a run goes on from the checkpoint before them."""
    solver = make_solver(small_config("run"))

    def draw(epoch):
        torch.rand(epoch), np.random.rand(epoch), random.random()
        return {}

    solver.after_epoch = draw
    solver.run()
    assert_same(everything(solver), whole)


@pytest.mark.parametrize(
    ("stage", "update", "status"),
    [
        ("validate", 5, signal.SIGTERM),
        ("after_epoch", 5, signal.SIGTERM),
        ("validate", 10, signal.SIGTERM),
        ("after_epoch", 10, 0),
    ],
)
def test_a_signal_in_a_stage(make_solver, small_config, stage, update, status):
    """All is saved, once, and no stage begins after the signal."""
    solver = make_solver(small_config("run"))
    steps, seen = noted_saves(solver), []

    def entered(name, found):
        seen.append((name, solver.step))
        if (name, solver.step) == (stage, update):
            solver._stop = signal.SIGTERM
        return found

    solver.validate = lambda: entered("validate", {"ce": 1.0})
    solver.after_epoch = lambda epoch: entered("after_epoch", {})
    assert solver.run() == status
    assert solver.step == update and steps == ([5] if update == 5 else [5, 10])
    assert seen[-1] == (stage, update)
    assert read_state(solver.checkpoints.path(update))["metrics"] == {"ce": 1.0}


def test_a_damaged_or_diverged_checkpoint_is_not_the_best(tmp_path, lines):
    """And does not keep the run from saving the next one."""
    checkpoints = Checkpoints(tmp_path, Ranks(), keep_last=1, tell=lines.append)
    part = {"part": ModulePart(torch.nn.Linear(2, 2))}
    for step, value in ((1, math.nan), (2, 0.5), (3, 0.7), (4, -math.inf), (5, 0.6)):
        checkpoints.save(step, part, {}, {"ce": value}, "ce")
    assert checkpoints.steps() == [2, 5] and checkpoints.choose("best", "ce") == 2
    damage(checkpoints.path(2) / "state.json", "cut")
    checkpoints.keep_last = 3
    for step in (6, 7):
        checkpoints.save(step, part, {}, {"ce": 1.0}, "ce")
    assert checkpoints.choose("best", "ce") == 5
    (line,) = lines
    assert "step-00000002: no readable state.json" in line and "cannot be the best" in line
    assert checkpoints.steps() == [5, 6, 7]


@pytest.mark.parametrize("before", [2, 5])
def test_no_further_batch_after_a_signal(whole, make_solver, small_config, lines, before):
    """A signal to all processes may end those that read before the update's end is seen."""
    solver = make_solver(small_config("run"))
    steps, forever = noted_saves(solver), solver.loader.forever

    def broken():
        yield from itertools.islice(forever(), before)
        solver._stop = signal.SIGINT
        raise RuntimeError("worker is killed")

    solver.loader.forever = broken
    assert solver.run() == signal.SIGINT
    assert solver.step == before and steps == [before]  # once
    assert lines[-2:] == [
        "no further batch: worker is killed",
        f"stopped by signal 2 after update {before}, saved",
    ]
    again = make_solver(small_config("run"))
    again.run()
    assert_same(everything(again), whole)


def test_no_further_batch_without_a_signal(make_solver, small_config):
    solver = make_solver(small_config("run"))
    solver.loader.forever = lambda: (1 / 0 for _ in range(1))
    with pytest.raises(ZeroDivisionError):
        solver.run()
