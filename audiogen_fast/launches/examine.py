"""Compiles many launches at once and reads them: the work of the compile tests and the report."""

import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from audiogen_fast.launches.cases import Case
from audiogen_fast.launches.compile import CAPABILITIES, SHARED_MEMORY, compile_launch
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


def record_case(case: Case) -> list[Launch]:
    """The launches of a case, nothing computed."""
    with recording(execute=False) as launches, torch.no_grad():
        case.prepare(torch.device("meta"))()
    return launches


def examine(
    launches: Iterable[Launch],
    capabilities: Sequence[int] = CAPABILITIES,
    processes: int = 2,
) -> dict[int, list[Examined]]:
    """Compile launches for each capability, several at a time.

    Returns:
        capability -> one entry for each launch, in order. Launches that are alike in everything
        but addresses and grids are compiled once.
    """
    launches = list(launches)
    jobs = [(launch, capability) for capability in capabilities for launch in _unique(launches)]
    if processes > 1 and len(jobs) > 1:
        # A new interpreter each: a forked one would share locks with threads of torch.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
            codes = list(pool.map(_examine, jobs))
    else:
        codes = [_examine(job) for job in jobs]
    found = {(_key(job[0]), job[1]): code for job, code in zip(jobs, codes, strict=True)}
    result: dict[int, list[Examined]] = {}
    for capability in capabilities:
        result[capability] = [
            Examined(launch, *found[_key(launch), capability]) for launch in launches
        ]
    return result


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


def _unique(launches: Sequence[Launch]) -> list[Launch]:
    return list({_key(launch): launch for launch in launches}.values())
