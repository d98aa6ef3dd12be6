"""Training steps of the language model: ours, ours without fused ops, and audiocraft, in turns.

    python -m benchmarks.train [--dtype float32,bfloat16] [--peer-python .peers/bin/python]

All start from one set of weights and one batch and make whole updates: forward, backward, clipping,
AdamW. Every dtype but float32 is autocast's, of all of them alike. The losses of the first step are
compared before anything is timed. On a GPU the model FLOPs utilisation is printed, with the peak of
`--peak-tflops`.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from audiogen_fast.memory import keep_freed_memory
from audiogen_fast.models.lm import LMModel
from audiogen_fast.models.released import released_lm
from audiogen_fast.training.config import OptimConfig
from audiogen_fast.training.optimizers import (
    clip_factor,
    gradient_norm,
    lm_groups,
    make_optimizer,
    scale_gradients,
)
from audiogen_fast.training.parallel import DTYPES, Ranks
from benchmarks.common import machine, write_result

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PEER = Path(__file__).parent / "peers" / "train_step.py"
PEER_PYTHON = Path(__file__).resolve().parents[1] / ".peers" / "bin" / "python"


class PeerProcess:
    """audiocraft in its environment."""

    def __init__(self, python: Path, arguments: dict):
        command = [str(python), "-W", "ignore", str(PEER), json.dumps(arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._answer()

    def first_loss(self, dtype: str) -> float:
        return self._ask(1, dtype, restart=True)["loss"]

    def steps(self, n: int, dtype: str) -> list[float]:
        return self._ask(n, dtype, restart=False)["seconds"]

    def _ask(self, n: int, dtype: str, restart: bool) -> dict:
        request = {"n": n, "dtype": dtype, "restart": restart}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Ours:
    """The step that the solver makes, with the fused ops or (`reference`) without."""

    def __init__(self, start: dict, args: argparse.Namespace, shape: dict, reference: bool):
        self.backend = "reference" if reference else "auto"
        self.clock = args.clock
        self.device = torch.device(args.device)
        self.lm = released_lm(shape, "description").to(self.device)
        self.start = start["state"]
        self.lm.train()
        self.codes, vectors = start["codes"].to(self.device), start["vectors"].to(self.device)
        mask = torch.ones(vectors.shape[:2], dtype=torch.int64, device=self.device)
        self.conditions = {"description": (vectors, mask)}
        config = OptimConfig(lr=1e-4)
        self.optimizer = make_optimizer(lm_groups(self.lm), config)

    def first_loss(self, dtype: str) -> float:
        self.lm.load_state_dict(self.start)
        return self.step(dtype)

    def step(self, dtype: str) -> float:
        os.environ["AUDIOGEN_FAST_BACKEND"] = self.backend
        with torch.autocast(self.device.type, DTYPES[dtype], enabled=dtype != "float32"):
            loss, _ = self.lm.compute_loss(self.codes, [], self.conditions)
        loss.backward()
        norm = gradient_norm(self.optimizer, Ranks(), sharded=False).item()
        scale_gradients(self.optimizer, clip_factor(norm, 1.0))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def steps(self, n: int, dtype: str) -> list[float]:
        seconds = []
        for _ in range(n):
            began = CLOCKS[self.clock]()
            self.step(dtype)
            seconds.append(CLOCKS[self.clock]() - began)
        return seconds


def flops(lm: LMModel, batch: int, frames: int, text: int) -> float:
    """Of the products of one step: 6 for each weight and row, 12 D for each pair in attention.

    Embeddings are look-ups and count nothing; half of the pairs are masked and count nothing
    (Chowdhery et al. 2022, appendix B, without the masked half).
    """
    rows, dim, layers = batch * (frames + 1), lm.dim, len(lm.transformer.layers)
    weights = sum(p.numel() for n, p in lm.named_parameters() if p.ndim == 2 and "emb." not in n)
    cross = layers * 2 * dim * dim  # keys and values are made of the text's rows instead
    pairs = rows * (frames + 1) / 2 + rows * text
    return 6 * ((weights - cross) * rows + cross * batch * text) + 12 * layers * dim * pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("dim", 512), ("layers", 8), ("heads", 8), ("n-q", 4), ("card", 2048), ("batch", 4),
        ("frames", 500), ("text", 16), ("rounds", 5), ("steps", 2),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or both, by commas")
    parser.add_argument("--peer-dtype", help="of audiocraft, each one that --dtype has or one more")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peer-python", type=Path, default=PEER_PYTHON)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: seconds of all threads, for a machine that others use too (with --threads 1)",
    )
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in --dtype, for the MFU")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    dtypes = _dtypes(args.dtype)
    peer_dtypes = dtypes if args.peer_dtype is None else _dtypes(args.peer_dtype)
    torch.set_num_threads(args.threads)
    facts = machine()  # the load average is that before the run
    if args.device == "cpu":
        keep_freed_memory()  # as the solver does
    shape = {
        "n_q": args.n_q, "card": args.card, "dim": args.dim, "num_heads": args.heads,
        "num_layers": args.layers, "hidden_scale": 4,
    }  # fmt: skip
    arguments = {"shape": shape, "seed": 0} | {
        name: getattr(args, name)
        for name in ("batch", "frames", "text", "threads", "device", "clock")
    }
    with tempfile.TemporaryDirectory() as folder:
        start_path, peer = Path(folder) / "start.pt", None
        if args.no_peer:
            torch.manual_seed(0)
            start = _start(args, shape)
        else:
            if not args.peer_python.exists():
                raise SystemExit(f"{args.peer_python} does not exist; see benchmarks/README.md")
            peer = PeerProcess(args.peer_python, arguments | {"folder": folder})
            start = torch.load(start_path, weights_only=True)
    ours = {name: Ours(start, args, shape, name == "reference") for name in ("fused", "reference")}
    runners = {name: (one, dtypes) for name, one in ours.items()}
    if peer is not None:
        runners["audiocraft"] = peer, peer_dtypes
    losses: dict[str, dict[str, float]] = {}
    for name, (runner, own) in runners.items():
        for dtype in own:
            losses.setdefault(dtype, {})[name] = runner.first_loss(dtype)
    for dtype, of in losses.items():
        print(f"losses of the first step, {dtype}: {of}")
        tolerance = 1e-4 if dtype == "float32" else 1e-2
        spread = (max(of.values()) - min(of.values())) / max(of.values())
        if not spread <= tolerance:
            raise SystemExit(f"they do not train the same: the losses differ by {spread:.1e}")
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.rounds):  # in turns: a busy moment of the machine hits all alike
        for dtype in losses:
            for name, (runner, own) in runners.items():
                if dtype in own:
                    times = seconds.setdefault((dtype, name), [])
                    times += runner.steps(args.steps, dtype)
    if peer is not None:
        peer.close()
    results: dict[str, dict[str, dict]] = {}
    operations = flops(ours["fused"].lm, args.batch, args.frames, args.text)
    for (dtype, name), values in seconds.items():
        median = statistics.median(values)
        results.setdefault(dtype, {})[name] = {
            "median_ms": round(1e3 * median, 2),
            "fastest_ms": round(1e3 * min(values), 2),
            "frames_per_s": round(args.batch * args.frames / median, 1),
            "tflops": round(operations / median / 1e12, 4),
        }
        if args.peak_tflops:
            results[dtype][name]["mfu"] = round(operations / median / 1e12 / args.peak_tflops, 4)
    for dtype, of in results.items():
        base = of["audiocraft" if "audiocraft" in of else "reference"]["median_ms"]
        for name, result in of.items():
            result["speedup"] = round(base / result["median_ms"], 3)
            print(f"{dtype:9} {name:11} {result}")
    if torch.cuda.is_available() and args.device != "cpu":
        facts["gpu"] = torch.cuda.get_device_name()
    settings = arguments | {"dtypes": dtypes, "peer_dtypes": peer_dtypes if peer else []}
    path = write_result(
        "train", args.out, machine=facts, settings=settings, losses=losses, results=results
    )
    print(f"written to {path}")


def _dtypes(names: str) -> list[str]:
    for name in names.split(","):
        if name not in DTYPES:
            raise SystemExit(f"--dtype must be of {', '.join(DTYPES)}, got {name}")
    return names.split(",")


def _start(args: argparse.Namespace, shape: dict) -> dict:
    """Weights and a batch without the peer."""
    empty = {"state": {}, "codes": torch.zeros(0), "vectors": torch.zeros(1, 1, 1)}
    options = {"weight_init": "gaussian", "depthwise_init": "current"}
    lm = released_lm(shape, "description", **options)
    empty["state"] = lm.state_dict()
    empty["codes"] = torch.randint(0, shape["card"], (args.batch, shape["n_q"], args.frames))
    empty["vectors"] = torch.randn(args.batch, args.text, shape["dim"])
    return empty


if __name__ == "__main__":
    main()
