"""A language model with the conditioner `encoder`: trained, exported, loaded and run."""

import json
import shutil

import pytest
import torch

from audiogen_fast import AudioGen
from audiogen_fast._backend import load_native
from audiogen_fast.cli import main
from audiogen_fast.errors import CheckpointError, InvalidInputError
from audiogen_fast.models.saving import save_pretrained
from audiogen_fast.modules.conditioners import ConditioningAttributes
from audiogen_fast.modules.encoder_files import INT8_FILE
from audiogen_fast.training import parallel
from audiogen_fast.training.data import TokenCache
from audiogen_fast.training.export import export_lm
from audiogen_fast.training.lm_build import (
    _set_training_options,
    build_lm,
    check_conditioners,
)
from audiogen_fast.training.lm_samples import inference_copy
from audiogen_fast.training.optimizers import lm_groups
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.recipe import load_recipe
from audiogen_fast.training.shrink_encoder import shrink_encoder
from audiogen_fast.training.solver_lm import LMSolver

TEXTS = ["a dog barking", "rain", "the siren, in the rain"]
PREFIX = "condition_provider.conditioners.description."


@pytest.fixture(scope="module")
def shipped(bert, tmp_path_factory):
    """The tiny encoder with int8 weights."""
    folder = tmp_path_factory.mktemp("shipped") / "tiny-int8"
    shrink_encoder(bert, folder, TEXTS)
    return folder


def recipe(parent, small_changes, encoder, *changes):
    return load_recipe(
        "debug",
        [
            *small_changes,
            f"folder={parent / 'run'}",
            "transformer_lm.num_heads=2",  # what the native engine can compute
            "conditioners.description.model=encoder",
            f"conditioners.description.encoder.name={encoder}",
            *changes,
        ],
    )


def train(*args):
    """The solver of a small run that is over."""
    solver = LMSolver(recipe(*args), Ranks(), lambda line: None)
    assert solver.run() == 0
    return solver


@pytest.fixture(scope="module")
def trained(small_changes, shipped, tmp_path_factory):
    """A run with the frozen encoder. Read only."""
    with torch.random.fork_rng(devices=[]):
        return train(tmp_path_factory.mktemp("trained"), small_changes, shipped)


def drawn(folder, engine):
    model = AudioGen.get_pretrained(folder, device="cpu", engine=engine)
    model.set_generation_params(duration=0.3, cfg_coef=2.0, extend_stride=0.1)
    return model.generate([*TEXTS, ""], return_tokens=True, seed=3)[1]


def condition(lm, texts=TEXTS):
    with torch.no_grad():
        return lm.condition_provider.conditioners["description"].eval()(
            lm.condition_provider.tokenize(
                [ConditioningAttributes(text={"description": text}) for text in texts]
            )["description"]
        )


def test_trained_exported_and_run(trained, shipped, tmp_path):
    solver = trained
    state = solver.lm.state_dict()
    names = [name for name in state if name.startswith(PREFIX)]
    assert names == [PREFIX + "output_proj.weight", PREFIX + "output_proj.bias"]
    assert solver.optimizer.state[solver.lm.get_parameter(names[0])]["exp_avg"].any()
    vectors, mask = condition(solver.lm)
    # What generates during training shares the encoder.
    copied, _ = condition(inference_copy(solver.lm, 0.0, torch.device("cpu")))
    assert torch.equal(copied, vectors)

    export_lm(solver.folder, tmp_path / "model", weights="last")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    options = config["lm"]["conditioners"]["description"]["encoder"]
    assert (options["name"], options["dim"]) == ("tiny-int8", 32)
    assert str(shipped) not in json.dumps(config)
    stored = tmp_path / "model" / "tiny-int8" / INT8_FILE
    assert stored.read_bytes() == (shipped / INT8_FILE).read_bytes()

    moved = (tmp_path / "model").rename(tmp_path / "moved")
    model = AudioGen.get_pretrained(moved, device="cpu", local_files_only=True)
    conditioner = model.lm.condition_provider.conditioners["description"]
    assert conditioner.source == str(moved / "tiny-int8") and conditioner._encoder is None
    again, same = condition(model.lm)
    assert torch.equal(again, vectors) and torch.equal(same, mask)
    model.save_pretrained(moved)  # over what it is mapped from
    assert torch.equal(condition(AudioGen.get_pretrained(moved, device="cpu").lm)[0], vectors)
    codes = drawn(moved, "eager")
    assert not torch.equal(codes[0], codes[1])
    if load_native()[0] is not None:
        assert torch.equal(drawn(moved, "native"), codes)
        packed = tmp_path / "packed"
        assert main(["convert", str(moved), str(packed), "--quantize", "float32", "--json"]) == 0
        assert torch.equal(drawn(packed, "native"), codes)
    (moved / "tiny-int8" / INT8_FILE).write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="int8.safetensors: truncated or damaged"):
        AudioGen.get_pretrained(moved, device="cpu")


