"""Trained models leave the run: folders that load, in two formats, and adapters alone."""

import shutil

import pytest
import torch

from audiogen_fast import AudioGen
from audiogen_fast.cli import main
from audiogen_fast.errors import CheckpointError, InvalidInputError
from audiogen_fast.models.pickled import load_pickled
from audiogen_fast.training import lora
from audiogen_fast.training.export import export_adapter, export_lm, load_run, plain


@pytest.fixture
def finished(make_solver, small_config):
    solver = make_solver(small_config("run"))
    solver.run()
    return solver


@pytest.mark.parametrize("format", ["audiogen_fast", "audiocraft"])
def test_export(finished, tmp_path, format):
    command = ["export", finished.folder, tmp_path / "out", "--format", format]
    assert main([str(part) for part in command]) == 0
    model = AudioGen.get_pretrained(tmp_path / "out", device="cpu")
    average = finished.averages["model"].state
    for name, tensor in model.lm.state_dict().items():
        assert torch.equal(tensor, average[name]), name
    codes = torch.arange(4 * 20).view(1, 4, 20) % 64
    assert torch.equal(model.compression_model.decode(codes), finished.codec.decode(codes))
    model.set_generation_params(duration=0.2, use_sampling=False, extend_stride=0.1)
    assert model.generate(["a bell"]).shape == (1, 1, 3200)


def test_sampling_goes_with_the_model(make_solver, small_config, tmp_path):
    """From the recipe, or from the model that was trained on."""
    make_solver(small_config("first", "sampling.top_k=7")).run()
    export_lm(tmp_path / "first", tmp_path / "a")
    assert AudioGen.get_pretrained(tmp_path / "a", "cpu").generation_params["top_k"] == 7
    more = [f"continue_from={tmp_path / 'a'}", "sampling.temperature=0.5"]
    make_solver(small_config("second", *more)).run()
    export_lm(tmp_path / "second", tmp_path / "b")
    sampling = {"top_k": 7, "temperature": 0.5}
    assert AudioGen.get_pretrained(tmp_path / "b", "cpu").default_sampling == sampling


def test_the_originals_files(finished, tmp_path):
    export_lm(finished.folder, tmp_path, "audiocraft", weights="last")
    package = load_pickled(tmp_path / "state_dict.bin")
    assert set(package) == {"best_state", "xp.cfg", "version", "exported"}
    expected = finished.lm.state_dict()
    assert package["best_state"].keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in package["best_state"].items())


def test_steps(finished):
    assert load_run(finished.folder)[2] == 10
    assert load_run(finished.folder, 5)[2] == 5
    assert load_run(finished.folder, "best")[2] in (5, 10)
    with pytest.raises(CheckpointError, match=r"\[5, 10\], asked for 7"):
        load_run(finished.folder, 7)
    path = finished.checkpoints.path(10) / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    # The rule of codecs too (`tests/training/codec/test_export.py`).
    with pytest.warns(UserWarning, match="step-00000010 is damaged .*SHA-256.*; step-00000005 is"):
        assert load_run(finished.folder)[2] == 5
    with pytest.raises(CheckpointError, match="step-00000010 is damaged"):
        load_run(finished.folder, 10)
    assert finished.checkpoints.steps() == [5, 10]  # reading moves nothing
    (finished.checkpoints.path(5) / "manifest.json").unlink()
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="every one"):
        load_run(finished.folder)
    with pytest.raises(InvalidInputError, match="folder of a training run"):
        load_run(finished.folder / "checkpoints")


LORA = ["lora.rank=2", "lora.alpha=8", "optim.max_norm=1", "optim.lr=0.005", "optim.ema.use=true"]


def test_new_adapters_change_nothing_and_alone_are_trained(golden_solver):
    solver = golden_solver("plain", *LORA)
    before = {name: t.clone() for name, t in solver.lm.state_dict().items()}
    assert solver._measure(solver.loader)["ce"] == pytest.approx(
        solver.tensors["train.loss"].item(), rel=1e-5
    )
    trained = {name for name, p in solver.lm.named_parameters() if p.requires_grad}
    # self- and cross-attention in and out, two of the feed-forward part, in 3 layers, A and B each
    assert len(trained) == 6 * 3 * 2 and all(".0." in name for name in trained)
    solver.run()
    for name, tensor in solver.lm.state_dict().items():
        changed = not torch.equal(tensor, before[name])
        assert changed == (name in trained), name


def test_adapters_alone_and_merged_are_the_same(golden_solver, tmp_path):
    solver = golden_solver("plain", *LORA)
    solver.run()
    saved = solver.checkpoints.path(2) / "__0_0.distcp"
    assert saved.stat().st_size < 600_000  # adapters and their moments, not the model
    trained = solver._measure(solver.loader)["ce"]
    assert trained < solver.tensors["train.loss"].item() - 0.01
    export_adapter(solver.folder, tmp_path / "adapter", weights="last")
    base = AudioGen.get_pretrained(solver.config.continue_from, device="cpu").lm
    about = lora.apply_adapter(base, tmp_path / "adapter")
    assert (about["rank"], about["alpha"]) == (2, 8.0)
    config, lm, _, _ = load_run(solver.folder, weights="last")
    merged = plain(lm, config)
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, base.state_dict()[name], rtol=1e-6, atol=1e-6)
    solver.module.lm = merged.train()
    assert solver._measure(solver.loader)["ce"] == pytest.approx(trained, rel=1e-5)
    export_lm(solver.folder, tmp_path / "merged", weights="last")
    loaded = AudioGen.get_pretrained(tmp_path / "merged", device="cpu").lm
    for name, tensor in merged.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_adapters_of_another_model_are_refused(golden_solver, finished, tmp_path):
    solver = golden_solver("plain", *LORA)
    solver.run()
    export_adapter(solver.folder, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        lora.apply_adapter(finished.lm, tmp_path / "adapter")
    shutil.rmtree(tmp_path / "adapter")
    with pytest.raises(CheckpointError):
        lora.apply_adapter(finished.lm, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("change", "message"),
    [("lora.rank=4096", "lora.rank must be at most 128"), ("lora.targets=['out']", "in no layer")],
)
def test_adapters_that_cannot_be(golden_solver, change, message):
    with pytest.raises(InvalidInputError, match=message):
        golden_solver("plain", *LORA, change)
