"""`python -m benchmarks.cpu` at the tiny size, and how it plans and sums up."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def cpu(project_root):
    """The module; the root of the checkout must not stay on the path, where `kernels` lies."""
    sys.path.insert(0, str(project_root))
    try:
        return importlib.import_module("benchmarks.cpu")
    finally:
        sys.path.remove(str(project_root))


def test_everything_runs(project_root, tmp_path):
    """Two formats, transformers and a whole clip; audiocraft needs an environment of its own."""
    out = tmp_path / "cpu.json"
    command = [sys.executable, "-m", "benchmarks.cpu", "--size", "tiny", "--batch", "1,3"]
    command += ["--formats", "float32,int4", "--peers", "transformers", "--seconds", "0.8"]
    command += ["--turns", "2", "--steps", "2", "--clip", "int4", "--threads", "1"]
    command += ["--folder", str(tmp_path / "checkpoints"), "--out", str(out)]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["checks"]["transformers"] < 1e-4, "they compute something else"
    assert record["machine"]["read_gb_s"] > 0.1
    rows = {(r["batch"], r["implementation"]): r for r in record["results"]}
    names = ("float32", "int4", "transformers")
    assert rows.keys() == {(batch, name) for batch in (1, 3) for name in names}
    # Of a layer: self-attention 4 x 64 x 64, feed-forward 8, and 2 of the cross-attention's 4.
    parameters = 2 * (14 * 64 * 64 + 6 * 64) + 2 * 64 + 4 * 512 * 64
    assert rows[1, "transformers"]["weight_bytes"] == 4 * parameters
    assert 0.95 < rows[1, "float32"]["weight_bytes"] / (4 * parameters) < 1.05
    # Half of 64 columns of int4 fill a group of 128 up.
    assert 0.1 < rows[1, "int4"]["weight_bytes"] / (4 * parameters) < 0.3
    for (batch, name), r in rows.items():
        assert 0 < r["p10_ms"] <= r["median_ms"] <= r["p90_ms"]
        assert r["lm_rtf"] == pytest.approx(r["ms_per_step"] / 1e3 * 43 / 0.8, rel=0.01, abs=1e-4)
        # Three times the rows, keys and values; int4 keeps them in half the bytes.
        kv = 2 * batch * 21.5 * 2 * 64 * 2 * (2 if name == "int4" else 4)
        assert r["cache_bytes"] == kv
        if name != "transformers":
            ratio = rows[batch, "transformers"]["ms_per_step"] / r["ms_per_step"]
            assert r["faster_than"]["transformers"] == pytest.approx(ratio, abs=2e-3)
    (clip,) = record["clips"]
    assert clip["format"] == "int4" and clip["rtf"] == pytest.approx(
        clip["total_s"] / 0.8, abs=1e-3
    )
    parts = [clip["text_s"], clip["lm_s"], clip["codec_s"]]
    assert min(parts) > 0 and sum(parts) == pytest.approx(clip["total_s"], abs=0.01)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for text in ("x transformers", "float32", "int4", "whole clip of 0.8 s"):
        assert text in done.stdout


@pytest.fixture
def plan(cpu, tmp_path):
    """The medium model in a file of the right size, without its contents."""
    with open(tmp_path / "model.safetensors", "wb") as file:
        os.truncate(file.fileno(), 7_400_000_000)
    return cpu.Plan(
        folder=tmp_path,
        size="medium",
        formats=list(cpu.FORMATS),
        peers=list(cpu.PEERS),
        batches=[1, 4],
        seconds=10.0,
        turns=10,
        steps=4,
        threads=2,
        peer_python=Path("python"),
    )


def test_formats_are_split_into_groups_that_fit(cpu, plan):
    assert cpu.groups(plan, 64_000_000_000) == [list(cpu.FORMATS)]
    small = cpu.groups(plan, 22_500_000_000)
    assert len(small) > 1 and sorted(sum(small, [])) == sorted(cpu.FORMATS)
    shared = 7_400_000_000 + (1 << 30) + plan.memory("transformers")
    for group in small:
        assert shared + sum(plan.memory(name) for name in group) < 22_500_000_000
    with pytest.raises(SystemExit, match="float32 needs .* GB of memory"):
        cpu.groups(plan, 12_000_000_000)


def test_a_step_is_averaged_over_the_parts_of_the_clip(cpu, plan):
    """Not over the samples: a part with many of them would weigh more."""
    found = {
        "turns": [[0.1, 0.1, 0.1, 0.1, 0.4], [0.3]],
        "weight_bytes": None,
        "first_call_ms": 1.0,
        "faults": 0,
        "memory": {"private_bytes": 2_000_000_000},
    }
    row = cpu.row(plan, 1, "audiocraft", found, {"step": 1000, "text": 500})
    assert row["ms_per_step"] == pytest.approx(200.0) and row["median_ms"] == pytest.approx(100.0)
    assert row["weight_bytes"] == 6000, "audiocraft makes the text's keys and values in each step"
    assert row["lm_rtf"] == pytest.approx(0.2 * 503 / 10, abs=1e-3) and row["private_gb"] == 2.0


def test_a_peer_beside_two_groups_has_one_row(cpu):
    one = {"batch": 1, "implementation": "transformers", "ms_per_step": 2.0, "n": 3}
    rows = [one | {"page_faults": 1}, one | {"ms_per_step": 4.0, "page_faults": 2}]
    (merged,) = cpu.merge_peers(rows)
    assert merged["ms_per_step"] == 3.0 and merged["n"] == 6 and merged["page_faults"] == 3
