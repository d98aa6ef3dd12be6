"""The codec solver: exact resumption, stages, faults, and that it learns."""

import json
import math
from pathlib import Path

import pytest
import soundfile
import torch

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training.checkpoint import tensors_of
from audiogen_fast.training.codec.export import export_codec, read_run
from audiogen_fast.training.codec.solver_codec import CodecSolver
from audiogen_fast.training.codec.stages import write_reconstructions
from audiogen_fast.training.data import Batch
from audiogen_fast.training.recipe import load_recipe


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


DRAWS = {"rvq__q_dropout": "true", "adversarial__every": 2, "rvq__threshold_ema_dead_code": 3.0}


def test_five_and_five_are_ten(small_recipe, make_solver):
    """With codebook dropout, dead entries and a discriminator that learns now and then."""
    whole = make_solver(small_recipe("whole", **DRAWS))
    whole.run()
    first = make_solver(small_recipe(**DRAWS))
    first.config.optim.epochs = 1
    first.run()
    assert first.step == 5
    second = make_solver(small_recipe(**DRAWS))
    second.run()
    assert second.lines[0].startswith("going on from")
    assert_same(everything(second), everything(whole))
    names = everything(whole)[0]
    for part in ("model.quantizer.vq.layers.2._codebook.cluster_size", "ema_model.", "optimizer."):
        assert any(name.startswith(part) for name in names), part
    other = make_solver(small_recipe("other", seed=1, **DRAWS))
    other.run()
    weights = "model.encoder.model.0.conv.conv.bias"
    assert not torch.equal(everything(other)[0][weights], names[weights])


def test_the_discriminator_learns_in_one_of_so_many_updates(small_recipe, make_solver):
    solver = make_solver(small_recipe(adversarial__every=3))
    draws = []
    for solver.step in range(600):
        draws.append(solver._discriminators_learn())
    assert abs(sum(draws) - 200) < 45  # four standard deviations
    solver.config.adversarial.every = 1
    assert all(solver._discriminators_learn() for solver.step in range(50))


def test_discriminators_learn_alone_at_first(small_recipe, make_solver):
    """For three updates nothing of the codec changes, its codebooks included; a run that is
    resumed among them gives what one in one go does."""
    source = make_solver(small_recipe("source"))
    source.run()
    changes = {"adversarial__warmup": 3, "adversarial__lr": 5e-3, "schedule__warmup": 0}
    changes["continue_from"] = str(source.folder)
    solver = make_solver(small_recipe(**changes))
    batches = solver.loader.forever()
    rates = {name: one.base for name, one in solver.schedules.items()}
    assert rates["msstftd"] == [5e-3] != rates["optimizer"]

    def state(module):
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}

    judge = solver.adversaries["msstftd"].adversary
    codec, before = state(solver.model), state(judge)
    for solver.step in range(3):
        update = solver.update(next(batches))
        assert update.made and update.metrics.keys() == {"d_msstftd"} and update.seconds == 1.0
    assert all(torch.equal(t, codec[name]) for name, t in solver.model.state_dict().items())
    assert not any(torch.equal(t, before[name]) for name, t in judge.state_dict().items())
    solver.step = 3
    assert "feat_msstftd" in solver.update(next(batches)).metrics
    changed = [n for n, t in solver.model.state_dict().items() if not torch.equal(t, codec[n])]
    assert len(changed) > 20
    whole = make_solver(small_recipe("whole", **changes))
    whole.run()
    first = make_solver(small_recipe("parts", **changes))
    first.config.optim.updates_per_epoch, first.config.optim.epochs = 2, 1
    first.run()
    second = make_solver(small_recipe("parts", **changes))
    second.run()
    assert first.step == 2 and second.step == 10
    assert_same(everything(second), everything(whole))


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_a_part_is_trained_alone(small_recipe, make_solver, tmp_path, part, exported):
    """Everything of it changes, codebooks with the encoder, and nothing of the other part."""
    first = make_solver(small_recipe())
    first.run()
    source = first.folder
    if exported:  # with plain weights, which become normalised ones again
        source = export_codec(first.folder, tmp_path / "exported").folder
    changes = {"continue_from": str(source), "learn": part, "optim__epochs": 1}
    changes |= {"energies__weight": 1.0} if part == "encoder" else {}
    solver = make_solver(small_recipe(part, **changes))
    before = {name: t.clone() for name, t in solver.model.state_dict().items()}
    solver.run()
    assert solver.step == 5
    parts = ("decoder.",) if part == "decoder" else ("encoder.", "quantizer.")
    for name, tensor in solver.model.state_dict().items():
        changed = name.startswith(parts) and not name.endswith("inited")
        assert torch.equal(tensor, before[name]) != changed, name
    _, written, chosen = read_run(solver.folder)
    assert chosen.weights == "ema"
    expected = solver.model.state_dict() | solver.averages["model"].tensors()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())


