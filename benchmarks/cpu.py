"""Decode steps and a whole clip on a CPU: every weight format of ours, transformers and audiocraft.

    python -m benchmarks.cpu --size medium --batch 1,4 --peers audiocraft,transformers

Each implementation runs in a process of its own and takes its turn at each part of a clip. All map
one random checkpoint, made the first time. Prints a table, and writes JSON and a picture. See
`benchmarks/README.md`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from audiogen_fast.memory import free_memory
from benchmarks.checkpoint import SIZES, default_folder, random_checkpoint
from benchmarks.common import (
    RESULTS,
    ROOT,
    machine,
    read_bandwidth,
    summary,
    write_result,
)
from benchmarks.workers import PEER_PYTHON, Worker, peer_worker

FORMATS = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.01, "int4": 0.54}
"""Bytes of a packed weight with its share of the scales, about: to plan memory with."""
PEERS = ("audiocraft", "transformers")
TEXT_LENGTH = 12
FRAME_RATE = 50
_PROCESS = 600_000_000  # bytes of a Python process with torch
_SPARE = 1_500_000_000  # bytes left free: mapped weights that are dropped have to be read again
_FEW_FAULTS = 100


@dataclass
class Plan:
    """What is run, and the sizes that follow from it."""

    folder: Path
    size: str
    formats: list[str]
    peers: list[str]
    batches: list[int]
    seconds: float
    turns: int
    steps: int
    threads: int
    peer_python: Path
    frames: int = field(init=False)

    def __post_init__(self) -> None:
        self.frames = round(self.seconds * FRAME_RATE)

    @property
    def total_steps(self) -> int:
        """Forward passes of a clip: the last codebook comes three steps after the first."""
        return self.frames + 3

    def cache_bytes(self, implementation: str, batch: int, positions: float) -> int:
        """Keys and values of that many positions, with guidance."""
        lm = SIZES[self.size]["lm"]
        width = 2 if implementation in ("bfloat16", "int8", "int4") else 4
        return int(2 * batch * positions * 2 * lm["dim"] * lm["num_layers"] * width)

    def memory(self, implementation: str) -> int:
        """Bytes that the process takes beside the mapped checkpoint, about."""
        lm = SIZES[self.size]["lm"]
        parameters = 14 * lm["dim"] ** 2 * lm["num_layers"]
        weights = int(parameters * FORMATS.get(implementation, 0))
        caches = self.cache_bytes(implementation, max(self.batches), self.total_steps)
        return _PROCESS + weights + caches


def groups(plan: Plan, budget: int) -> list[list[str]]:
    """Formats that fit into memory together, with the peers in every group.

    Peers drop their caches after each turn, so that only one of them has caches at a time.
    """
    shared = (plan.folder / "model.safetensors").stat().st_size + (1 << 30)
    peers = [plan.memory(name) for name in plan.peers]
    shared += max(peers, default=0) + _PROCESS * max(0, len(peers) - 1)
    found: list[list[str]] = []
    room: list[int] = []
    for name in plan.formats:
        needed = plan.memory(name)
        if shared + needed > budget:
            raise SystemExit(
                f"{name} needs {(shared + needed) / 1e9:.1f} GB of memory, "
                f"{budget / 1e9:.1f} GB are available"
            )
        for index, free in enumerate(room):
            if needed <= free:
                found[index].append(name)
                room[index] -= needed
                break
        else:
            found.append([name])
            room.append(budget - shared - needed)
    return found


def start_worker(plan: Plan, name: str) -> Worker:
    arguments = {"folder": str(plan.folder), "threads": plan.threads}
    if name == "audiocraft":
        return peer_worker(plan.peer_python, "step", **arguments)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.step_worker"]
    return Worker(command, implementation=name, **arguments)


def measure(plan: Plan, workers: dict[str, Worker], batch: int) -> tuple[dict, float]:
    """Turns of all implementations over the parts of a clip; and the bandwidth read meanwhile."""
    found: dict[str, dict[str, Any]] = {}
    for name, worker in workers.items():
        settings = {"batch": batch, "frames": plan.frames, "text_length": TEXT_LENGTH}
        found[name] = worker.ask("start", **settings) | {"turns": [], "memory": {}, "faults": 0}
    edges = [round(i * plan.total_steps / plan.turns) for i in range(plan.turns + 1)]
    edges[-1] = plan.total_steps - 1  # the first place of a sequence is not generated
    bandwidth = 0.0
    for turn in range(plan.turns):
        block = 1 << (30 if plan.size == "medium" else 26)  # no cache is as large as the first
        bandwidth = max(bandwidth, read_bandwidth(plan.threads, size=block))
        for name, worker in workers.items():
            part = {"begin": edges[turn], "end": edges[turn + 1], "steps": plan.steps}
            answer = worker.ask("turn", **part)
            found[name]["turns"].append(answer.pop("seconds"))
            found[name]["faults"] += answer.pop("page_faults")
            found[name]["memory"] |= answer
        print(f"  batch {batch}: step {edges[turn + 1]} of {plan.total_steps}", file=sys.stderr)
    for name, worker in workers.items():
        found[name]["memory"] |= worker.ask("stop")
    return found, bandwidth


def row(plan: Plan, batch: int, name: str, found: dict, parameters: dict) -> dict[str, Any]:
    """One line of the table. The time of a step is averaged over the parts of the clip."""
    seconds = statistics.fmean(statistics.median(turn) for turn in found["turns"])
    weights = found["weight_bytes"] or 4 * parameters["step"]
    if name == "audiocraft":
        weights += 4 * parameters["text"]
    cached = plan.cache_bytes(name, batch, plan.total_steps / 2)
    memory = {key.replace("_bytes", "_gb"): value / 1e9 for key, value in found["memory"].items()}
    return {
        "implementation": name,
        "batch": batch,
        "ms_per_step": round(seconds * 1e3, 3),
        **summary([value for turn in found["turns"] for value in turn]),
        "weight_bytes": weights,
        "cache_bytes": cached,
        "gb_s": round((weights + cached) / seconds / 1e9, 3),
        "lm_rtf": round(seconds * plan.total_steps / plan.seconds, 4),
        "first_call_ms": found["first_call_ms"],
        "page_faults": found["faults"],
        **{key: round(value, 2) for key, value in memory.items()},
    }


def run(plan: Plan) -> dict[str, Any]:
    """Everything about single steps: rows by batch, the bandwidth, checks and versions."""
    rows, bandwidth, versions, checks = [], 0.0, {}, {}
    planned = groups(plan, free_memory() - _SPARE)
    print(f"in memory at a time: {planned}", file=sys.stderr)
    peers = {name: start_worker(plan, name) for name in plan.peers}
    for group in planned:
        workers = {name: start_worker(plan, name) for name in group} | peers
        parameters = workers[group[0]].hello["parameters"]
        for name in peers:
            versions |= {k: v for k, v in peers[name].hello.items() if k != "parameters"}
        if not checks and peers:
            ask = {name: workers[name].ask("check", text_length=TEXT_LENGTH) for name in workers}
            checks = compare({name: answer["logits"] for name, answer in ask.items()}, group[0])
        for batch in plan.batches:
            found, fastest = measure(plan, workers, batch)
            bandwidth = max(bandwidth, fastest)
            new = [row(plan, batch, name, found[name], parameters) for name in workers]
            times = {r["implementation"]: r["ms_per_step"] for r in new}
            for r in new:
                ratios = {p: round(times[p] / r["ms_per_step"], 3) for p in plan.peers}
                r["faster_than"] = {p: x for p, x in ratios.items() if p != r["implementation"]}
            rows += new
        for name in group:
            workers[name].close()
    for worker in peers.values():
        worker.close()
    for r in rows:
        r["share_of_bandwidth"] = round(r["gb_s"] / bandwidth, 3)
    rows.sort(key=lambda r: r["batch"])
    return {
        "read_gb_s": round(bandwidth, 2),
        "versions": versions,
        "checks": checks,
        "results": merge_peers(rows),
    }


def compare(logits: dict[str, list[float]], ours: str) -> dict[str, float]:
    """Largest difference of the peers' logits from those of our model, over the largest logit."""
    top = max(abs(value) for value in logits[ours])
    return {
        name: max(abs(a - b) for a, b in zip(values, logits[ours], strict=True)) / top
        for name, values in logits.items()
        if name in PEERS
    }


