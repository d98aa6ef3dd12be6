"""The README and the manual say what is so."""

import inspect
import re
import shlex
from pathlib import Path

import pytest

import audiogen_fast
from audiogen_fast import AudioGen
from audiogen_fast.cli.parser import build_parser
from audiogen_fast.data import audio

ROOT = Path(__file__).resolve().parents[2]
CARD = ROOT / "audiogen_fast" / "pretrained" / "tiny" / "README.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", CARD]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))


def anchors(path):
    """Anchors of the headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings}


def parameters(function):
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.default, p.kind) for p in found if p.name != "self"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)]*)\)", document.read_text("utf-8")):
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_examples_of_the_readme_run(checkpoint, recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wav, rate = audio.audio_read(recordings[0])
    audio.audio_write("bell", wav, rate)
    text = (ROOT / "README.md").read_text("utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block.replace("facebook/audiogen-medium", str(checkpoint)), names)
    assert names["wav"].shape == (2, 1, 80000)
    assert names["same"].equal(names["one"]) and not names["own"].equal(names["one"])
    assert sum(piece.shape[-1] for piece in names["pieces"]) == 80000
    assert names["longer"].shape == (1, 1, 80000)
    assert audio.audio_info("1.wav").duration == 5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_command_lines_are_understood(document):
    lines = re.findall(r"^ {4}(audiogen-fast .*)$", document.read_text("utf-8"), re.MULTILINE)
    assert len(lines) >= (document == ROOT / "README.md") * 5
    for line in lines:
        build_parser().parse_args(shlex.split(line)[1:])


def test_the_manual_names_every_command():
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    (listed,) = re.findall(r"`audiogen-fast ((?:\w+\s\|\s)+\w+)`", text)
    (commands,) = [a.choices for a in build_parser()._actions if a.dest == "command"]
    assert re.findall(r"\w+", listed) == list(commands)


def test_the_notebook_runs_and_every_sound_in_it_can_be_heard(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    notebook = nbformat.read(ROOT / "docs" / "demo.ipynb", 4)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=place).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    shown = [str(out.get("data", {}).get("text/html", "")) for out in outputs]
    assert sum("<audio" in text for text in shown) == 9
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 9


def test_signatures_of_the_manual_are_those_of_the_code():
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    checked = []
    for name, arguments in re.findall(r"```python\n([\w.]+)\((.*?)\)\n```", text, re.DOTALL):
        name = name.removeprefix("AudioGen.")
        places = (AudioGen, audio, audiogen_fast)
        function = next(getattr(place, name) for place in places if hasattr(place, name))
        names = {}
        exec(f"def documented({arguments}): ...", names)
        assert parameters(names["documented"]) == parameters(function), name
        checked.append(name)
    assert len(checked) == 13