def test_a_part_alone_needs_a_codec(small_recipe):
    for part, weight in (("decoder", 0), ("encoder", 1)):
        message = f"learn = {part} .*continue_from must be given"
        with pytest.raises(InvalidInputError, match=message):
            small_recipe(learn=part, energies__weight=weight)


def test_an_encoder_learns_to_tell_energies(small_recipe, make_solver):
    """Alone, without decoder and discriminators; five updates and five are ten."""
    source = make_solver(small_recipe("source"))
    source.run()
    changes = {"continue_from": str(source.folder), "learn": "encoder", "energies__weight": 1.0}
    changes |= {"optim__lr": 1e-2, "optim__ema__decay": 0.5}
    changes["dataset__generate__source"] = "{recordings}"
    config = small_recipe("whole", **changes)
    whole = make_solver(config)
    assert whole.adversaries == {} and config.best_metric == "energies"
    before = whole.validate()
    assert before["energies"] > 0 and whole.run() == 0
    assert whole.metrics["energies"] < 0.95 * before["energies"]
    assert not (whole.folder / "samples").exists()  # the decoder does not fit
    first = make_solver(small_recipe("parts", **changes))
    first.config.optim.epochs = 1
    first.run()
    second = make_solver(small_recipe("parts", **changes))
    second.run()
    assert_same(everything(second), everything(whole))
    assert any(name.startswith("reader.") for name in everything(whole)[0])


def test_energies_are_learnt_beside_the_other_losses(small_recipe, make_solver):
    """Their gradient reaches the encoder, and not the decoder."""
    gradients = {}
    for weight in (0.0, 10.0, 20.0):
        # Without discriminators, whose initial weights the reader's draws would change.
        changes = {"energies__weight": weight, "losses__adv": 0, "losses__feat": 0}
        solver = make_solver(small_recipe(f"run{weight}", **changes))
        solver.model.train()
        torch.manual_seed(0)
        wav = next(solver.loader.forever()).wav
        _, metrics = solver._backward(wav)
        assert ("energies" in metrics) == (weight > 0)
        gradients[weight] = {n: p.grad.clone() for n, p in solver.model.named_parameters()}
    for name, gradient in gradients[0.0].items():
        once, twice = (gradients[weight][name] - gradient for weight in (10.0, 20.0))
        assert name.startswith("encoder.") == (once != 0).any().item(), name
        torch.testing.assert_close(twice, 2 * once, rtol=1e-2, atol=1e-4)


def test_a_batch_that_is_not_finite_changes_nothing(small_recipe, make_solver):
    solver = make_solver(small_recipe())
    batches = solver.loader.forever()
    assert solver.update(next(batches)).made
    before = everything(solver)
    batch = next(batches)
    batch.wav[0, 0, 17] = math.nan
    update = solver.update(batch)
    assert not update.made and update.batch_ids[0]["id"] == batch.infos[0].id
    after = everything(solver)
    for used_up in ("loader", "generators"):
        after[1][used_up] = before[1][used_up]
    assert_same(after, before)
    assert solver.update(next(batches)).made


def test_the_penalty_has_its_weight(small_recipe, make_solver):
    """Without weight the encoder learns nothing from the quantiser; the rest stays."""
    gradients = []
    for weight in (0.0, 1.0, 3.0):
        solver = make_solver(small_recipe(balancer__penalty_weight=weight))
        taken = {}
        solver.optimizer.register_step_pre_hook(
            lambda *_, taken=taken, solver=solver: taken.update(
                {n: p.grad.clone() for n, p in solver.model.named_parameters()}
            )
        )
        solver.update(next(solver.loader.forever()))
        gradients.append(taken)
    none, one, three = gradients
    name = "encoder.model.0.conv.conv.bias"
    difference = one[name] - none[name]
    assert difference.abs().max() > 0
    scale = none[name].abs().max()
    assert ((three[name] - none[name]) - 3 * difference).abs().max() <= 1e-4 * scale
    decoder = "decoder.model.0.conv.conv.bias"
    assert torch.equal(one[decoder], none[decoder])


