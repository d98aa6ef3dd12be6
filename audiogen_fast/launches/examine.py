"""Compiles many launches at once and reads them: the work of the compile tests and the report."""

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from audiogen_fast.launches.case import Case
from audiogen_fast.launches.compile import SHARED_MEMORY, compile_launch, processors_of
from audiogen_fast.launches.machine_code import MachineCode, narrow_loads, read
from audiogen_fast.launches.record import Launch, recording


@dataclass(frozen=True)
class Examined:
    """A launch compiled for one generation of GPU."""

    launch: Launch
    code: MachineCode | None
    error: str = ""
    """Why it does not compile."""

    def complaints(self) -> list[str]:
        """What is wrong with it, in words; empty if nothing is."""
        if self.code is None:
            return [f"does not compile: {self.error}"]
        code, found = self.code, []
        if code.spilled_bytes:
            found.append(f"spills {code.spilled_bytes} bytes of registers")
        if code.shared_bytes > SHARED_MEMORY[code.capability]:
            limit = SHARED_MEMORY[code.capability]
            found.append(f"takes {code.shared_bytes} bytes of shared memory of {limit}")
        for argument, width in narrow_loads(self.launch, code).items():
            found.append(f"reads {argument} only {width} bytes at a time")
        if "?" in code.loads:
            found.append("has loads that belong to no argument")
        return found


def record_case(case: Case, capability: int) -> list[Launch]:
    """The launches of a case on a GPU of that capability, nothing computed."""
    with processors_of(capability), recording(execute=False) as launches, torch.no_grad():
        case.prepare(torch.device("meta"))()
    return launches


def examine(jobs: Iterable[tuple[Launch, int]], processes: int = 2) -> list[Examined]:
    """Compile launches for a capability each, several at a time, and read the results.

    Launches that are alike in everything but shapes and grids are compiled once.
    """
    jobs = list(jobs)
    different = {(_key(launch), capability): (launch, capability) for launch, capability in jobs}
    if processes > 1 and len(different) > 1:
        # A new interpreter each: a forked one would share locks with threads of torch.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(different)), mp_context=context) as pool:
            codes = list(pool.map(_examine, different.values()))
    else:
        codes = [_examine(job) for job in different.values()]
    found = dict(zip(different, codes, strict=True))
    return [Examined(launch, *found[_key(launch), capability]) for launch, capability in jobs]


def _examine(job: tuple[Launch, int]) -> tuple[MachineCode | None, str]:
    launch, capability = job
    try:
        return read(compile_launch(launch, capability), capability), ""
    except Exception as error:  # whatever it is, it is this launch's result
        return None, f"{type(error).__name__}: {error}"


def _key(launch: Launch) -> Any:
    """Equal for launches that Triton would surely compile to the same, and little else."""
    arguments = [
        (name, getattr(value, "dtype", value), getattr(value, "misalignment", None))
        for name, value in launch.arguments.items()
    ]
    return repr((launch.kernel, arguments, sorted(launch.options.items())))
