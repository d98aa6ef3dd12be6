"""The report for the day a GPU is there, on a machine without one."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, tmp_path, script=("benchmarks/gpu_report.py",)):
    """The report's JSON, its text and what it printed."""
    out = tmp_path / "report.json"
    command = [sys.executable, *script, "--out", str(out), *arguments]
    environment = {"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "", "HOME": str(tmp_path)}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text()), out.with_suffix(".md").read_text(), done.stdout


def test_without_a_gpu(tmp_path):
    report, text, printed = run(tmp_path=tmp_path, script=("-m", "benchmarks.gpu_report"))
    assert "there is no CUDA device" in printed and "There is no CUDA device" in text
    environment = report["sections"].pop("environment")["items"]
    assert environment["installation"]["versions"]["python"] == sys.version.split()[0]
    first = environment["predictions"]["rows"][0]
    # 1.598e9 parameters of 2 bytes and 155 MB of keys and values at 3.35 TB/s
    assert first["gpu"] == "H100" and first["ms_per_step"] == pytest.approx(1.0, abs=0.002)
    assert len(report["sections"]) >= 8
    for section in report["sections"].values():
        assert section["items"] == {"section": {"skipped": "needs a CUDA device"}}
    assert [target["met"] for target in report["targets"]] == [None] * 4
    assert text.count("not measured") == 4


def test_trial_on_the_cpu(tmp_path):
    sections = "steps-bfloat16,training"
    arguments = ("--device", "cpu", "--size", "tiny", "--steps", "11", "--seconds", "1500")
    report, text, _ = run(*arguments, "--sections", sections, tmp_path=tmp_path)
    steps = report["sections"]["steps-bfloat16"]["items"]
    assert set(steps) == {"1 descriptions", "8 descriptions", "64 descriptions"}
    for result in [*steps.values(), *report["sections"]["training"]["items"].values()]:
        assert "error" not in result
    assert 0 < steps["1 descriptions"]["ms_per_step"] < steps["1 descriptions"]["clip_ms"]
    assert "its figures mean nothing" in text
    assert [target["met"] for target in report["targets"]] == [None] * 4


@pytest.mark.slow
def test_trial_of_everything_on_the_cpu(tmp_path):
    arguments = ("--device", "cpu", "--size", "tiny", "--steps", "19", "--seconds", "1500")
    tests = tmp_path / "kernels"
    tests.mkdir()
    (tests / "test_fine.py").write_text("def test_fine(): pass\n")
    report, _, _ = run(*arguments, "--kernel-tests", str(tests), tmp_path=tmp_path)
    for section in report["sections"].values():
        for item, result in section["items"].items():
            assert "error" not in result, (section["title"], item)


@pytest.mark.parametrize(
    "arguments", [("--sections", "nothing"), ("--device", "cpu", "--size", "medium")]
)
def test_wrong_arguments(arguments, tmp_path):
    with pytest.raises(AssertionError, match="nothing|tiny"):
        run(*arguments, tmp_path=tmp_path)


@pytest.fixture
def gpu(monkeypatch):
    """Imports a module of `benchmarks.gpu`, which is no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))
    before = set(sys.modules)
    yield lambda name: importlib.import_module(f"benchmarks.gpu.{name}")
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "benchmarks":
            del sys.modules[name]


ITEMS = """
import os, signal, time
def items(options): return {items}
def measure(item, options):
    if item == "raises": raise ValueError("this is why")
    if item == "dies": os.kill(os.getpid(), signal.SIGSEGV)
    if item == "hangs": time.sleep(600)
    return {{"value": len(item), "size": options.size}}
"""


def run_items(gpu, tmp_path, items, seconds=60.0, text=ITEMS):
    section = gpu("section")
    (tmp_path / "made_section.py").write_text(text.format(items=items))
    made = section.Section(
        name="made",
        title="Made",
        module="made_section",
        seconds=600,
        environment={"PYTHONPATH": str(tmp_path)},
    )
    options = section.Options(size="tiny", device="cpu")
    return section.run_section(made, options, seconds, tmp_path / "section.json"), section


def test_one_item_does_not_lose_the_others(gpu, tmp_path):
    results, section = run_items(gpu, tmp_path, ["first", "raises", "dies", "last"])
    assert list(results) == ["first", "raises", "dies", "last"]
    assert results["first"]["value"] == 5 and results["first"]["size"] == "tiny"
    assert results["raises"]["error"] == "ValueError: this is why"
    assert "measure" in results["raises"]["where"]
    assert results["dies"]["error"] == section.UNFINISHED
    assert results["last"]["value"] == 4


def test_a_hang_ends_and_keeps_what_was_done(gpu, tmp_path):
    start = time.monotonic()
    results, section = run_items(gpu, tmp_path, ["first", "hangs", "last"], seconds=5.0)
    assert time.monotonic() - start < 30
    assert results["first"]["value"] == 5
    assert results["hangs"]["error"] == section.UNFINISHED and "last" not in results


def test_a_section_that_cannot_start_says_why(gpu, tmp_path):
    results, _ = run_items(gpu, tmp_path, "[]", text="raise ImportError('no such {items}')")
    assert "no such []" in results["section"]["error"]


def test_kernel_tests_are_counted(gpu, tmp_path):
    (tmp_path / "test_good.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    (tmp_path / "test_bad.py").write_text("def test_a(): assert 1 == 2\ndef test_b(): pass\n")
    (tmp_path / "test_crash.py").write_text("import os\ndef test_a(): os.abort()\n")
    options = gpu("section").Options(device="cpu", kernel_tests=str(tmp_path))
    tests = gpu("kernel_tests")
    (item,) = tests.items(options)
    result = tests.measure(item, options)
    assert (result["passed"], result["failed"]) == (3, 1)
    statuses = {name: one["status"] for name, one in result["files"].items()}
    assert statuses["test_good.py"] == 0 and statuses["test_bad.py"] == 1
    assert statuses["test_crash.py"] not in (0, 1) and "1 failed" in result["error"]


def test_tests_that_need_a_gpu_are_found(gpu):
    """Those of the kernels, of what training calls, and of the engine; and nothing twice."""
    items = gpu("kernel_tests").items(gpu("section").Options(device="cuda"))
    names = [
        str(Path(name).resolve().relative_to(ROOT)) for item in items for name in item.split(",")
    ]
    assert len(names) == len(set(names))
    expected = {
        "tests/kernels/launch/test_norm_linear.py",
        "tests/ops/test_autograd.py",
        "tests/ops/test_rvq_decode.py",
        "tests/generation/cuda_graph/test_cuda.py",
    }
    assert expected <= set(names)


def test_targets(gpu):
    document = gpu("document")
    content = {"device": "cuda", "size": "medium", "time": "now", "sections": {}}

    def put(section, item, **result):
        entry = content["sections"].setdefault(section, {"title": section, "items": {}})
        entry["items"][item] = result

    put("environment", "device", name="NVIDIA H100 80GB HBM3")
    put("steps-bfloat16", "1 descriptions", ms_per_step=1.28)
    put("steps-bfloat16", "64 descriptions", times_real_time=199.0)
    put("peers", "audiocraft", ms_per_step=12.9)
    put("graph-only", "1 descriptions", ms_per_step=2.0)
    content["targets"] = document.targets(content)
    assert [target["met"] for target in content["targets"]] == [True, True, False, False]
    text = document.document(content)
    assert "| >= 1.7 | 1.562 | not met |" in text and "On one NVIDIA H100 80GB HBM3." in text
    del content["sections"]["peers"]
    assert document.targets(content)[1]["met"] is None
