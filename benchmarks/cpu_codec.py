"""Decode and encode 10 s with a codec of the released size on a CPU: ours and audiocraft.

    python -m benchmarks.cpu_codec

Both run the same random weights, read from one checkpoint file. Needs the peer environment; see
`benchmarks/README.md`.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from audiogen_fast.models.loaders import load_compression_model
from benchmarks.common import (
    alternate,
    machine,
    read_bandwidth,
    require_memory,
    summary,
    timed,
    write_result,
)
from benchmarks.workers import PEER_PYTHON, peer_worker

DIRECTIONS = ("decode", "encode")


def measure(direction: str, args: argparse.Namespace) -> tuple[dict, dict, dict]:
    """Results by implementation, checks against the peer's outputs, and the peer's versions."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"folder": folder, "seconds": args.seconds, "direction": direction}
        peer = peer_worker(args.peer_python, "codec", threads=args.threads, **settings)
        versions = peer.hello  # it has written the checkpoint
        model = load_compression_model(folder)
        golden = torch.load(Path(folder) / "golden.pt", weights_only=True)

    def ours() -> torch.Tensor:
        if direction == "decode":
            return model.decode(golden["codes"])
        return model.encode(golden["wav"])[0]

    if direction == "decode":
        difference = (ours() - golden["decoded"]).abs().max().item()
        checks = {"max_difference": difference, "peak": golden["decoded"].abs().max().item()}
    else:
        checks = {"equal_codes": (ours() == golden["codes"]).double().mean().item()}
    runners = {
        "audiogen_fast": lambda n: timed(ours, n),
        "audiocraft": lambda n: peer.ask("measure", n=n)["seconds"],
    }
    for run in runners.values():
        run(2)
    seconds = alternate(runners, args.rounds, args.calls)
    peer.close()
    results = {name: summary(values) for name, values in seconds.items()}
    first = results["audiogen_fast"]["median_ms"]
    for name, result in results.items():
        result["rtf"] = round(result["median_ms"] / 1e3 / args.seconds, 5)
        result["ratio_to_ours"] = round(result["median_ms"] / first, 3)
        print(f"{direction} {name:16} {result}")
    print(f"{direction} {checks}")
    return results, checks, versions


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of audio")
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=DIRECTIONS)
    parser.add_argument("--peer-python", type=Path, default=PEER_PYTHON)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=3, help="calls per round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    require_memory(4_000_000_000, "this benchmark")
    facts = machine()
    facts["read_gb_s"] = round(read_bandwidth(args.threads), 2)
    results, checks = {}, {}
    for direction in args.directions:
        results[direction], checks[direction], facts["peer"] = measure(direction, args)
    path = write_result(
        "cpu_codec",
        args.out,
        machine=facts,
        settings={"seconds": args.seconds, "n_filters": 64, "codebooks": 4, "dtype": "float32"},
        checks=checks,
        results=results,
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
