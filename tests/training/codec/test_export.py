"""Trained codecs as files for use, and as the start of another training."""

import json
import shutil

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast import AudioGen
from audiogen_fast.cli import main
from audiogen_fast.errors import CheckpointError, InvalidInputError
from audiogen_fast.models.checkpoint import CONFIG_FILE
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.models.loaders import load_compression_model_ckpt
from audiogen_fast.models.saving import save_pretrained
from audiogen_fast.training.codec.export import export_codec, read_run
from audiogen_fast.training.codec.solver_codec import CodecSolver
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.recipe import load_recipe


@pytest.fixture(scope="module")
def solver(tmp_path_factory, small_values):
    """A solver after a short run, its own weights replaced by their average."""
    values = small_values | {"folder": tmp_path_factory.mktemp("run"), "checkpoint.every": 4}
    values |= {"rvq.n_q": 4, "rvq.bins": 64, "optim.ema.decay": 0.9}
    changes = [f"{key}={value}" for key, value in values.items()]
    solver = CodecSolver(load_recipe("encodec_small", changes), Ranks(), lambda _: None)
    solver.run()
    solver.averages["model"]._swap()
    solver.model.eval()
    return solver


RELEASED = "compression_state_dict.bin"


def sound(solver, samples=3210):
    return 0.3 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("format", ["audiogen_fast", "audiocraft"])
def test_the_exported_codec_is_the_average(solver, tmp_path, format):
    output = tmp_path / "exported"
    done = export_codec(solver.folder, output, format)
    assert (done.folder, done.step, done.weights) == (output, 10, "ema")
    loaded = CompressionModel.get_pretrained(output)
    x = sound(solver)
    with torch.no_grad():
        codes, scale = loaded.encode(x)
        expected, _ = solver.model.encode(x)
        assert scale is None and torch.equal(codes, expected) and codes.unique().numel() > 4
        assert_close(loaded.decode(codes), solver.model.decode(codes), rtol=1e-5, atol=1e-6)
    assert (loaded.sample_rate, loaded.frame_rate, loaded.num_codebooks) == (16000, 50, 4)


def test_the_layout_of_the_original(solver, tmp_path, codec_checkpoint):
    """The names of the released file, its configuration as text, and nothing that runs code."""
    path = export_codec(solver.folder, tmp_path / "out", "audiocraft").folder / RELEASED
    package = torch.load(path, weights_only=True)
    assert package["exported"] is True and isinstance(package["xp.cfg"], str)
    original = load_compression_model_ckpt(codec_checkpoint / "compression_state_dict.bin")
    differing = package["best_state"].keys() ^ original["best_state"].keys()
    # The recorded one has a layer of LSTM more.
    assert all("_l1" in name for name in differing), differing


def test_last_weights_and_older_steps(solver, tmp_path):
    _, average, chosen = read_run(solver.folder)
    assert (chosen.step, chosen.weights) == (10, "ema")
    _, last, chosen = read_run(solver.folder, weights="last")
    assert (chosen.step, chosen.weights) == (10, "last")
    _, older, chosen = read_run(solver.folder, step=8)
    assert chosen.step == 8
    name = "encoder.model.0.conv.conv.bias"
    assert torch.equal(average[name], dict(solver.model.named_parameters())[name])
    assert torch.equal(last[name], solver.averages["model"].state[name])
    assert not torch.equal(older[name], average[name])
    with pytest.raises(CheckpointError, match="asked for 3"):
        read_run(solver.folder, step=3)


def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(solver, tmp_path, capsys):
    """The rule of language models too (`tests/training/test_export.py`); the run stays as it is."""
    run = shutil.copytree(solver.folder, tmp_path / "run")
    stored = {}
    for step in (5, 8, 10):
        path = run / "checkpoints" / f"step-{step:08d}" / "state.json"
        stored[step] = json.loads(path.read_text())["metrics"].get("mel_distance")
    assert stored[8] is None  # only the ends of the epochs were validated
    best = read_run(run, step="best")[2].step
    assert best == min((5, 10), key=stored.get)
    path = run / "checkpoints" / "step-00000010" / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = sorted(path.name for path in run.rglob("*"))
    command = ["export", str(run), str(tmp_path / "out"), "--json"]
    with pytest.warns(UserWarning, match="step-00000010 is damaged .*SHA-256.*; step-00000008 is"):
        assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 8
    assert sorted(path.name for path in run.rglob("*")) == before
    with pytest.raises(CheckpointError, match="step-00000010 is damaged"):
        read_run(run, step=10)
    exported = CompressionModel.get_pretrained(tmp_path / "out").state_dict()
    expected = read_run(run, step=8)[1]
    name = "quantizer.vq.layers.0._codebook.embed"
    assert torch.equal(exported[name], expected[name])