def merge_peers(rows: list[dict]) -> list[dict]:
    """One row for a peer that was measured beside several groups, in the mean of its figures."""
    merged: dict[tuple, list[dict]] = {}
    for r in rows:
        merged.setdefault((r["batch"], r["implementation"]), []).append(r)
    result = []
    for same in merged.values():
        one = dict(same[0])
        if len(same) == 1:
            result.append(one)
            continue
        for key, value in one.items():
            if isinstance(value, float):
                one[key] = round(statistics.fmean(r[key] for r in same), 4)
        for key in ("n", "page_faults"):
            one[key] = sum(r[key] for r in same)
        result.append(one)
    return result


def table(results: list[dict], peers: list[str]) -> str:
    """The rows as text; `x NAME` says how many times as fast as that peer."""
    heads = ["batch", "implementation", "ms/step", "p10", "p90", *(f"x {p}" for p in peers)]
    heads += ["GB/step", "bandwidth", "LM RTF", "private GB"]
    lines = [heads]
    for r in results:
        ratios = [r["faster_than"].get(peer) for peer in peers]
        lines.append(
            [
                str(r["batch"]),
                r["implementation"],
                f"{r['ms_per_step']:.1f}",
                f"{r['p10_ms']:.1f}",
                f"{r['p90_ms']:.1f}",
                *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
                f"{(r['weight_bytes'] + r['cache_bytes']) / 1e9:.2f}",
                f"{100 * r['share_of_bandwidth']:.0f} %",
                f"{r['lm_rtf']:.2f}",
                f"{r.get('private_gb', 0):.1f}",
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def whole_clip(plan: Plan, name: str, seconds: float) -> dict[str, Any]:
    """Text, language model and codec in a fresh process: see `benchmarks/clip.py`."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.clip", str(plan.folder)]
    command += ["--format", name, "--seconds", str(seconds), "--threads", str(plan.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name and name != "none"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--batch", default="1,4", help="descriptions at a time, by commas")
    parser.add_argument("--formats", default=",".join(FORMATS), help="of ours; also eager")
    parser.add_argument("--peers", default=",".join(PEERS), help="by commas, or none")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the clip that is stepped")
    parser.add_argument("--turns", type=int, default=10, help="parts of the clip")
    parser.add_argument("--steps", type=int, default=4, help="of each peer in each part")
    parser.add_argument("--clip", default="int4", help="formats for whole clips, or none")
    parser.add_argument("--folder", type=Path, default=default_folder(), help="for checkpoints")
    parser.add_argument("--peer-python", type=Path, default=PEER_PYTHON)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file; the picture lies beside it")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    peers, formats, clips = names(args.peers), names(args.formats), names(args.clip)
    for name in peers + [f for f in formats + clips if f != "eager"]:
        if name not in (*PEERS, *FORMATS):
            raise SystemExit(f"unknown implementation {name!r}")
    if "audiocraft" in peers and not args.peer_python.exists():
        setup = ROOT / "benchmarks" / "peers" / "setup_audiocraft.py"
        print(f"{args.peer_python} is not there; making it", file=sys.stderr)
        place = args.peer_python.parents[1]
        subprocess.run([sys.executable, str(setup), str(place)], check=True, stdout=sys.stderr)
    facts = machine()
    if facts["load"] > 0.5:
        print(
            f"the load average is {facts['load']:.1f}: on a busy machine the threads of the peers "
            "wait for one another, and ratios flatter us",
            file=sys.stderr,
        )
    plan = Plan(
        folder=random_checkpoint(args.size, args.folder.resolve()),
        size=args.size,
        formats=formats,
        peers=peers,
        batches=[int(b) for b in names(args.batch)],
        seconds=args.seconds,
        turns=args.turns,
        steps=args.steps,
        threads=args.threads,
        peer_python=args.peer_python,
    )
    record = run(plan)
    facts |= record.pop("versions") | {"read_gb_s": record.pop("read_gb_s")}
    print(f"{facts['cpu']}, {facts['threads']} threads, reads {facts['read_gb_s']} GB/s")
    print(table(record["results"], peers))
    for r in record["results"]:
        if r["page_faults"] > _FEW_FAULTS:
            print(
                f"{r['implementation']}, batch {r['batch']}: waited {r['page_faults']} times for "
                "pages from disk, so its figures are worth nothing; give it more memory"
            )
    record["clips"] = [whole_clip(plan, name, args.seconds) for name in clips]
    for clip in record["clips"]:
        print(
            f"whole clip of {clip['seconds']:g} s, {clip['format']}: {clip['total_s']:.2f} s "
            f"(text {clip['text_s']:.2f}, language model {clip['lm_s']:.2f}, codec "
            f"{clip['codec_s']:.2f}), RTF {clip['rtf']:.2f}, peak {clip['peak_gb']:.1f} GB"
        )
    settings = {
        "size": args.size,
        **SIZES[args.size]["lm"],
        "guidance": True,
        "text_length": TEXT_LENGTH,
        "seconds": args.seconds,
        "turns": args.turns,
        "steps_per_turn_of_peers": args.steps,
    }
    out = args.out or RESULTS / "cpu.json"
    path = write_result("cpu", out, machine=facts, settings=settings, **record)
    from benchmarks.cpu_picture import draw

    print(f"written to {path} and {draw(json.loads(path.read_text()), path.with_suffix('.png'))}")


if __name__ == "__main__":
    main()
