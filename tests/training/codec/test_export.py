"""Trained codecs as files for use, and as the start of another training."""

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast import AudioGen
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


def sound(solver, samples=3210):
    return 0.3 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("format", ["audiogen_fast", "audiocraft"])
def test_the_exported_codec_is_the_average(solver, tmp_path, format):
    output = tmp_path / "exported"
    path = export_codec(solver.folder, output, format)
    assert path.parent == output
    loaded = CompressionModel.get_pretrained(output if format == "audiogen_fast" else path)
    x = sound(solver)
    with torch.no_grad():
        codes, scale = loaded.encode(x)
        expected, _ = solver.model.encode(x)
        assert scale is None and torch.equal(codes, expected) and codes.unique().numel() > 4
        assert_close(loaded.decode(codes), solver.model.decode(codes), rtol=1e-5, atol=1e-6)
    assert (loaded.sample_rate, loaded.frame_rate, loaded.num_codebooks) == (16000, 50, 4)


def test_the_layout_of_the_original(solver, tmp_path, codec_checkpoint):
    """The names of the released file, its configuration as text, and nothing that runs code."""
    path = export_codec(solver.folder, tmp_path / "out", "audiocraft")
    package = torch.load(path, weights_only=True)
    assert package["exported"] is True and isinstance(package["xp.cfg"], str)
    original = load_compression_model_ckpt(codec_checkpoint / "compression_state_dict.bin")
    differing = package["best_state"].keys() ^ original["best_state"].keys()
    # The recorded one has a layer of LSTM more.
    assert all("_l1" in name for name in differing), differing


def test_last_weights_and_older_steps(solver, tmp_path):
    _, average, step = read_run(solver.folder)
    assert step == 10
    _, last, _ = read_run(solver.folder, average=False)
    _, older, step = read_run(solver.folder, step=8)
    assert step == 8
    name = "encoder.model.0.conv.conv.bias"
    assert torch.equal(average[name], dict(solver.model.named_parameters())[name])
    assert torch.equal(last[name], solver.averages["model"].state[name])
    assert not torch.equal(older[name], average[name])
    with pytest.raises(CheckpointError, match="asked for 3"):
        read_run(solver.folder, step=3)


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
        path = export_codec(solver.folder, tmp_path / "out", source)
        place = path if source == "audiocraft" else path.parent
    config = small_recipe("second", continue_from=place, rvq__n_q=4, rvq__bins=64)
    second = make_solver(config)
    second.model.eval()
    x = sound(second)
    with torch.no_grad():
        assert torch.equal(second.model.encode(x)[0], solver.model.encode(x)[0])
        assert_close(second.model(x).x, solver.model(x).x, rtol=1e-4, atol=1e-5)
    assert all(layer._codebook.inited for layer in second.model.quantizer.vq.layers)
    assert second.update(next(second.loader.forever())).made


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