def test_without_adversaries_and_with_several(small_recipe, make_solver):
    for adversaries in ("[]", '["mpd", "msd", "msstftd"]'):
        config = small_recipe(
            adversarial__adversaries=adversaries,
            mpd__periods=[2, 3],
            mpd__filters=1,
            msd__filters=4,
            msd__max_filters=16,
        )
        solver = make_solver(config)
        update = solver.update(next(solver.loader.forever()))
        found = {name.split("_")[1] for name in update.metrics if name.startswith("adv_")}
        assert found == set(json.loads(adversaries)) and update.made
        weights = {n.split("_")[0] for n in solver.balancer.weights}
        assert weights == ({"l1", "msspec", "adv", "feat"} if found else {"l1", "msspec"})


def test_stages_write_metrics_and_sounds(small_recipe, make_solver):
    source = {
        "dataset__evaluate__source": "{recordings}",
        "dataset__generate__source": "{recordings}",
    }
    config = small_recipe(
        evaluate__every=2, generate__samples=3, dataset__generate__segment_duration=0.5, **source
    )
    solver = make_solver(config)
    solver.run()
    # Loaders of 6 and 32 items, 4 in a batch, and 3 sounds: each part counts as progress.
    progress = []
    solver.progress = lambda: progress.append(1)
    solver.validate()
    assert len(progress) == 2
    solver.after_epoch(2)
    assert len(progress) == 2 + 8 + 3
    folder = Path(config.folder)
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    stages = [record["stage"] for record in records]
    assert stages.count("valid") == 2 and stages.count("evaluate") == 1
    valid = next(record for record in records if record["stage"] == "valid")
    for name in ("mel_distance", "si_sdr", "msspec", "mrstft", "usage_q1", "perplexity_q3"):
        assert math.isfinite(valid[name]), name
    assert 0 < valid["usage_q1"] <= 1 <= valid["perplexity_q3"] <= 16
    samples = folder / "samples" / "epoch-0002"
    assert not (folder / "samples" / "epoch-0001").exists()
    sounds = sorted(samples.glob("*.wav"))
    assert len(sounds) == 6
    original, rate = soundfile.read(next(p for p in sounds if "original" in p.name))
    assert rate == 16000 and 0 < len(original) <= 8000 and abs(original).max() > 0.01
    page = (samples / "index.html").read_text()
    assert all(path.name in page for path in sounds) and "mel distance" in page


def test_each_time_the_same_recordings(small_recipe, make_solver, tmp_path):
    """Three in batches of two, of which the last one repeats one: none is written twice, and
    neither a part of them nor a second time changes which they are."""
    config = small_recipe(
        dataset__generate__source="{recordings}", dataset__generate__num_samples=3
    )
    config.dataset.generate.batch_size = 2
    solver = make_solver(config)
    loader, model = solver.loaders["generate"], solver.model.eval()
    found = []
    for samples in (1, 8, 8):
        folder = tmp_path / str(len(found))
        write_reconstructions(model, loader, samples, folder, lambda _: None)
        found.append(sorted(path.name for path in folder.glob("*-original.wav")))
    names = {name.split("-", 1)[1] for name in found[1]}
    assert len(found[1]) == len(names) == 3 and found[2] == found[1]
    assert found[0] == found[1][:1]
    expected = solver.validate()
    next(iter(solver.loaders["valid"]))
    assert solver.validate() == expected


def test_validation_counts_every_recording_once(small_recipe, make_solver):
    """Six items in batches of four: the last batch repeats two, which do not count."""
    config = small_recipe()
    solver = make_solver(config)
    solver.model.quantizer.vq.layers[0]._codebook.embed.normal_()
    together = solver.validate()
    config.dataset.valid.batch_size = 1
    alone = make_solver(config)
    alone.model.load_state_dict(solver.model.state_dict())
    separate = alone.validate()
    for metrics in (together, separate):
        del metrics["mrstft"]  # its norms are those of a batch
    assert together == pytest.approx(separate, rel=1e-4)


