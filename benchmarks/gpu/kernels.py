"""GB/s of every kernel on a cold cache, counting the bytes that its op needs."""

from typing import Any

import torch

from benchmarks.gpu.section import Options
from benchmarks.gpu.timing import cold_seconds, median


def items(options: Options) -> list[str]:
    from audiogen_fast.launches.cases import all_cases

    return [str(case) for case in all_cases()]


@torch.no_grad()
def measure(item: str, options: Options) -> dict[str, Any]:
    from audiogen_fast.launches.cases import all_cases

    case = next(case for case in all_cases() if str(case) == item)
    device = torch.device(options.device)
    result: dict[str, Any] = {"op": case.op, "case": case.label, "bytes": case.needed_bytes}
    calls = {"kernel": case.prepare(device)} if options.device == "cuda" else {}
    if case.reference is not None and (case.quick or not calls):
        calls["reference"] = case.reference(device)
    rounds = 20 if options.size == "medium" else 3
    for name, call in calls.items():
        seconds = median(cold_seconds(call, options.device, rounds))
        result[name] = {"us": 1e6 * seconds, "gb_s": case.needed_bytes / seconds / 1e9}
    return result