def test_audiogen_with_the_codec(solver, tmp_path, codec_checkpoint):
    """A language model's folder gets the codec beside it, and generates its sound."""
    model = AudioGen.get_pretrained(codec_checkpoint)
    folder = save_pretrained(tmp_path / "model", model.lm, model.compression_model)
    export_codec(solver.folder, folder)
    loaded = AudioGen.get_pretrained(folder)
    x = sound(solver)
    with torch.no_grad():
        assert torch.equal(loaded.compression_model.encode(x)[0], solver.model.encode(x)[0])


def test_another_programs_folder_stays(solver, tmp_path):
    (tmp_path / "other").mkdir()
    config = tmp_path / "other" / CONFIG_FILE
    config.write_text('{"model_type": "t5"}')
    with pytest.raises(InvalidInputError, match="another program"):
        export_codec(solver.folder, tmp_path / "other")
    assert config.read_text() == '{"model_type": "t5"}'
    assert not list((tmp_path / "other").glob("*.safetensors"))
    with pytest.raises(InvalidInputError, match="format"):
        export_codec(solver.folder, tmp_path / "out", "onnx")


@pytest.mark.parametrize("source", ["run", "audiogen_fast", "audiocraft"])
def test_going_on_from_a_codec(solver, small_recipe, make_solver, tmp_path, source):
    place = solver.folder
    if source != "run":
        place = export_codec(solver.folder, tmp_path / "out", source).folder
    config = small_recipe("second", continue_from=place, rvq__n_q=4, rvq__bins=64)
    second = make_solver(config)
    second.model.eval()
    x = sound(second)
    with torch.no_grad():
        assert torch.equal(second.model.encode(x)[0], solver.model.encode(x)[0])
        assert_close(second.model(x).x, solver.model(x).x, rtol=1e-4, atol=1e-5)
    assert all(layer._codebook.inited for layer in second.model.quantizer.vq.layers)
    assert second.update(next(second.loader.forever())).made


def test_discriminators_go_on_with_a_run(solver, small_recipe, make_solver, tmp_path, monkeypatch):
    """The same ones with their weights; others, and those of an export, anew. Which is told."""
    told = []

    def discriminator(**changes):
        solver = make_solver(small_recipe(**changes))
        told.append([line for line in solver.lines if "discriminators" in line])
        module = solver.adversaries["msstftd"].adversary
        return [tensor.clone() for tensor in module.state_dict().values()]

    def equal(ours):
        return all(torch.equal(a, b) for a, b in zip(ours, trained, strict=True))

    trained = list(solver.adversaries["msstftd"].adversary.state_dict().values())
    place = {"continue_from": solver.folder, "rvq__n_q": 4, "rvq__bins": 64}
    assert equal(discriminator(name="same", **place))
    exported = export_codec(solver.folder, tmp_path / "exported").folder
    assert not equal(discriminator(name="exported", **place | {"continue_from": exported}))
    monkeypatch.chdir(solver.folder)  # a run, but none that was named
    assert not equal(discriminator(name="fresh", rvq__n_q=4, rvq__bins=64))
    assert not equal(discriminator(name="other", **place, msstftd__negative_slope=0.2))
    same, from_export, fresh, other = told
    assert same == [f"the discriminators go on from {solver.folder} too"] and fresh == []
    assert from_export == [f"the discriminators begin anew: {exported} has none like them"]
    assert other == [f"the discriminators begin anew: {solver.folder} has none like them"]


