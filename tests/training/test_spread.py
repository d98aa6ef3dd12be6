"""Adapters, a text encoder in training and compiled layers, also over two processes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from audiogen_fast import AudioGen
from audiogen_fast.cli import main
from audiogen_fast.training import lora, train
from audiogen_fast.training.loaders import RECORDINGS
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.recipe import load_recipe
from audiogen_fast.training.solver_lm import LMSolver

CHECKPOINT = Path(__file__).parent.parent / "data" / "golden" / "plain" / "checkpoint"
SHORT = ["dataset.batch_size=4", "transformer_lm.dropout=0", "parallel.threads=1"]
SAMPLES = ["generate.every=2", "generate.num_samples=2", "generate.lm.prompted_samples=false"]
PARTS = [f"dataset.{part}.source={{recordings}}" for part in ("train", "valid", "generate")]


def run_two(recipe, *changes):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "audiogen_fast.training.train", recipe, *changes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def run_one(recipe, *changes):
    with torch.random.fork_rng(devices=[]):
        LMSolver(load_recipe(recipe, changes), Ranks(), lambda _: None).run()


def assert_same_losses(folder, other):
    names = ("loss", "ce", "ppl", "ce_q1", "ce_q4", "grad_norm")
    logs = []
    for path in (folder, other):
        records = map(json.loads, (path / "log.jsonl").read_text().splitlines())
        logs.append({(r["stage"], r["step"]): r for r in records})
    one, two = logs
    assert one.keys() == two.keys() and ("train", 10) in one and ("valid", 10) in one
    for key, record in one.items():
        shared = [name for name in names if name in record]
        found, expected = [two[key][n] for n in shared], [record[n] for n in shared]
        assert found == pytest.approx(expected, rel=1e-5), key


def sounds(folder):
    return {p.name: p.read_bytes() for p in (folder / "samples" / "epoch-00002").glob("*.wav")}


def test_adapters_over_two_processes(small_changes, tmp_path):
    """The losses and sounds of one process; adapters apart and added in are the same model."""
    changes = [*small_changes, *SHORT, *SAMPLES, *PARTS, f"continue_from={CHECKPOINT}"]
    changes += ["lora.rank=4", "optim.lr=5e-3", "parallel.dtype=float32", "dataset.num_workers=0"]
    changes += ["dataset.valid.batch_size=2", "dataset.generate.batch_size=2"]
    changes += ["dataset.train.batch_size=4"]
    run_one("finetune", *changes, f"folder={tmp_path / 'one'}")
    run_two("finetune", *changes, f"folder={tmp_path / 'two'}", "parallel.mode=fsdp")
    assert_same_losses(tmp_path / "one", tmp_path / "two")
    assert len(sounds(tmp_path / "one")) == 2
    assert sounds(tmp_path / "two") == sounds(tmp_path / "one")
    for options in ([], ["--adapter"]):
        out = tmp_path / f"out{len(options)}"
        assert main(["export", str(tmp_path / "two"), str(out), *options]) == 0
    base = AudioGen.get_pretrained(CHECKPOINT, device="cpu").lm
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    lora.apply_adapter(base, tmp_path / "out1")
    merged = AudioGen.get_pretrained(tmp_path / "out0", device="cpu").lm.state_dict()
    changed = 0
    for name, tensor in base.state_dict().items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6)
        changed += not torch.equal(tensor, before[name])
    assert changed == 6 * 3  # the targets in three layers


def test_a_text_encoder_in_training_over_two_processes(small_changes, tmp_path):
    """T5 learns, sharded as the rest; sounds are made and the export has the trained one."""
    encoder = shutil.copytree(CHECKPOINT / "t5-small", tmp_path / "encoders" / "t5-small")
    config = json.loads((encoder / "config.json").read_text())
    # Its dropout is drawn by each process for itself.
    (encoder / "config.json").write_text(json.dumps(config | {"dropout_rate": 0.0}))
    changes = [*small_changes, *SHORT, *SAMPLES, f"text_encoders={tmp_path / 'encoders'}"]
    changes += ["conditioners.description.model=t5", "conditioners.description.t5.name=t5-small"]
    changes += ["conditioners.description.t5.finetune=true", "optim.ema.updates=1"]
    run_one("debug", *changes, f"folder={tmp_path / 'one'}")
    run_two("debug", *changes, f"folder={tmp_path / 'two'}", "parallel.mode=fsdp")
    assert_same_losses(tmp_path / "one", tmp_path / "two")
    assert len(sounds(tmp_path / "one")) == 2
    assert sounds(tmp_path / "two") == sounds(tmp_path / "one")
    assert main(["export", str(tmp_path / "two"), str(tmp_path / "out")]) == 0
    conditioners = [
        AudioGen.get_pretrained(tmp_path / "out", device="cpu").lm.condition_provider.conditioners,
        LMSolver(
            load_recipe("debug", [*changes, f"folder={tmp_path / 'new'}"]), Ranks(), lambda _: None
        ).lm.condition_provider.conditioners,
    ]
    trained, fresh = (c["description"].encoder.state_dict() for c in conditioners)
    moved = [name for name, t in trained.items() if not torch.equal(t, fresh[name])]
    assert trained.keys() == fresh.keys() and len(moved) > 10


@pytest.mark.slow
def test_compiled_layers(small_changes, tmp_path):
    """About 40 s of one core. The layers are really compiled, and the losses are the same."""
    from torch._dynamo.utils import counters

    changes = [*small_changes, *SHORT, "dataset.generate.source=none"]
    run_one("debug", *changes, f"folder={tmp_path / 'eager'}")
    counters.clear()
    run_one("debug", *changes, f"folder={tmp_path / 'compiled'}", "parallel.compile=true")
    assert counters["stats"]["unique_graphs"] > 0
    assert_same_losses(tmp_path / "eager", tmp_path / "compiled")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["audiogen_base_16khz", "audiogen_medium_fsdp"])
def test_recipes_for_many_processes(recipe, small_changes, tmp_path, capsys):
    """About 20 s each: with their own settings, mixing and bfloat16 too, in a tiny size."""
    assert train.main([recipe, "--dry-run", "--world-size", "8"]) == 0
    assert "bfloat16" in capsys.readouterr().out
    changes = [*small_changes, *PARTS, "compression_model_checkpoint=random"]
    changes += ["transformer_lm.card=64", "transformer_lm.num_heads=4", "dataset.num_workers=1"]
    changes += ["conditioners.description.model=t5", "conditioners.description.t5.name=t5-small"]
    changes += [f"text_encoders={CHECKPOINT}", "dataset.train.batch_size=8", "optim.lr=2e-3"]
    changes += [
        "dataset.valid.num_samples=none",
        "dataset.valid.batch_size=2",
        "parallel.threads=1",
    ]
    changes += ["dataset.generate.batch_size=2", "generate.every=2", "generate.num_samples=2"]
    run_two(recipe, *changes, f"folder={tmp_path}")
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    ce = [record["ce"] for record in records if record["stage"] == "valid"]
    assert len(ce) == 2 and ce[1] < ce[0]
    assert len(sounds(tmp_path)) == 4
    saved = load_recipe(tmp_path / "config.toml")
    assert (saved.dataset.train.aug_p, saved.parallel.dtype) == (0.5, "bfloat16")


@pytest.mark.slow
def test_from_a_codec_to_sounds(tmp_path):
    """About 60 s: a codec, codes, a model of them and a sound, by the commands of the manual."""

    def run(*command):
        assert main([str(part) for part in command]) == 0

    quick = ["optim.epochs=1", "logging.log_tensorboard=false", "parallel.threads=1"]
    run("train", "encodec_small", *quick, "optim.updates_per_epoch=20", "evaluate.every=9",
        "dataset.generate.source=none", f"folder={tmp_path / 'codec-run'}")  # fmt: skip
    run("export", tmp_path / "codec-run", tmp_path / "codec")
    run("encode", RECORDINGS, "--checkpoint", tmp_path / "codec", "--no-text", "--output",
        tmp_path / "cache", "--segment-duration", "3")  # fmt: skip
    parts = [f"dataset.{p}.source={tmp_path / 'cache'}" for p in ("train", "valid", "generate")]
    run("train", "demo_lm", *parts, f"compression_model_checkpoint={tmp_path / 'codec'}", *quick,
        "dataset.batch_size=3", "optim.updates_per_epoch=20", "schedule.warmup=5",
        "generate.every=1", "generate.num_samples=1", f"folder={tmp_path / 'lm-run'}")  # fmt: skip
    records = (tmp_path / "lm-run" / "log.jsonl").read_text().splitlines()
    valid = [json.loads(line) for line in records if '"valid"' in line][-1]
    assert valid["ce"] < 0.8 * torch.tensor(256.0).log().item()
    assert len(list((tmp_path / "lm-run" / "samples" / "epoch-00001").glob("*.wav"))) == 2
    run("export", tmp_path / "lm-run", tmp_path / "model")
    run("generate", "a bell", "--model", tmp_path / "model", "--duration", "1", "--quiet",
        "--output", tmp_path / "sounds")  # fmt: skip
    assert len(list((tmp_path / "sounds").glob("*.wav"))) == 1
