"""Packages of three source folders and the native module; everything else is in pyproject.toml.

`kernels/triton_ops` and `training` are installed as `audiogen_fast.kernels` and
`audiogen_fast.training`. The native module is built from `csrc/` with CMake, Ninja and pybind11,
never with torch. `AUDIOGEN_FAST_NATIVE` decides what happens: by default a build that fails leaves
the module out with a warning, `require` makes that an error, `0` skips the build. `CMAKE_ARGS` are
more arguments for CMake.
"""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "require", "0")


def native_mode() -> str:
    mode = os.environ.get("AUDIOGEN_FAST_NATIVE", "") or "auto"
    if mode not in MODES:
        raise SystemExit(f"AUDIOGEN_FAST_NATIVE must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


def packages() -> list[str]:
    found = find_packages(include=["audiogen_fast", "audiogen_fast.*"])
    for name, folder in PACKAGE_DIR.items():
        found += [name, *(f"{name}.{sub}" for sub in find_packages(folder))]
    return found


PACKAGE_DIR = {
    "audiogen_fast.kernels": "kernels/triton_ops",
    "audiogen_fast.training": "training",
}


def program(name: str, folder_attribute: str) -> str:
    """Path of a build program: from its Python package, where pip put it, else from PATH."""
    try:
        folder = getattr(importlib.import_module(name), folder_attribute)
    except (ImportError, AttributeError):
        folder = ""
    path = shutil.which(name, path=str(folder)) or shutil.which(name)
    if path is None:
        raise CompileError(f"{name} is not installed")
    return path


def step(name: str, *command: str) -> None:
    """Runs one step of the build; its output is the best explanation of a failure."""
    status = subprocess.run(command).returncode
    if status != 0:
        raise CompileError(f"{name} ended with exit status {status}")


def compile_native(build: Path) -> Path:
    """Builds the native module in an empty folder and returns its path."""
    try:
        import pybind11
    except ImportError as error:
        raise CompileError("pybind11 is not installed") from error
    cmake, ninja = program("cmake", "CMAKE_BIN_DIR"), program("ninja", "BIN_DIR")
    step(
        "cmake",
        *(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    )
    step("the compiler", cmake, "--build", str(build))
    built = [path for path in build.glob("_native*") if path.suffix in (".so", ".pyd")]
    if len(built) != 1:
        raise CompileError(f"the build left {len(built)} modules instead of one")
    return built[0]


class CMakeBuild(build_ext):
    """Builds the extension with CMake; setuptools makes a warning of an optional one's failure."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            # A fresh folder each time: a cached one remembers programs of a build environment
            # that pip has since deleted.
            with tempfile.TemporaryDirectory() as build:
                built = compile_native(Path(build))
                target.parent.mkdir(parents=True, exist_ok=True)
                # Beside and renamed: a process that has the old one loaded keeps it.
                staged = target.with_suffix(".new")
                shutil.copyfile(built, staged)
                os.replace(staged, target)
        except (CompileError, OSError) as error:
            outcome = (
                "audiogen_fast is installed without it, slower on a CPU and otherwise complete "
                "(AUDIOGEN_FAST_NATIVE=require makes this an error)"
                if ext.optional
                else "AUDIOGEN_FAST_NATIVE=require asks for it"
            )
            raise CompileError(f"{error}; {outcome}") from error


def extensions(mode: str) -> list[Extension]:
    if mode == "0":
        return []
    # The sources are CMake's business.
    return [Extension("audiogen_fast._native", sources=[], optional=mode != "require")]


setup(
    packages=packages(),
    package_dir=PACKAGE_DIR,
    ext_modules=extensions(native_mode()),
    cmdclass={"build_ext": CMakeBuild},
)