def test_the_released_layout_is_a_start(small_recipe, make_solver, codec_checkpoint):
    config = small_recipe(
        seanet__n_filters=4, seanet__dimension=32, seanet__lstm=2, rvq__bins=64, rvq__n_q=4
    )
    config.continue_from = str(codec_checkpoint / "compression_state_dict.bin")
    solver = make_solver(config)
    expected = CompressionModel.get_pretrained(config.continue_from)
    x = sound(solver)
    solver.model.eval()
    with torch.no_grad():
        assert torch.equal(solver.model.encode(x)[0], expected.encode(x)[0])


def test_a_codec_that_does_not_fit(small_recipe, make_solver, codec_checkpoint, tmp_path):
    path = codec_checkpoint / "compression_state_dict.bin"
    with pytest.raises(InvalidInputError, match="does not fit"):
        make_solver(small_recipe(continue_from=path))
    with pytest.raises(CheckpointError, match="no_such_file"):
        make_solver(small_recipe(continue_from=tmp_path / "no_such_file.bin"))


@pytest.mark.parametrize("format", ["audiogen_fast", "audiocraft"])
def test_a_codec_as_recipe(solver, make_solver, tmp_path, format):
    """What is exported, in either layout, is the recipe of a codec of its structure."""
    place = export_codec(solver.folder, tmp_path / "out", format).folder
    config = load_recipe(place, [f"continue_from={place}", "dataset.batch_size=1", *DATA])
    assert (config.solver, config.seanet) == ("codec", solver.config.seanet)
    assert config.rvq == solver.config.rvq
    second, x = make_solver(config), sound(solver)
    second.model.eval()
    with torch.no_grad():
        assert torch.equal(second.model.encode(x)[0], solver.model.encode(x)[0])


DATA = ["dataset.train.source={recordings}", "adversarial.adversaries=[]", "dataset.num_workers=0"]


def test_configuration_of_the_original_as_recipe(codec_checkpoint, tmp_path):
    """`xp.cfg` of a codec's training there, as YAML and in a checkpoint."""
    text = """
solver: compression
sample_rate: 24000
channels: 2
autocast: false
compression_model: encodec
encodec: {autoencoder: seanet, quantizer: rvq, sample_rate: 24000, channels: 2, causal: true,
          renormalize: false}
seanet: {dimension: 64, channels: 2, causal: true, n_filters: 16, ratios: [8, 5, 4, 2], lstm: 1,
         decoder: {trim_right_ratio: 0.5, final_activation: null, final_activation_params: null}}
rvq: {n_q: 8, q_dropout: true, bins: 1024, threshold_ema_dead_code: 2}
losses: {adv: 4.0, feat: 4.0, l1: 0.1, l2: 0.0, mel: 0.0, mrstft: 0.0, msspec: 2.0, sisnr: 0.0}
balancer: {balance_grads: true, ema_decay: 0.999, per_batch_item: true, total_norm: 1.0}
adversarial: {every: 2, adversaries: [msstftd], adv_loss: hinge}
msstftd: {filters: 8, n_ffts: [512], hop_lengths: [128], win_lengths: [512]}
optim: {optimizer: adam, lr: 3e-4, epochs: 7, updates_per_epoch: 11, max_norm: 0.0}
datasource: {train: egs/a}
evaluate: {every: 5}
"""
    (tmp_path / "codec.yaml").write_text(text)
    with pytest.warns(UserWarning, match="threshold_ema_dead_code is 0"):
        config = load_recipe(tmp_path / "codec.yaml")
    assert (config.solver, config.sample_rate, config.channels) == ("codec", 24000, 2)
    assert config.seanet.causal and config.seanet.decoder.trim_right_ratio == 0.5
    assert (config.rvq.n_q, config.rvq.bins, config.rvq.q_dropout) == (8, 1024, True)
    assert config.rvq.threshold_ema_dead_code == 0
    assert (config.adversarial.every, config.msstftd.n_ffts) == (2, [512])
    assert (config.optim.optimizer, config.optim.epochs) == ("adam", 7)
    assert config.dataset.train.source == "egs/a" and config.evaluate.every == 5
    with pytest.warns(UserWarning) as warned:
        config = load_recipe(codec_checkpoint / RELEASED)
    assert "ignored" in str(warned[-1].message) and "transformer_lm" in str(warned[-1].message)
    assert (config.solver, config.seanet.dimension, config.rvq.bins) == ("codec", 32, 64)


