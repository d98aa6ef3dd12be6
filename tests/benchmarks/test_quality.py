"""`python -m benchmarks.quality` on a tiny random model, and its figures by hand."""

import importlib
import json
import subprocess
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def quality(project_root):
    """The module; the root of the checkout must not stay on the path, where `kernels` lies."""
    sys.path.insert(0, str(project_root))
    try:
        return importlib.import_module("benchmarks.quality")
    finally:
        sys.path.remove(str(project_root))


def test_formats_are_led_through_the_same_codes(project_root, tmp_path):
    out = tmp_path / "quality.json"
    command = [sys.executable, "-m", "benchmarks.quality", "--size", "tiny", "--seconds", "0.5"]
    command += ["--clips", "3", "--threads", "1", "--folder", str(tmp_path), "--out", str(out)]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["distributions"] == 3 * 4 * 25, "every code of every clip is predicted once"
    rows = {(r["weights"], r["kv"], r["guidance"]): r for r in record["results"]}
    assert len(rows) == len(record["results"]) == 4 * 2 * 2
    for guidance in (3.0, 1.0):
        exact = rows["float32", "float32", guidance]
        # A step that saw other codes than the reference would be far away.
        assert exact["kl_mean"] < 1e-9 and exact["logit_rms"] < 1e-5 and exact["top1"] > 0.99
        kl = {name: rows[name, "bfloat16", guidance]["kl_mean"] for name, _, _ in rows}
        assert 1e-9 < kl["float32"] < kl["bfloat16"] < kl["int8"] < kl["int4"] < 1.0
        assert rows["int8", "bfloat16", guidance]["top1"] > 0.9
    assert "weights are random" in done.stdout and "<= 0.005" in done.stdout
    assert "kept" not in done.stdout and "MISSED" not in done.stdout


def test_figures_by_hand(quality):
    """One distribution (1/4, 3/4) against (1/2, 1/2), once with a constant added to its logits."""
    reference = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    other = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log() + torch.tensor([[0.0], [7.0]])
    found = quality.compare(reference, other)
    kl = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    assert found["kl_mean"] == pytest.approx(kl.item() / 2, rel=1e-5)
    error = torch.tensor(3.0).log().item() / 2  # of either logit, about their mean
    assert found["logit_max"] == pytest.approx(error, rel=1e-5)
    assert found["top1"] == 0.5
    # Root mean square over both rows, over that of the reference's standard deviations.
    assert found["logit_rms"] == pytest.approx(0.5**0.5, rel=1e-5)


@pytest.mark.parametrize("kl, verdict", [(0.004, "kept"), (0.006, "MISSED")])
def test_limits_are_judged_for_trained_weights(quality, kl, verdict):
    row = {"weights": "int8", "kv": "bfloat16", "guidance": 3.0, "kl_mean": kl, "kl_p99": kl}
    row |= {"top1": 1.0, "logit_rms": 0.0, "logit_max": 0.0}
    assert f"<= 0.005 {verdict}" in quality.table([row], trained=True)
    assert verdict not in quality.table([row], trained=False)
    assert verdict not in quality.table([row | {"guidance": 1.0}], trained=True)
