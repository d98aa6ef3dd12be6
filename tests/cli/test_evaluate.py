"""The command `evaluate`: what it writes, prints and refuses."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import soundfile

from audiogen_fast.cli import main

needs_aisfx = pytest.mark.skipif(
    find_spec("aisfx") is None, reason="needs pip install --no-deps aisfx"
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "evaluation-cache"
    monkeypatch.setenv("AUDIOGEN_FAST_CACHE_DIR", str(folder))


@pytest.fixture
def manifest(project_root):
    return project_root / "training" / "corpus" / "subset" / "manifest.csv"


@needs_aisfx
def test_a_table_a_page_and_the_faults(manifest, tmp_path, capsys):
    sounds = tmp_path / "hiss"
    sounds.mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        soundfile.write(sounds / f"{i}.wav", 0.1 * rng.standard_normal(8000), 16000)
    soundfile.write(sounds / "silent.wav", np.zeros(8000), 16000)
    output = tmp_path / "report"
    command = ["evaluate", "--reference", str(manifest), "--where", "split=test"]
    command += ["--limit", "10", "--metrics", "fad", "kad", "--no-degraded"]
    command += ["--generated", f"hiss={sounds}", "--output", str(output)]
    assert main(command) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "FAD (aisfx, less is better)"
    figures = {}
    for line in lines[1:5]:
        name, _, rest = line.strip().partition("  ")
        figures[name] = float(rest.split()[0])
    assert list(figures) == ["real clips", "shuffled captions", "noise", "hiss"]
    assert figures["real clips"] == figures["shuffled captions"] < figures["noise"]
    assert "left out: hiss, silent.wav: silent" in err
    assert f"open {output / 'index.html'}" in lines[-1]
    files = sorted(path.name for path in output.iterdir())
    assert files == ["index.html", "items.csv", "report.json", "table.csv"]
    content = json.loads((output / "report.json").read_text())
    assert content["settings"]["generated"] == {"hiss": str(sounds)}

    assert main(command) == 2
    assert "is there already; pass --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--json"]) == 0
    out, _ = capsys.readouterr()
    printed = json.loads(out)
    assert printed["command"] == "evaluate"
    assert printed["rows"] == content["rows"]  # the same seed, the same figures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "split"], "--where must be COLUMN=VALUE, got 'split'"),
        (["--head-where", "=x"], "--head-where must be COLUMN=VALUE"),
        (["--where", "split=none"], "at least one recording"),
        (["--encoder", "ears"], "encoder must be one of"),
        (["--generated", "a=/no/such/folder"], "no such folder: /no/such/folder"),
        (["--generated", "a=/x", "--generated", "a=/y"], "'a' comes twice"),
        (["--generated", "noise=/tmp"], "names that no other row has, got 'noise'"),
    ],
)
def test_wrong_input_ends_with_2_and_one_line(manifest, tmp_path, capsys, arguments, message):
    output = tmp_path / "report"
    command = ["evaluate", "--reference", str(manifest), "--quiet", "--output", str(output)]
    if "--where" not in arguments:
        command += ["--where", "split=test", "--limit", "4"]
    assert main([*command, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert not output.exists()


def test_wrong_usage_ends_with_2(capsys):
    for arguments in ([], ["--reference", "x", "--metrics", "beauty"]):
        with pytest.raises(SystemExit) as end:
            main(["evaluate", *arguments])
        assert end.value.code == 2
    assert "beauty" in capsys.readouterr().err


def test_a_manifest_that_is_not_there_ends_with_2(tmp_path, capsys):
    assert main(["evaluate", "--reference", str(tmp_path / "none.csv"), "--quiet"]) == 2
    assert "no such file" in capsys.readouterr().err