def test_goes_on_from_a_folder(trained, small_changes, tmp_path):
    first = trained
    export_lm(first.folder, tmp_path / "model", weights="last")
    second = train(tmp_path, small_changes, "none", f"continue_from={tmp_path / 'model'}")
    before, after = condition(first.lm)[0], condition(second.lm)[0]
    assert not torch.equal(before, after)  # the projection was trained on
    assert torch.equal(
        first.lm.condition_provider.conditioners["description"].encoder.state_dict()[
            "embeddings.LayerNorm.weight"
        ],
        second.lm.condition_provider.conditioners["description"].encoder.state_dict()[
            "embeddings.LayerNorm.weight"
        ],
    )


def test_going_on_is_trained_as_the_recipe_says(trained, small_changes, tmp_path):
    """And what cannot be had from the checkpoint's conditioner is refused, not ignored."""
    export_lm(trained.folder, tmp_path / "model", weights="last")
    going_on = ("none", f"continue_from={tmp_path / 'model'}")
    changes = [
        "optim.lr=0.5",
        "transformer_lm.emb_lr=0.1",
        "transformer_lm.lr=0.2",
        "transformer_lm.weight_decay=0.3",
        "dataset.segment_duration=0.2",
        "conditioners.description.encoder.word_dropout=0.25",
    ]
    config = recipe(tmp_path, small_changes, *going_on, *changes)
    lm = build_lm(config)
    check_conditioners(lm, config)
    groups = lm_groups(lm)
    assert [group.get("lr") for group in groups] == [None, *[0.1] * lm.n_q, 0.2]
    assert groups[-1]["weight_decay"] == 0.3
    assert trained.lm.cfg["dataset"]["segment_duration"] == 0.4
    assert lm.cfg.dataset.segment_duration == 0.2
    conditioner = lm.condition_provider.conditioners["description"]
    assert conditioner.word_dropout == 0.25
    conditioner.word_dropout = 0.5  # the checkpoint's stays where the recipe has none
    _set_training_options(lm, recipe(tmp_path, small_changes, *going_on))
    assert conditioner.word_dropout == 0.5 and lm.emb_lr is lm.transformer.lr is None

    told = []
    LMSolver(config, Ranks(), told.append)
    assert told == [
        "conditioners.description: the text encoder of continue_from stays (tiny-int8), none is "
        "not read"
    ]
    told.clear()
    LMSolver(recipe(tmp_path, small_changes, "tiny-int8", *going_on[1:]), Ranks(), told.append)
    assert told == []

    finetune = "conditioners.description.encoder.finetune=true"
    with pytest.raises(InvalidInputError, match="description: finetune must be false, as cont"):
        LMSolver(recipe(tmp_path, small_changes, *going_on, finetune), Ranks())


def test_words_are_dropped_by_text_encoders_only(small_config):
    asking = small_config("run", "conditioners.description.t5.word_dropout=0.1")
    with pytest.raises(InvalidInputError, match="word_dropout must be 0, .* got 0.1"):
        check_conditioners(build_lm(small_config("run")), asking)


def test_fine_tuned(small_changes, bert, tmp_path):
    """The encoder is trained, kept in float32 and saved with the model."""
    solver = train(tmp_path, small_changes, bert, "conditioners.description.encoder.finetune=true")
    name = PREFIX + "text_model.embeddings.word_embeddings.weight"
    trained_table = solver.lm.state_dict()[name]
    conditioner = solver.lm.condition_provider.conditioners["description"]
    from transformers import BertModel

    start = BertModel.from_pretrained(bert).embeddings.word_embeddings.weight
    assert not torch.equal(trained_table, start)
    vectors, _ = condition(solver.lm)
    copied, _ = condition(inference_copy(solver.lm, 0.0, torch.device("cpu")))
    assert torch.equal(copied, vectors)
    export_lm(solver.folder, tmp_path / "model", weights="last")
    model = AudioGen.get_pretrained(tmp_path / "model", device="cpu", dtype="float16")
    again = model.lm.condition_provider.conditioners["description"]
    assert again.text_model.embeddings.word_embeddings.weight.dtype == torch.float32
    assert torch.equal(again.text_model.embeddings.word_embeddings.weight, trained_table)
    assert conditioner.dim == again.dim == 32


def test_fine_tuned_keeps_its_own_dropout(small_changes, bert, tmp_path):
    """`transformer_lm.dropout` is of the transformer."""
    changes = ["conditioners.description.encoder.finetune=true", "transformer_lm.dropout=0.25"]
    lm = build_lm(recipe(tmp_path, small_changes, bert, *changes))

    def found(module):
        return {m.p for m in module.modules() if isinstance(m, torch.nn.Dropout)}

    conditioner = lm.condition_provider.conditioners["description"]
    assert found(conditioner.text_model) == {0.1}
    assert found(lm.transformer) == {0.25}


