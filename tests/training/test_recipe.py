"""Recipes: what they may say, and what is said about mistakes."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from audiogen_fast.cli import main
from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training import train
from audiogen_fast.training.fields import descriptions, to_toml
from audiogen_fast.training.recipe import load_recipe, recipe_names

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optm.lr=1", "unknown key optm; did you mean optim?"),
        ("optim.lrr=1", "unknown key optim.lrr; did you mean optim.lr?"),
        ("optim.adam.beta=1", "did you mean optim.adam.betas?"),
        ("optim.lr=fast", "optim.lr must be float, got 'fast'"),
        ("optim.epochs=1.5", "optim.epochs must be int, got 1.5"),
        ("optim.epochs=true", "optim.epochs must be int, got True"),
        ("optim.lr=-1", "optim.lr must be positive, got -1.0"),
        ("optim.adam.betas=[0.9]", "optim.adam.betas must be two numbers"),
        ("optim.ema.decay=1.0", "optim.ema.decay must lie in [0, 1), got 1.0"),
        ("parallel.dtype=int8", "parallel.dtype must be one of"),
        ("channels=3", "channels must be 1 or 2, got 3"),
        ("classifier_free_guidance.training_dropout=2", "must lie in [0, 1], got 2.0"),
        ("sampling.top_k=-1", "sampling.top_k must be finite and not negative, got -1"),
        ("sampling.temperature=inf", "sampling.temperature must be finite and not negative, got"),
        ("fuser.cross=['caption']", "fuser names the attributes ['caption']"),
        ("lora.rank=4", "lora.rank is for a model that is trained already"),
        ("solver=ml", "solver must be one of ['codec', 'lm'], got 'ml'"),
        ("optim", "changes are section.key=value, got 'optim'"),
        ("seed.x=1", "seed must be int"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(InvalidInputError) as error:
        load_recipe("debug", [change])
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["debug", "encodec_small"])
def test_the_first_recipes_of_the_manual_need_no_extra(name):
    logging = load_recipe(name).logging
    assert not (logging.log_tensorboard or logging.log_wandb or logging.log_trackio)
    assert load_recipe(name, ["logging.log_tensorboard=true"]).logging.log_tensorboard


def test_metrics_without_an_evaluation_are_refused():
    """In `finetune` nothing is evaluated, so they would be left out without a word."""
    wanted = ["evaluate.metrics.fad=true", "evaluate.metrics.kld=true"]
    with pytest.raises(InvalidInputError) as error:
        load_recipe("finetune", wanted)
    assert "evaluate.metrics.fad/kld need" in str(error.value)
    assert "evaluate.every must be a number of epochs, got None" in str(error.value)
    assert load_recipe("finetune", [*wanted, "evaluate.every=1"]).evaluate.every == 1


def test_an_unknown_recipe_has_the_nearest_name():
    with pytest.raises(InvalidInputError, match="unknown recipe debu; did you mean debug"):
        load_recipe("debu")


@pytest.mark.parametrize("name", recipe_names())
def test_printed_recipes_are_the_same_recipes(name, tmp_path):
    config = load_recipe(name)
    path = tmp_path / f"{name}.toml"
    path.write_text(to_toml(config))
    assert load_recipe(path) == config
    described = descriptions(type(config))
    assert all(described.values()) and "optim" not in described


def test_base_and_changes(tmp_path):
    (tmp_path / "mine.toml").write_text('base = "debug"\n[optim]\nlr = 0.25\n')
    (tmp_path / "next.toml").write_text('base = "mine"\n[optim.adam]\neps = 1e-3\n')
    config = load_recipe(tmp_path / "next.toml", ["dataset.train.where={split='train'}"])
    assert (config.optim.lr, config.optim.adam.eps, config.optim.epochs) == (0.25, 1e-3, 2)
    assert config.dataset.train.where == {"split": "train"}
    assert config.folder == "runs/next"


def test_a_selection_of_the_base_can_be_left_out(tmp_path):
    (tmp_path / "all.toml").write_text('base = "tiny_codec"\n[dataset.train]\nwhere = "none"\n')
    config = load_recipe(tmp_path / "all.toml")
    assert config.dataset.train.where is None and config.dataset.valid.where == {"split": "metric"}
    changed = load_recipe(tmp_path / "all.toml", ["dataset.train.where.tier=free"])
    assert changed.dataset.train.where == {"tier": "free"}


def test_the_originals_figures():
    config = load_recipe("audiogen_base_16khz")
    assert (config.optim.lr, config.optim.adam.betas) == (5e-4, [0.9, 0.95])
    assert (config.schedule.lr_scheduler, config.schedule.warmup) == ("inverse_sqrt", 3000)
    assert config.optim.total_updates == 200_000
    assert (config.dataset.train.batch_size, config.dataset.train.mix_p) == (256, 0.5)
    assert (config.optim.ema.updates, config.optim.ema.decay) == (10, 0.99)


def test_configuration_of_a_checkpoint():
    config = load_recipe(GOLDEN / "plain" / "checkpoint")
    stored = config.xp_cfg()["transformer_lm"]
    assert (stored["dim"], stored["num_layers"], stored["card"]) == (128, 3, 64)
    assert config.conditioners["description"].t5.name == "t5-small"
    assert config.dataset.segment_duration == 3.0


def test_configuration_of_the_original_in_yaml(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        """
solver: audiogen
autocast: true
autocast_dtype: bfloat16
compression_model_checkpoint: //pretrained/facebook/audiogen-medium
schedule: {lr_scheduler: cosine, cosine: {warmup: 77, cycle_length: 0.5}}
datasource: {train: egs/a, valid: egs/b}
optim: {lr: 1e-4, epochs: 3, optimizer: dadam}
deadlock: {timeout: 60}
conditioners: {args: {drop_desc_p: 0}, description: {model: t5, t5: {name: t5-small}}}
strange: {thing: 1}
"""
    )
    with pytest.warns(UserWarning) as warned:
        config = load_recipe(path)
    told = " ".join(str(one.message) for one in warned)
    assert "ignored: strange" in told and "dadam" in told
    assert config.parallel.dtype == "bfloat16"
    assert config.compression_model_checkpoint == "facebook/audiogen-medium"
    assert (config.schedule.warmup, config.schedule.cycle_length) == (77, 0.5)
    assert (config.dataset.train.source, config.dataset.valid.source) == ("egs/a", "egs/b")
    assert (config.optim.lr, config.optim.optimizer, config.safety.timeout) == (1e-4, "adamw", 60)


def test_dry_run_of_the_released_size(capsys):
    command = ["audiogen_medium_fsdp", "--dry-run", "--world-size", "8", "dataset.batch_size=64"]
    assert train.main(command) == 0
    facts = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    assert facts["parameters"] == "1,839,131,136"
    assert facts["tokens per step"].startswith("256,000 ")  # 128 sounds of 500 frames of 4
    # float32 weights of one process of eight
    assert facts["memory: weights"] == f"{1_839_131_136 * 4 / 8 / 2**30:.2f} GiB"


def test_dry_run_refuses_a_batch_that_does_not_divide(capsys):
    assert train.main(["debug", "--dry-run", "--world-size", "2"]) == 2
    assert "must be a multiple of 2" in capsys.readouterr().err


def test_print_config(capsys):
    assert train.main(["debug", "optim.lr=0.5", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert tomllib.loads(printed)["optim"]["lr"] == 0.5
    assert "# Learning rate, before the schedule.\nlr = 0.5" in printed


COMMANDS = [
    "debug --dry-run --world-size 3 dataset.batch_size=6 optim.epochs=7",
    "debug dataset.batch_size=6 --world-size 3 optim.epochs=7 --dry-run",
    "--world-size 3 debug dataset.batch_size=6 --dry-run optim.epochs=7",
    "--dry-run --world-size=3 debug dataset.batch_size=6 optim.epochs=7",
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("program", ["audiogen-fast", "torchrun"])
def test_options_stand_anywhere(program, command, capsys):
    run = main if program == "audiogen-fast" else train.main
    arguments = ["train"] * (program == "audiogen-fast") + command.split()
    assert run(arguments) == 0
    facts = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert {name.strip(): value.strip() for name, value in facts.items()}["updates"] == "700"
    with pytest.raises(SystemExit) as end:
        run([*arguments, "--bogus", "seed=1"])
    assert end.value.code == 2 and "unrecognized arguments: --bogus" in capsys.readouterr().err


def test_reading_recipes_stays_light():
    code = (
        "import sys; from audiogen_fast.training.recipe import load_recipe; load_recipe('debug'); "
        "import json; print(json.dumps([m for m in ('torch', 'transformers') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
