"""Everything that only a GPU can tell, in at most 8 minutes.

    python benchmarks/gpu_report.py [--seconds 480] [--sections environment,steps-bfloat16]

Each section runs in processes of its own, so that a failure, an illegal memory access or a hang
loses one item; results are written as they come, to `benchmarks/results/gpu_report.json` and
`.md`. Without a GPU it says so, writes what can be known without one and ends with status 0.
`--device cpu --size tiny` tries every section on the CPU; those figures mean nothing.
"""

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # started as a file: then the root is not on the path
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from audiogen_fast.files import write_atomically  # noqa: E402
from benchmarks import floors  # noqa: E402
from benchmarks.gpu.document import document, targets  # noqa: E402
from benchmarks.gpu.section import Options, Section, run_section  # noqa: E402


def _steps(weights: str) -> Section:
    return Section(
        name=f"steps-{weights}",
        title=f"Decode steps, {weights}",
        module="benchmarks.gpu.steps",
        seconds=60,
        environment={"GPU_REPORT_FORMAT": weights},
    )


# The most important ones first: the last ones are what a slow machine has no time for.
SECTIONS = [
    Section(
        name="environment",
        title="Environment",
        module="benchmarks.gpu.environment",
        seconds=60,
        needs_gpu=False,
    ),
    Section(name="ceilings", title="Ceilings", module="benchmarks.gpu.ceilings", seconds=40),
    _steps("bfloat16"),
    Section(
        name="graph-only",
        title="Decode steps without fused kernels, captured, bfloat16",
        module="benchmarks.gpu.steps",
        seconds=60,
        environment={"GPU_REPORT_FORMAT": "bfloat16", "AUDIOGEN_FAST_BACKEND": "reference"},
    ),
    Section(name="peers", title="Peers", module="benchmarks.gpu.peers", seconds=90),
    Section(
        name="kernel-tests", title="Kernel tests", module="benchmarks.gpu.kernel_tests", seconds=150
    ),
    _steps("int8"),
    _steps("int4"),
    _steps("float16"),
    Section(name="clips", title="Whole clips", module="benchmarks.gpu.clips", seconds=90),
    Section(name="training", title="Training step", module="benchmarks.gpu.training", seconds=60),
    Section(name="kernels", title="Kernels", module="benchmarks.gpu.kernels", seconds=60),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", help=f"of {', '.join(s.name for s in SECTIONS)}; by commas")
    parser.add_argument("--size", choices=floors.SIZES, default="medium")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=floors.STEPS, help="of a clip")
    parser.add_argument("--seconds", type=float, default=480, help="for everything")
    parser.add_argument("--kernel-tests", default="tests/kernels/launch")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu_report.json")
    args = parser.parse_args()
    wanted = [s.name for s in SECTIONS] if args.sections is None else args.sections.split(",")
    unknown = set(wanted) - {s.name for s in SECTIONS}
    if unknown:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    if args.device == "cpu" and args.size != "tiny":
        parser.error("--device cpu is for trying the report out: it needs --size tiny")
    options = Options(
        size=args.size, device=args.device, steps=args.steps, kernel_tests=args.kernel_tests
    )
    report(wanted, options, args.seconds, args.out)


def report(wanted: list[str], options: Options, seconds: float, out: Path) -> dict[str, Any]:
    """Run the sections and write the report after each."""
    deadline = time.monotonic() + seconds
    usable = options.device == "cpu" or torch.cuda.is_available()
    if not usable:
        print("there is no CUDA device: only what needs none is reported")
    content: dict[str, Any] = {
        "benchmark": "gpu_report",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "size": options.size,
        "device": options.device if usable else None,
        "sections": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for section in SECTIONS:
            if section.name not in wanted:
                continue
            if section.needs_gpu and not usable:
                results: dict[str, Any] = {"section": {"skipped": "needs a CUDA device"}}
            elif time.monotonic() >= deadline:
                results = {"section": {"skipped": "no time was left"}}
            else:
                print(f"{section.title} ...", flush=True)
                left = deadline - time.monotonic()
                # A trial on a CPU takes what it takes.
                limit = section.seconds if options.device == "cuda" else left
                out_file = Path(folder) / "section.json"
                results = run_section(section, options, min(left, limit), out_file)
            content["sections"][section.name] = {"title": section.title, "items": results}
            content["targets"] = targets(content)
            write(content, out)
    print(f"written to {out} and {out.with_suffix('.md')}")
    return content


def write(content: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())
    write_atomically(out.with_suffix(".md"), document(content).encode())


if __name__ == "__main__":
    main()
