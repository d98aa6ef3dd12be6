"""Launches worth looking at: every kernel at the shapes of the released model.

One list serves the compile tests, the byte counts, the micro-benchmarks and the report of a GPU.
"""

from audiogen_fast.launches.case import Case
from audiogen_fast.launches.decode_cases import decode_cases
from audiogen_fast.launches.training_cases import training_cases


def all_cases() -> list[Case]:
    """Every case, the quick ones first."""
    return sorted([*decode_cases(), *training_cases()], key=lambda case: not case.quick)
