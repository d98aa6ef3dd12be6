"""Compiles recorded launches for a generation of GPU, on any machine.

The kernel is launched through Triton's own path with a driver that only knows which GPU to pretend:
so what is compiled is exactly what that launch would compile, specialisation of integers and
alignment included.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from audiogen_fast.kernels import _launch
from audiogen_fast.launches.record import Launch, find_kernel, launch_value

CAPABILITIES = (80, 90, 100, 120)
"""A100, H100 and H200, B200, RTX 50: 10 * major + minor."""

# Bytes of shared memory that one program may use (CUDA C++ Programming Guide, compute
# capabilities). 86 and 89 (RTX 30 and 40, L4, L40S) run code for 80 and have as much as 120.
SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}

MULTIPROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
"""Of the A100, RTX 3090, RTX 4090, H100, B200 and RTX 5090: launchers choose by them."""


@contextlib.contextmanager
def processors_of(capability: int) -> Iterator[None]:
    """Let launchers choose as they would on a GPU of that capability, wherever they run."""
    with (
        mock.patch.object(_launch, "multiprocessors", lambda device: MULTIPROCESSORS[capability]),
        mock.patch.object(_launch, "shared_memory", lambda device: SHARED_MEMORY[capability]),
    ):
        yield


def compile_launch(launch: Launch, capability: int) -> Any:
    """Compile a launch; Triton's cache on disk is used and filled.

    Args:
        launch: a record; its kernel must not be an interpreted one in this process.
        capability: 10 * major + minor of the GPU.
    Returns:
        Triton's `CompiledKernel`, with `asm["ptx"]`, `asm["cubin"]`, `metadata` and `hash`.
    Raises:
        triton.CompilationError, RuntimeError: it does not compile.
    """
    kernel = find_kernel(launch.kernel)
    arguments = {name: launch_value(value) for name, value in launch.arguments.items()}
    with _pretending(capability):
        return kernel.run(grid=launch.grid, warmup=True, **arguments, **launch.options)


@contextlib.contextmanager
def _pretending(capability: int) -> Iterator[None]:
    before = driver._active  # `driver.active` would look for a real GPU
    driver.set_active(_Driver(capability))
    try:
        yield
    finally:
        driver._active = before


class _Driver:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, capability: int):
        self._capability = capability
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability  # one device for each, so that Triton keeps their kernels apart

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY[device]}