def test_fine_tuned_in_shards(small_changes, bert, tmp_path):
    """Its computation stays in float32, and a whole one is made of its parts for generation."""
    config = recipe(
        tmp_path,
        small_changes,
        bert,
        "conditioners.description.encoder.finetune=true",
        "parallel.mode=fsdp",
        "parallel.dtype=bfloat16",
        "optim.epochs=1",
    )
    dtypes = {"encoder": set(), "output_proj": set()}
    ranks = parallel.start(config.parallel, config.safety)
    try:
        solver = LMSolver(config, ranks, lambda line: None)
        conditioner = solver.lm.condition_provider.conditioners["description"]
        modules = {name: getattr(conditioner, name) for name in dtypes}
        for name, module in modules.items():
            module.register_forward_hook(
                lambda _m, _i, out, name=name: dtypes[name].add(
                    getattr(out, "last_hidden_state", out).dtype
                )
            )
        assert solver.run() == 0
        assert dtypes == {"encoder": {torch.float32}, "output_proj": {torch.bfloat16}}
        copied = inference_copy(solver.lm, 0.0, torch.device("cpu"))
        other = copied.condition_provider.conditioners["description"]
        inputs = conditioner.eval().tokenize(TEXTS)
        with torch.no_grad():
            assert torch.equal(other.encode(inputs), conditioner.encode(inputs))
    finally:
        parallel.stop()


def test_from_a_cache_as_from_audio(trained, small_changes, shipped, tmp_path):
    """`encode` keeps what the encoder makes of the texts, and training from it is the same."""
    from audiogen_fast.training.loaders import RECORDINGS

    export_lm(trained.folder, tmp_path / "model", weights="last")
    cache = tmp_path / "cache"
    command = ["encode", str(RECORDINGS), "--checkpoint", str(tmp_path / "model")]
    assert main([*command, "--output", str(cache), "--segment-duration", "0.4", "--json"]) == 0
    tokens = TokenCache(cache)
    assert tokens.text_dim == 32
    encoder = trained.lm.condition_provider.conditioners["description"]
    for text, number in tokens.text_numbers().items():
        with torch.no_grad():
            expected = encoder.encode(encoder.tokenize([text]))[0]
        assert torch.allclose(tokens.embedding(number), expected, atol=1e-5), text
    assert encoder.tokenizer_fingerprint in tokens.settings["text"]["fingerprint"]
    cached = train(
        tmp_path,
        small_changes,
        shipped,
        f"dataset.train.source={cache}",
        f"dataset.valid.source={cache}",
        "dataset.train.num_samples=none",
    )
    weight = PREFIX + "output_proj.weight"
    assert cached.optimizer.state[cached.lm.get_parameter(weight)]["exp_avg"].any()
    # One batch of the cache gives the loss that its texts give when they are encoded now.
    batch = next(iter(cached.valid_loader))
    cached.module.eval()
    with torch.no_grad():
        codes, _ = cached.codes_of(batch)
        kept, _ = cached.module(codes, cached._inputs(batch))
        assert batch.text_embeddings is not None
        batch.text_embeddings = batch.text_mask = None
        fresh, _ = cached.module(codes, cached._inputs(batch))
    assert kept.item() == pytest.approx(fresh.item(), rel=1e-5)


def test_a_dry_run_needs_no_weights(shipped, small_config, tmp_path):
    shutil.copytree(shipped, tmp_path / "encoders" / "name")
    (tmp_path / "encoders" / "name" / INT8_FILE).unlink()
    config = small_config(
        "run",
        "conditioners.description.model=encoder",
        "conditioners.description.encoder.name=name",
        f"text_encoders={tmp_path / 'encoders'}",
    )
    lut = LMSolver.dry_run(small_config("lut"), 1)
    facts = LMSolver.dry_run(config, 1)
    difference = [int(f["parameters"].replace(",", "")) for f in (facts, lut)]
    # A projection from 32 instead of one from 64 and a table of 512.
    assert difference[1] - difference[0] == 512 * 64 + 32 * (64 - 32)


def test_configurations_that_cannot_be(trained, tmp_path, monkeypatch):
    changes = ["conditioners.description.model=encoder"]
    with pytest.raises(InvalidInputError, match="conditioners.description.encoder.name is missing"):
        load_recipe("debug", changes)
    changes.append("conditioners.description.encoder.nme=x")
    with pytest.raises(InvalidInputError, match="did you mean conditioners.description.encoder"):
        load_recipe("debug", changes)
    with pytest.raises(InvalidInputError, match="audiocraft has no conditioner of the kind"):
        export_lm(trained.folder, tmp_path / "out", "audiocraft")
    conditioner = trained.lm.condition_provider.conditioners["description"]
    monkeypatch.setattr(conditioner, "name", "any/compression_model")
    with pytest.raises(InvalidInputError, match="must have a name of its own .*compression_model"):
        save_pretrained(tmp_path / "out", trained.lm, trained.codec)
    assert not (tmp_path / "out").exists()
