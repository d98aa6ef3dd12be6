"""What every kernel compiles to and moves, and what a decode step costs at least; no GPU needed.

    python -m benchmarks.kernel_report [--quick] [--ops norm_linear,attention_decode]

Compiles the launches of `audiogen_fast/launches/cases.py` for four generations of GPU, counts the
bytes that they move under the interpreter, records the launches of a whole decode step of the
released size, and writes `docs/kernels.md` and `benchmarks/results/kernel_report.json`. What was
compiled once is kept in `build/triton` (or `TRITON_CACHE_DIR`) by the hash of its source.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from audiogen_fast.files import write_atomically
from audiogen_fast.launches.case import Case
from audiogen_fast.launches.cases import all_cases
from audiogen_fast.launches.compile import CAPABILITIES
from benchmarks import floors, products

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "python -m benchmarks.kernel_report"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the cases of the default tests")
    parser.add_argument("--ops", help="only these ops, by commas")
    parser.add_argument("--no-traffic", action="store_true", help="count no bytes, which is slow")
    parser.add_argument("--no-step", action="store_true", help="leave the decode step out")
    parser.add_argument("--capabilities", default=",".join(map(str, CAPABILITIES)))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "kernels.md")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/kernel_report.json")
    parser.add_argument("--count-traffic", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / "build" / "triton"))
    cases = [case for case in all_cases() if case.quick or not args.quick]
    if args.ops:
        cases = [case for case in cases if case.op in args.ops.split(",")]
    if args.count_traffic:  # the process of its own that `traffic` starts
        count_traffic(cases, args.count_traffic)
        return
    capabilities = [int(text) for text in args.capabilities.split(",")]
    report = {
        "benchmark": "kernel_report",
        "command": COMMAND + " --quick" * args.quick,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: metadata.version(name) for name in ("torch", "triton")}
        | {"python": platform.python_version()},
        "capabilities": capabilities,
        "kernels": machine_code(cases, capabilities, args.processes),
        "traffic": {} if args.no_traffic else traffic(args),
        "step": [] if args.no_step else recorded_steps(),
        "floors": floors.predictions(),
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.json, (json.dumps(report, indent=1) + "\n").encode())
    write_atomically(args.docs, document(report, cases).encode())
    print(f"written to {args.docs} and {args.json}")
    bad = [
        f"{name} on sm_{capability}: {complaint}"
        for name, kernels in report["kernels"].items()
        for kernel in kernels
        for capability, facts in kernel["compiled"].items()
        for complaint in facts["complaints"]
    ]
    if bad:
        raise SystemExit("\n".join(bad))


def machine_code(
    cases: list[Case], capabilities: list[int], processes: int
) -> dict[str, list[dict[str, Any]]]:
    """Name of a case -> for each of its kernels what it compiled to, by capability."""
    from audiogen_fast.launches.examine import examine, record_case

    launches = {(str(case), c): record_case(case, c) for case in cases for c in capabilities}
    jobs = [(launch, place[1]) for place, group in launches.items() for launch in group]
    examined = iter(examine(jobs, processes))
    result: dict[str, list[dict[str, Any]]] = {}
    for (name, capability), group in launches.items():
        kernels = result.setdefault(name, [])
        for index, launch in enumerate(group):
            one = next(examined)
            facts = asdict(one.code) if one.code else {}
            facts |= {"grid": launch.grid, "complaints": one.complaints()}
            if index == len(kernels):
                kernels.append({"kernel": launch.name, "compiled": {}})
            kernels[index]["compiled"][capability] = facts
    return result


def traffic(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Bytes that each case moves, counted in a process where kernels are interpreted."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "traffic.json"
        command = [sys.executable, "-m", "benchmarks.kernel_report", "--count-traffic", str(out)]
        command += ["--quick"] * args.quick + (["--ops", args.ops] if args.ops else [])
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return json.loads(out.read_text())


def count_traffic(cases: list[Case], out: Path) -> None:
    """Run every case interpreted on the CPU and write the bytes that it moved."""
    import torch

    from audiogen_fast.launches.compile import processors_of
    from audiogen_fast.launches.traffic import counting

    torch.set_num_threads(2)
    counted = {}
    for case in cases:
        if not case.interpreted:
            continue
        with processors_of(90), torch.no_grad():
            call = case.prepare(torch.device("cpu"))
            with counting() as moved:
                call()
        counted[str(case)] = {
            "needed": case.needed_bytes,
            "touched": moved.touched,
            "requested": moved.requested,
        }
    write_atomically(out, json.dumps(counted).encode())


def recorded_steps() -> list[dict[str, Any]]:
    """Launches and weight bytes of whole decode steps of the released size, by what they are."""
    from audiogen_fast.launches.steps import record_step

    steps = []
    for weights in floors.FORMATS:
        for descriptions in (1, 8, 64):
            launches = record_step(floors.MEDIUM, descriptions, weights)
            names: dict[str, int] = {}
            for launch in launches:
                names[launch.name] = names.get(launch.name, 0) + 1
            floor = floors.step_floor(floors.MEDIUM, weights, descriptions)
            steps.append(
                {
                    "weights": weights,
                    "descriptions": descriptions,
                    "launches": len(launches),
                    "kernels": names,
                    "bytes": floor.total_bytes,
                    "floor_ms": {
                        name: round(1e3 * floor.seconds(gpu), 3)
                        for name, gpu in floors.GPUS.items()
                    },
                }
            )
    return steps


def document(report: dict[str, Any], cases: list[Case]) -> str:
    """The text of `docs/kernels.md`."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    capabilities = report["capabilities"]
    return "\n".join(
        [
            "# Kernels",
            "",
            f"Made by `{report['command']}` ({versions}); no figure here was measured on a GPU.",
            "",
            "## Machine code",
            "",
            f"For {', '.join(f'sm_{c}' for c in capabilities)}, in this order where they differ.",
            "Registers are those of a thread, `load` is the widest load in bytes, `matrix` the",
            "matrix instructions.",
            "",
            *_table(
                [
                    "op",
                    "case",
                    "kernel",
                    "registers",
                    "spills",
                    "shared",
                    "warps",
                    "load",
                    "matrix",
                ],
                _code_rows(report, capabilities),
            ),
            "",
            "## Bytes moved",
            "",
            "`needed`: every input that the op uses once and every output once. `memory`: the",
            "32-byte sectors that the kernel touches, which is what a cold cache must fetch and",
            "keep. `caches`: the sum of what all programs ask for, repetitions included. Counted",
            "while the kernel was interpreted.",
            "",
            *_table(
                ["op", "case", "needed", "memory", "memory / needed", "caches / needed"],
                _traffic_rows(report),
            ),
            "",
            "## Products of a layer, by rows",
            "",
            "Two rows for each description with guidance. `memory`: the weights, once. `caches`:",
            "what all programs of the six products ask for, by arithmetic (benchmarks/products.py;",
            "within a tenth of what is counted above). `few`: the same if the forms for few rows",
            "were taken for all. Then the operations, and the microseconds on an H100: memory at",
            f"{floors.GPUS['H100'].bandwidth / 1e12:.2f} TB/s, its second-level cache at an",
            f"assumed {products.L2_BANDWIDTH / 1e12:.1f} TB/s, the matrix cores at their peak.",
            "The largest of the three is the floor of the form.",
            "",
            *_table(
                [
                    "weights",
                    "rows",
                    "forms",
                    "memory MB",
                    "caches MB",
                    "few MB",
                    "GFLOP",
                    "memory us",
                    "caches us",
                    "matrix us",
                ],
                _layer_rows(),
            ),
            "",
            "## A decode step",
            "",
            "Of the released size (48 layers of 1536), with guidance, averaged over the positions",
            "of a 10 s clip, 16 text tokens: launches as recorded, bytes that it cannot do",
            "without, and the milliseconds they take at the bandwidth of the data sheet:",
            ", ".join(f"{n} {g.bandwidth / 1e12:.2f} TB/s" for n, g in floors.GPUS.items()) + ".",
            "These are floors, not measurements.",
            "",
            *_table(
                ["weights", "descriptions", "launches", "GB", *floors.GPUS], _step_rows(report)
            ),
            "",
        ]
    )