def test_the_average_is_what_is_validated(small_recipe, make_solver):
    config = small_recipe(optim__ema__decay=0.9)
    solver = make_solver(config)
    solver.run()
    metrics = solver.metrics["mel_distance"]
    with torch.no_grad(), solver.averages["model"].swapped():
        assert solver.validate()["mel_distance"] == pytest.approx(metrics, rel=1e-6)
    assert solver.validate()["mel_distance"] != pytest.approx(metrics, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parallel__mode": "fsdp"}, "parallel.mode"),
        ({"parallel__dtype": "bfloat16"}, "parallel.dtype"),
        ({"parallel__dtype": "float16"}, "parallel.dtype must be float32"),
        ({"parallel__compile": "true"}, "parallel.compile must be false for a codec, got true"),
        ({"optim__accumulate": 2}, "optim.accumulate"),
        ({"losses__l1": -1}, "losses.l1"),
        ({"adversarial__every": 0.5}, "adversarial.every"),
        ({"adversarial__warmup": -1}, r"adversarial\.warmup must be at least 0, got -1"),
        ({"adversarial__warmup": 9}, "warmup needs a codec and discriminators.*got 9 without"),
        (
            {"adversarial__warmup": 9, "continue_from": "x", "adversarial__adversaries": "[]"},
            "warmup needs a codec and discriminators",
        ),
        ({"adversarial__lr": 0}, r"adversarial\.lr must be above 0, got 0"),
        ({"adversarial__dtype": "float16"}, r"adversarial\.dtype.*float16"),
        ({"dataset__segment_duration": 0.01}, "segment_duration"),
        ({"mel__n_mels": 0}, r"mel\.n_mels must be at least 1, got 0"),
        ({"msspec__n_mels": -4}, r"msspec\.n_mels must be at least 1, got -4"),
        ({"mel__floor_level": -1}, r"mel\.floor_level must be above 0 and finite, got -1"),
        ({"msspec__floor_level": 0}, r"msspec\.floor_level must be above 0 and finite, got 0"),
        ({"msspec__floor_level": "nan"}, r"msspec\.floor_level .*got nan"),
        ({"mel__f_min": 9000}, r"mel\.f_min < mel\.f_max .*0\.\.8000 Hz, got 9000 and 8000"),
        ({"msspec__f_max": 1e5}, r"msspec\.f_max .*got 64 and 100000"),
        ({"mel__hop_length": 0}, r"mel\.hop_length must lie in 1\.\.1024 .*got 0"),
        ({"mel__n_fft": 128}, r"mel\.hop_length must lie in 1\.\.128 .*got 256"),
        ({"msstftd__power": 2}, r"msstftd\.power must lie above 0 and be at most 1, got 2"),
        ({"losses__mspec": 1}, "did you mean losses.msspec"),
        ({"losses__l1": 0, "losses__msspec": 0, "adversarial__adversaries": "[]"}, "losses"),
    ],
)
def test_mistakes_are_named(small_recipe, change, message):
    with pytest.raises(InvalidInputError, match=message):
        small_recipe(**change)


def test_no_data_is_a_mistake(make_solver):
    with pytest.raises(InvalidInputError, match=r"dataset\.train\.source"):
        make_solver(load_recipe("encodec_16khz"))


def test_the_recipe_of_the_original():
    """Figures of section 3.4 of the paper and of the released model."""
    facts = CodecSolver.dry_run(load_recipe("encodec_16khz"), 8)
    assert facts["codec parameters"] == "56,819,138"
    assert facts["bit rate"] == "2.2 kb/s" and facts["audio per update"] == "64 s"
    assert facts["codes per update"] == "12,800" and facts["updates"] == "400,000"
    with pytest.raises(InvalidInputError, match="batch_size"):
        CodecSolver.dry_run(load_recipe("encodec_16khz"), 7)


def test_learning_lowers_the_mel_distance(small_recipe, make_solver):
    """The recipe in small: the recordings of the package, a hundred updates of two seconds."""
    config = small_recipe(
        dataset__segment_duration=0.5,
        seanet__n_filters=4,
        seanet__dimension=32,
        rvq__bins=64,
        optim__lr=5e-3,
        optim__updates_per_epoch=50,
    )
    solver = make_solver(config)
    solver.update(next(solver.loader.forever()))  # makes the codebooks
    before = solver.validate()
    solver = make_solver(config)
    solver.run()
    assert solver.metrics["mel_distance"] < 0.7 * before["mel_distance"]
    assert solver.metrics["msspec"] < 0.5 * before["msspec"]
    assert all(solver.metrics[f"usage_q{k}"] > 0.3 for k in (1, 2, 3))


def test_a_batch_without_infos_is_learnt_from(small_recipe, make_solver, sounds):
    """Audio from anywhere, of any length that the discriminators can see."""
    solver = make_solver(small_recipe())
    update = solver.update(Batch(infos=[], wav=sounds[0][None, :, :5123]))
    assert update.made and update.tokens == 3 * -(-5123 // 320)
