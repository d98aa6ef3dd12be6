"""`audiogen-fast convert`."""

import torch
from safetensors.torch import load_file

from audiogen_fast.cli import main


def test_convert_keeps_the_dtype_and_gives_the_same_sound(run_json, checkpoint, tmp_path, capsys):
    own, half = tmp_path / "own", tmp_path / "half"
    status, report = run_json("convert", checkpoint, own)
    assert status == 0 and report["dtype"] == "float32"
    names = {path.relative_to(own).as_posix() for path in own.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "compression_model.safetensors"} < names
    assert "t5-small/tokenizer.json" in names
    listed = {file["path"]: file["bytes"] for file in report["files"]}
    assert listed == {str(own / name): (own / name).stat().st_size for name in names}

    made = []
    for source in (checkpoint, own):
        folder = tmp_path / f"from-{source.name}"
        command = ["generate", "rain", "--model", source, "--device", "cpu", "--duration", "1"]
        command += ["--output", folder]
        assert main(list(map(str, command))) == 0
        made.append((folder / "00-rain.wav").read_bytes())
    assert made[0] == made[1]

    assert main(["convert", str(own), str(half), "--dtype", "float16"]) == 0
    assert "language model in float16" in capsys.readouterr().out
    status, report = run_json("convert", half, tmp_path / "again")
    assert status == 0 and report["dtype"] == "float16"
    first, again = (load_file(folder / "model.safetensors") for folder in (own, tmp_path / "again"))
    for name, tensor in first.items():
        assert torch.equal(again[name], tensor.half()), name


def test_convert_refuses_a_folder_in_use(checkpoint, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["convert", str(checkpoint), str(tmp_path)]) == 2
    assert "a new or an empty folder (or pass --overwrite)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert main(["convert", str(checkpoint), str(tmp_path), "--overwrite"]) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "config.json").is_file()
    assert main(["convert", "debug", str(tmp_path / "new")]) == 2