def _table(header: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _same(values: list[Any]) -> str:
    """One value where all are equal, else all of them."""
    texts = [str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def _code_rows(report: dict[str, Any], capabilities: list[int]) -> list[list[Any]]:
    rows = []
    for name, kernels in report["kernels"].items():
        op, case = name.removesuffix("]").split("[", 1)
        for kernel in kernels:
            facts = [kernel["compiled"][c] for c in capabilities]
            if any("registers" not in fact for fact in facts):
                rows.append([op, case, kernel["kernel"], "does not compile", *[""] * 5])
                continue
            rows.append(
                [
                    op,
                    case,
                    f"`{kernel['kernel']}`",
                    _same([fact["registers"] for fact in facts]),
                    _same([fact["spilled_bytes"] for fact in facts]),
                    _same([fact["shared_bytes"] for fact in facts]),
                    _same([fact["threads"] // 32 for fact in facts]),
                    _same([_widest(fact["loads"]) for fact in facts]),
                    _same([" ".join(fact["matrix"]) or "-" for fact in facts]),
                ]
            )
    return rows


def _widest(loads: dict[str, dict[int, int]]) -> int:
    return max((int(width) for widths in loads.values() for width in widths), default=0)


def _traffic_rows(report: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for name, moved in report["traffic"].items():
        op, case = name.removesuffix("]").split("[", 1)
        needed = moved["needed"]
        ratios = [f"{moved[key] / needed:.3f}" for key in ("touched", "requested")]
        rows.append([op, case, f"{needed:,}", f"{moved['touched']:,}", *ratios])
    return rows


def _layer_rows() -> list[list[Any]]:
    rows = []
    for weights in ("bfloat16", "int8", "int4"):
        for count in products.ROWS:
            layer = products.layer(floors.MEDIUM, count, weights)
            sizes = (layer.weights, layer.cached, layer.cached_before)
            rows.append(
                [
                    weights,
                    count,
                    ", ".join(layer.kinds),
                    *(f"{size / 1e6:.1f}" for size in sizes),
                    f"{layer.operations / 1e9:.2f}",
                    *(f"{time:.1f}" for time in layer.microseconds),
                ]
            )
    return rows


def _step_rows(report: dict[str, Any]) -> list[list[Any]]:
    return [
        [
            step["weights"],
            step["descriptions"],
            step["launches"],
            f"{step['bytes'] / 1e9:.3f}",
            *step["floor_ms"].values(),
        ]
        for step in report["step"]
    ]


if __name__ == "__main__":
    main()
