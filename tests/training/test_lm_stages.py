"""Evaluation and generation of a run, and what is left out of its conditions."""

import json

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.recipe import load_recipe
from audiogen_fast.training.solver_lm import LMSolver

CHANGES = [
    "dataset.segment_duration=0.6",
    "dataset.evaluate.source={recordings}",
    "dataset.evaluate.batch_size=2",
    "evaluate.every=1",
    "optim.lr=0.02",
    "optim.epochs=1",
    "optim.ema.updates=1",
    "generate.every=1",
    "generate.num_samples=2",
    "generate.audio.strategy=clip",
    "generate.lm.prompted_samples=true",
    "generate.lm.prompt_duration=0.4",
    "generate.lm.gen_gt_samples=true",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_changes):
    """A run of one epoch with all stages."""
    folder = tmp_path_factory.mktemp("stages")
    with torch.random.fork_rng(devices=[]):
        config = load_recipe("debug", [*small_changes, *CHANGES, f"folder={folder}"])
        solver = LMSolver(config, Ranks(), lambda _: None)
        solver.run()
        return solver


def plain_metrics(solver):
    """Cross entropy and perplexity from the logits of each sample of the evaluation."""
    sums, counts = torch.zeros(4, dtype=torch.float64), torch.zeros(4)
    solver.lm.eval()
    for batch in solver.evaluate_loader:
        codes, _ = solver.codes_of(batch)
        with torch.no_grad():
            output = solver.lm.compute_predictions(codes, batch.conditions)
        for row in range(len(batch) - batch.repeated):
            for k in range(4):
                kept = output.mask[row, k]
                logits, targets = output.logits[row, k, kept], codes[row, k, kept]
                sums[k] += F.cross_entropy(logits.double(), targets, reduction="sum")
                counts[k] += kept.sum()
    solver.lm.train()
    ce = sums / counts
    metrics = {"ce": ce.mean(), "ppl": ce.mean().exp()}
    for k in range(4):
        metrics |= {f"ce_q{k + 1}": ce[k], f"ppl_q{k + 1}": ce[k].exp()}
    return {name: value.item() for name, value in metrics.items()}, counts.tolist()


def test_evaluation_is_of_the_average(finished):
    """On every recording once (the second batch of two is filled up), with the averaged weights."""
    records = map(json.loads, (finished.folder / "log.jsonl").read_text().splitlines())
    (found,) = [record for record in records if record["stage"] == "evaluate"]
    with finished.averages["model"].swapped():
        expected, counts = plain_metrics(finished)
    # Codebook k is predicted k frames later: its last k frames are not.
    assert counts == [3 * (30 - k) for k in range(4)]
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    last, _ = plain_metrics(finished)
    assert abs(last["ce"] - expected["ce"]) > 1e-3


def test_a_measure_is_of_all_recordings_wherever_the_loader_stopped(finished):
    expected = finished._measure(finished.evaluate_loader)
    next(iter(finished.evaluate_loader))
    assert finished._measure(finished.evaluate_loader) == expected


def test_prompted_samples_begin_with_the_recording(finished):
    folder = finished.folder / "samples" / "epoch-00001"
    sounds = {}
    for path in sorted(folder.glob("*.wav")):
        index, kind = path.name.split("-")[:2]
        wav, rate = soundfile.read(path, dtype="float32")
        assert (rate, len(wav)) == (16000, 9600)
        sounds[int(index), kind] = wav
    assert len(sounds) == 6
    loader = finished.samples.loader
    loader.rewind()
    batch = next(iter(loader))
    for index in range(2):
        wav = batch.wav[index : index + 1]
        with torch.no_grad():
            whole, prompt = (
                finished.codec.decode(finished.codec.encode(w)[0])[0, 0].numpy()
                for w in (wav, wav[..., :6400])
            )
        scale = np.abs(whole).max()
        assert np.abs(sounds[index, "reference"] - whole).max() < 1e-3 * scale + 1e-4
        prompted = sounds[index, "prompted"]
        # The decoder sees a few frames beyond, so the end of the prompt depends on what follows.
        assert np.abs(prompted[:4000] - prompt[:4000]).max() < 1e-3 * scale + 1e-4
        assert np.abs(prompted[6400:] - whole[6400:]).max() > 0.05 * scale
        assert np.abs(sounds[index, "unprompted"][:4000] - prompt[:4000]).max() > 0.05 * scale