HF = {
    "plain": {"use_causal_conv": False},
    "causal": {"trim_right_ratio": 0.5, "use_conv_shortcut": False},
    "normed": {
        "norm_type": "time_group_norm",
        "use_causal_conv": False,
        "normalize": True,
        "num_residual_layers": 2,
        "num_lstm_layers": 2,
    },
}


@pytest.fixture(scope="module", params=HF)
def transformers_codec(request, tmp_path_factory):
    """A tiny random EnCodec of transformers, 4 codebooks, and its folder."""
    from transformers import EncodecConfig, EncodecModel

    tiny = {
        "sampling_rate": 16000,
        "target_bandwidths": [0.5, 1.0],
        "upsampling_ratios": [8, 8, 10],
        "num_filters": 2,
        "hidden_size": 8,
        "codebook_dim": 8,
        "num_lstm_layers": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EncodecModel(EncodecConfig(**(tiny | HF[request.param]))).eval()
        x = 0.3 * torch.randn(2, 1, 64000)
        with torch.no_grad():  # codebooks that fit the latents, so that codes differ
            latents = model.encoder(x).transpose(1, 2).flatten(0, 1)
            for layer in model.quantizer.layers:
                spread = latents.std(0) * torch.randn(1024, 8) + latents.mean(0)
                layer.codebook.embed.copy_(spread)
                latents = latents - layer.codebook.decode(layer.codebook.encode(latents))
    folder = tmp_path_factory.mktemp("transformers")
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("n_q", [4, 2])
def test_going_on_from_a_codec_of_transformers(transformers_codec, make_solver, tmp_path, n_q):
    """Its folder is recipe and start: the same codes and sounds, and it learns and is exported."""
    theirs, folder = transformers_codec
    changes = [f"continue_from={folder}", f"rvq.n_q={n_q}", f"folder={tmp_path / 'run'}", *DATA]
    changes += ["dataset.batch_size=2", "dataset.segment_duration=0.5", "rvq.decay=0.5"]
    changes += ["optim.epochs=1", "optim.updates_per_epoch=1", "logging.log_tensorboard=false"]
    solver = make_solver(load_recipe(folder, changes))
    x = sound(solver)
    solver.model.eval()
    with torch.no_grad():
        codes, scale = solver.model.encode(x)
        expected = theirs.encode(x, bandwidth=1.0)
        assert torch.equal(codes, expected.audio_codes[0][:, :n_q]) and codes.unique().numel() > 8
        wav = theirs.decode(codes[None], expected.audio_scales)[0]
        assert_close(solver.model.decode(codes, scale), wav, rtol=1e-4, atol=1e-5)
    embed = solver.model.quantizer.vq.layers[0]._codebook.embed.clone()
    assert solver.run() == 0
    moved = (solver.model.quantizer.vq.layers[0]._codebook.embed - embed).abs()
    # Entries that were not chosen keep their place: the averages go on from theirs.
    assert 0 < (moved.amax(1) > 1e-3).sum() < 1000
    if n_q == 2:
        # The average, of every tenth update, has none yet.
        assert export_codec(solver.folder, tmp_path / "out").weights == "last"
        loaded = CompressionModel.get_pretrained(tmp_path / "out")
        solver.model.eval()
        with torch.no_grad():
            assert torch.equal(loaded.encode(x)[0], solver.model.encode(x)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seanet.causal=true", "seanet.causal is False there and True here"),
        ("sample_rate=24000", "sample_rate is 16000 there and 24000 here"),
        ("encodec.renormalize=true", "encodec.renormalize is False there and True here"),
        ("seanet.pad_mode=reflect", "seanet.pad_mode is constant there and reflect here"),
    ],
)
def test_what_shapes_do_not_tell_is_compared(solver, make_solver, change, message):
    changes = [f"folder={solver.folder}-other", f"continue_from={solver.folder}", change, *DATA]
    changes += ["seanet.n_filters=2", "seanet.dimension=8", "rvq.n_q=4", "rvq.bins=64"]
    with pytest.raises(InvalidInputError, match=message):
        make_solver(load_recipe("encodec_small", changes))
