"""The pipeline of the model in the package, with a small corpus and few updates; and curves."""

import json
import shutil

import pytest
import torch

from audiogen_fast import AudioGen
from audiogen_fast.errors import AudioGenFastError, InvalidInputError
from audiogen_fast.training import tiny
from audiogen_fast.training.curves import draw_curves, read_curves

SMALL = [
    "lm.transformer_lm.dim=32",
    "lm.transformer_lm.num_layers=1",
    "lm.transformer_lm.card=32",
    "lm.optim.epochs=1",
    "lm.optim.updates_per_epoch=2",
    "lm.dataset.num_workers=0",
]
for _part in ("codec", "adversarial", "decoder"):
    SMALL += [f"{_part}.seanet.n_filters=2", f"{_part}.seanet.dimension=16"]
    SMALL += [f"{_part}.rvq.bins=32"]
    SMALL += [f"{_part}.optim.epochs=1", f"{_part}.optim.updates_per_epoch=2"]
    SMALL += [f"{_part}.dataset.{name}.num_samples=16" for name in ("train", "valid", "evaluate")]
    SMALL += [f"{_part}.dataset.generate.num_samples=4"]


@pytest.mark.slow
def test_it_goes_from_sounds_to_a_model_and_on_after_an_interruption(
    project_root, bert, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(tiny, "ITEMS", 16)
    monkeypatch.setattr(tiny, "VALID_ITEMS", 8)
    monkeypatch.setattr(tiny, "VOCABULARY", 80)
    monkeypatch.setattr(tiny, "MAX_TOKENS", 40)
    corpus, output = project_root / "training" / "corpus" / "subset", tmp_path / "tiny"
    wrong = [*SMALL, "lm.transformer_lm.num_heads=5"]  # which 32 channels cannot have
    with pytest.raises(AudioGenFastError, match="training.train ended with exit status 2"):
        tiny.Pipeline(corpus, output, str(bert), wrong).run()
    record = json.loads((output / tiny.RECORD).read_text())["steps"]
    assert record["codec"]["done"] and not record["language model"]["done"]
    before = (output / "codec" / "compression_model.safetensors").read_bytes()
    codes = {path.name: path.stat().st_mtime_ns for path in (output / "codes").iterdir()}
    capfd.readouterr()
    folder = tiny.Pipeline(corpus, output, str(bert), SMALL).run()
    assert "corpus.items" not in capfd.readouterr().out
    for made in (output / "codec", folder):
        assert (made / "compression_model.safetensors").read_bytes() == before
    assert codes == {path.name: path.stat().st_mtime_ns for path in (output / "codes").iterdir()}
    record = json.loads((output / tiny.RECORD).read_text())
    assert all(step["done"] and step["seconds"] >= 0 for step in record["steps"].values())
    assert record["machine"]["versions"]["torch"] == torch.__version__
    assert {"ATTRIBUTION.md", "curves.png"} <= {path.name for path in folder.iterdir()}
    attribution = (folder / "ATTRIBUTION.md").read_text("utf-8")
    assert attribution.count("\n| audio/") > 700 and "| GPL" not in attribution
    shutil.rmtree(output / "minilm")
    model = AudioGen.get_pretrained(folder, "cpu")
    model.set_generation_params(duration=1, extend_stride=2)
    assert model.generate(["rain"], seed=1).isfinite().all()
    assert model.max_duration == tiny.SECONDS


def test_changes_name_a_part(tmp_path):
    with pytest.raises(InvalidInputError, match=r"PART.KEY=VALUE, .* got 'optim.epochs=1'"):
        tiny.Pipeline(tmp_path, tmp_path, "minilm", ["optim.epochs=1"])


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert tiny.main([str(tmp_path / "none"), str(tmp_path / "out"), "--encoder", "x"]) == 1
    assert "corpus must be a folder that is there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_curves_are_those_of_the_log(tmp_path):
    lines = [
        {"stage": "train", "step": 1, "loss": 3.0},
        {"stage": "train", "step": 2, "loss": 2.0},
        {"stage": "valid", "step": 2, "loss": 2.5, "other": None},
        {"stage": "generate", "step": 2, "loss": 9.0},
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read_curves(tmp_path, ["loss"])
    assert found == {("loss", "train"): ([1, 2], [3.0, 2.0]), ("loss", "valid"): ([2], [2.5])}
    draw_curves(tmp_path / "curves.png", {tmp_path: ["loss"]})
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InvalidInputError, match=r"\['other'\] are not in"):
        read_curves(tmp_path, ["loss", "other"])
    with pytest.raises(InvalidInputError, match="log.jsonl is not there"):
        read_curves(tmp_path / "none", ["loss"])
