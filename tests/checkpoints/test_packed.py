"""Folders of packed weights: the same codes as packing again, and nothing else gets through."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from audiogen_fast import AudioGen, CheckpointError, InvalidInputError
from audiogen_fast._backend import load_native
from audiogen_fast.cli import main
from audiogen_fast.generation.native import NativeEngine
from audiogen_fast.models.aligned_file import write_aligned
from audiogen_fast.models.packed import FORMATS

pytestmark = pytest.mark.skipif(load_native()[0] is None, reason="no native module")
SOURCE = Path(__file__).parent.parent / "data" / "golden" / "biased" / "checkpoint"
TEXTS = ["dog barking", "siren of an emergency vehicle"]


def codes_of(model: AudioGen) -> torch.Tensor:
    model.set_generation_params(duration=0.4)
    return model.generate(TEXTS, return_tokens=True, seed=3)[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name in FORMATS:
        made[name] = tmp_path_factory.mktemp("packed") / name
        command = ["convert", str(SOURCE), str(made[name]), "--quantize", name, "--json"]
        assert main(command) == 0
    return made


@pytest.fixture
def copy(folders, tmp_path) -> Path:
    """An int4 folder to damage."""
    return Path(shutil.copytree(folders["int4"], tmp_path / "copy"))


@pytest.mark.parametrize("name", FORMATS)
def test_the_codes_are_those_of_packing_again(folders, name, tmp_path):
    expected = AudioGen.get_pretrained(SOURCE, device="cpu", engine="eager")
    expected.engine = NativeEngine(expected.lm, name)
    model = AudioGen.get_pretrained(folders[name], device="cpu")
    assert (model.engine.name, model.engine.weights) == ("native", name)
    assert torch.equal(codes_of(model), codes_of(expected))
    again = model.save_pretrained(tmp_path / "again")
    for file in ("model.safetensors", "config.json"):
        assert (again / file).read_bytes() == (folders[name] / file).read_bytes()


def test_packed_data_is_aligned_in_the_file_and_smaller(folders):
    with open(folders["int4"] / "model.safetensors", "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    starts = {
        name: 8 + length + entry["data_offsets"][0]
        for name, entry in header.items()
        if name.endswith(".data")
    }
    assert len(starts) > 10 and all(start % 64 == 0 for start in starts.values())
    sizes = {name: sum(t.nbytes for t in load(folders, name).values()) for name in FORMATS}
    assert sizes["int4"] < sizes["int8"] < sizes["bfloat16"] < sizes["float32"]


def load(folders, name: str) -> dict[str, torch.Tensor]:
    tensors = load_file(folders[name] / "model.safetensors")
    return {key: t for key, t in tensors.items() if key.startswith("packed.")}


def test_groups_of_64(tmp_path):
    folder = tmp_path / "groups"
    command = ["convert", str(SOURCE), str(folder), "--quantize", "int4", "--group-size", "64"]
    assert main(command) == 0
    model = AudioGen.get_pretrained(folder, device="cpu")
    assert model.engine.group_size == 64
    expected = AudioGen.get_pretrained(SOURCE, device="cpu", engine="eager")
    expected.engine = NativeEngine(expected.lm, "int4", group_size=64)
    assert torch.equal(codes_of(model), codes_of(expected))


def test_save_pretrained_packed(tmp_path):
    model = AudioGen.get_pretrained(SOURCE, device="cpu", quantize="int8")
    folder = model.save_pretrained(tmp_path / "int8", packed=True)
    assert torch.equal(codes_of(AudioGen.get_pretrained(folder, device="cpu")), codes_of(model))
    eager = AudioGen.get_pretrained(SOURCE, device="cpu", engine="eager")
    with pytest.raises(InvalidInputError, match="packed needs.*native.*eager"):
        eager.save_pretrained(tmp_path / "other", packed=True)


def test_only_the_native_engine_and_the_packed_format_serve(folders):
    with pytest.raises(InvalidInputError, match="engine must be 'native'"):
        AudioGen.get_pretrained(folders["int4"], device="cpu", engine="eager")
    with pytest.raises(InvalidInputError, match="as this model was packed, got 'int8'"):
        AudioGen.get_pretrained(folders["int4"], device="cpu", quantize="int8")
    with pytest.raises(InvalidInputError, match="dtype must not be given together with quantize"):
        main_error(["convert", str(SOURCE), "x", "--quantize", "int4", "--dtype", "float16"])


def main_error(command: list[str]) -> None:
    from audiogen_fast.cli.convert import convert
    from audiogen_fast.cli.parser import build_parser

    convert(build_parser().parse_args(command))


def change(folder: Path, **changes) -> None:
    """Rewrite the tensors of a folder; None removes one."""
    tensors = load_file(folder / "model.safetensors") | changes
    # Cloned, as they are mapped from the file that is written.
    kept = {name: t.clone() for name, t in tensors.items() if t is not None}
    write_aligned(folder / "model.safetensors", kept)


DATA, SCALES = "packed.0.ff1.data", "packed.0.ff1.scales"
DAMAGE = {
    "a matrix is missing": ({DATA: None}, "data of ff1 must have"),
    "scales are missing": ({SCALES: None}, "scales of ff1 must have"),
    "data is short": (
        {DATA: torch.zeros(64, dtype=torch.uint8)},
        "data of ff1 must have .* got 64",
    ),
    "another dtype": ({DATA: torch.zeros(8)}, "must be contiguous bytes"),
    "scales are not finite": ({SCALES: "nan"}, "scales must be finite"),
    "a norm is missing": ({"out_norm.weight": None}, "missing: out_norm.weight"),
    "an embedding has another shape": ({"emb.0.weight": torch.zeros(3, 3)}, "wrong shape: emb.0"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_tensors(copy, name):
    changes, message = DAMAGE[name]
    changes = dict(changes)
    if changes.get(SCALES) == "nan":
        scales = load_file(copy / "model.safetensors")[SCALES].clone()
        scales[:4] = 255  # NaN as bfloat16
        changes[SCALES] = scales
    change(copy, **changes)
    with pytest.raises(CheckpointError, match=message):
        AudioGen.get_pretrained(copy, device="cpu")


def test_a_file_of_another_writer_is_not_aligned(copy):
    file = copy / "model.safetensors"
    tensors = {name: t.clone() for name, t in load_file(file).items()}
    for pad in range(64):
        save_file(tensors, file, {"pad": " " * pad})
        with safe_open(file, "pt") as opened:
            addresses = [opened.get_tensor(n).data_ptr() for n in tensors if n.endswith(".data")]
        if any(address % 64 for address in addresses):
            break
    with pytest.raises(CheckpointError, match="must be aligned to 64 bytes"):
        AudioGen.get_pretrained(copy, device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packed": {"format": "int3", "group_size": 128}}, "must have a format of.*int3"),
        ({"packed": {"format": "int4", "group_size": 7}}, "group_size of.*7"),
        ({"packed": [1]}, "must have a format"),
        ({"packed": {"format": "int8", "group_size": 128}}, "must have"),
        ({"version": 1}, "version 1 of the format"),
    ],
)
def test_wrong_configuration(copy, changes, message):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        AudioGen.get_pretrained(copy, device="cpu")


def test_truncated_files(copy):
    file = copy / "model.safetensors"
    content = file.read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            AudioGen.get_pretrained(copy, device="cpu")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_bytes_of_any_value_are_refused_or_harmless(copy, folders, data):
    """A fuzz target: the run of this test under the sanitizers is `make sanitize`."""
    content = bytearray((folders["int4"] / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        end = data.draw(st.sampled_from([8, header, len(content)]))
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    (copy / "model.safetensors").write_bytes(content)
    try:
        model = AudioGen.get_pretrained(copy, device="cpu")
    except CheckpointError:
        return
    model.set_generation_params(duration=0.1)
    tokens = model.generate(TEXTS[:1], return_tokens=True, seed=1)[1]
    assert ((tokens >= 0) & (tokens < model.lm.card)).all()