@pytest.fixture
def with_moods(tmp_path, small_config, make_solver):
    """A function from changes to a solver of recordings with a description and a mood."""
    rows = []
    for number in range(8):
        noise = np.random.default_rng(number).uniform(-0.3, 0.3, 6400)
        soundfile.write(tmp_path / f"{number}.wav", noise, 16000)
        row = {"path": f"{number}.wav", "duration": 0.4, "description": f"noise {number}"}
        rows.append(json.dumps(row | {"mood": "grave"}) + "\n")
    (tmp_path / "data.jsonl").write_text("".join(rows))
    fixed = [
        f"dataset.train.source={tmp_path}",
        f"dataset.valid.source={tmp_path}",
        "dataset.batch_size=8",
        "fuser.cross=['description','mood']",
        "conditioners.mood.model=lut",
        "conditioners.mood.lut={n_bins=16,dim=8,tokenizer='noop'}",
        "classifier_free_guidance.training_dropout=0",
    ]
    return lambda *changes: make_solver(small_config("moods", *fixed, *changes))


def present(inputs, name):
    """Which samples have an attribute: bool `[B]`."""
    return inputs[name]["token_mask"].bool().any(dim=1)


def test_attribute_dropout(with_moods):
    """Each attribute by itself, drawn from the update alone, and in training only."""
    solver = with_moods("attribute_dropout={text={mood=0.4}}")
    batch = next(solver.loader.forever())
    kept = []
    for solver.step in range(100):
        inputs = solver._inputs(batch)
        assert present(inputs, "description").all()
        kept.append(present(inputs, "mood"))
    share = torch.stack(kept).float().mean().item()
    assert abs(share - 0.6) < 4 * (0.24 / 800) ** 0.5  # four standard deviations
    assert any(0 < row.sum() < 8 for row in kept)  # not the whole batch at once
    solver.step = 17
    assert torch.equal(present(solver._inputs(batch), "mood"), kept[17])
    solver.module.eval()
    assert all(present(solver._inputs(batch), name).all() for name in ("description", "mood"))


def test_whole_batches_without_an_attribute(with_moods):
    solver = with_moods(
        "attribute_dropout={text={mood=0.5,description=1}}",
        "classifier_free_guidance.per_sample=false",
    )
    batch = next(solver.loader.forever())
    sums = set()
    for solver.step in range(20):
        inputs = solver._inputs(batch)
        assert not present(inputs, "description").any()
        sums.add(int(present(inputs, "mood").sum()))
    assert sums == {0, 8}


def test_what_is_dropped_is_not_seen(with_moods):
    """With probability 1 the loss of an update is that of samples that never had the attribute."""
    losses = []
    for p in (0, 1, 1):
        solver = with_moods(f"attribute_dropout={{text={{mood={p}}}}}", "transformer_lm.dropout=0")
        batch = next(solver.loader.forever())
        if len(losses) == 2:
            for info in batch.infos:
                info.attributes = {}
        losses.append(solver.update(batch).metrics["loss"].item())
    assert losses[1] == losses[2] != losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("attribute_dropout={text={mod=0.5}}", r"some of \['description', 'mood'\], got \['mod'\]"),
        ("attribute_dropout={text={mood=1.5}}", r"text\.mood must lie in \[0, 1\], got 1.5"),
        ("attribute_dropout={wav={mood=0.5}}", "the type text only"),
    ],
)
def test_attributes_that_cannot_be_dropped(with_moods, change, message):
    with pytest.raises(InvalidInputError, match=message):
        with_moods(change)
