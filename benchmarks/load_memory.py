"""Peak memory of loading a language model, over the weights it ends up with.

    python -m benchmarks.load_memory --folder DISK [--size small] [--out FILE]

Makes a random float16 checkpoint in the released layout in `DISK` (3.7 GB for the medium model),
loads it in fresh processes, once per dtype and once packed in each format of the native engine, and
removes it. The float32 run takes 8 GB of memory.
"""

import argparse
import json
import mmap
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml

from audiogen_fast.config import RELEASED_STRUCTURE, parse_config
from audiogen_fast.generation.native import NativeEngine
from audiogen_fast.models.builders import get_lm_model
from audiogen_fast.models.loaders import load_lm_model
from benchmarks.common import ROOT, fill_random, machine, require_memory, write_result

SIZES = {
    "medium": {"dim": 1536, "num_heads": 24, "num_layers": 48, "card": 2048},
    "small": {"dim": 512, "num_heads": 8, "num_layers": 7, "card": 512},
    "tiny": {"dim": 16, "num_heads": 1, "num_layers": 1, "card": 8},
}
LIMIT = 1.10
"""Peak memory over the bytes of the loaded weights; packing may take two of the largest matrix in
float32 on top, which it is read and packed from."""
QUANTIZED = ("int8", "int4")


def configuration(size: str) -> dict:
    """AudioGen's; a table stands in for the text encoder, which is not what is measured."""
    return {
        "lm_model": "transformer_lm",
        "transformer_lm": SIZES[size] | RELEASED_STRUCTURE | {"n_q": 4, "hidden_scale": 4},
        "codebooks_pattern": {"modeling": "delay", "delay": {"delays": [0, 1, 2, 3]}},
        "conditioners": {
            "description": {"model": "lut", "lut": {"n_bins": 1, "dim": 1024, "tokenizer": "noop"}}
        },
        "fuser": {"cross": ["description"], "sum": [], "prepend": [], "input_interpolate": []},
        "dataset": {"segment_duration": 10},
    }


def make_checkpoint(folder: Path, size: str) -> int:
    """Write `folder/state_dict.bin`; returns the number of parameters.

    The file is laid out first, without numbers, and then filled through a shared mapping, so this
    needs no memory of its size.
    """
    config = configuration(size)
    with torch.device("meta"):
        model = get_lm_model(parse_config(config))
    # Empty memory is not taken before it is written.
    state = {
        name: torch.empty(tensor.shape, dtype=torch.float16)
        for name, tensor in model.state_dict().items()
    }
    path = folder / "state_dict.bin"
    with torch.serialization.skip_data():
        torch.save({"best_state": state, "xp.cfg": yaml.safe_dump(config)}, path)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        stored = torch.load(path, mmap=True, weights_only=True)["best_state"]
    fill_random(list(stored.values()))
    return sum(tensor.numel() for tensor in stored.values())


def largest_matrix(size: str) -> int:
    """Bytes in float32 of the largest matrix that is packed: the joined heads, or the
    feed-forward's."""
    sizes = SIZES[size]
    return 4 * sizes["dim"] * max(4 * sizes["card"], 4 * sizes["dim"])


def resident(name: str) -> int:
    """Bytes of memory of this process: `VmRSS` now, or `VmHWM` at its highest."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def load(folder: Path, warm_up: Path, dtype: str) -> dict:
    """Load in this process and read every weight once; memory over that before, in bytes."""
    _weights(warm_up, dtype)  # imports and what they keep
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
    tensors, copied, owner = _weights(folder, dtype)
    loaded = resident("VmHWM") - before
    for tensor in tensors:
        # The sum of bytes would widen them first.
        (tensor.max if tensor.dtype == torch.uint8 else tensor.sum)()
    weights = copied + sum(t.numel() * t.element_size() for t in tensors)
    del owner
    peak = resident("VmHWM") - before
    return {
        "weights_bytes": weights,
        "peak_bytes": peak,
        "peak_before_reading_bytes": loaded,
        "peak_to_weights": round(peak / weights, 4),
    }


def _weights(folder: Path, dtype: str) -> tuple[list[torch.Tensor], int, object]:
    """The weights that decoding reads, bytes of those that cannot be seen, and what keeps them.

    The packed ones are those of the native engine, which keeps its own embeddings in float32.
    """
    if dtype not in QUANTIZED:
        model = load_lm_model(folder, dtype=dtype)
        return list(model.state_dict().values()), 0, model
    model = load_lm_model(folder, dtype="float16")
    engine = NativeEngine(model, dtype)
    engine.prepare(just_loaded=True)
    embeddings = 4 * sum(table.weight.numel() for table in model.emb)
    return list(engine.packed_weights().tensors.values()), embeddings, engine


def measure(folder: Path, warm_up: Path, dtype: str) -> dict:
    """`load` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.load_memory"]
    command += ["--folder", str(folder.resolve()), "--load", str(warm_up.resolve()), dtype]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where there is room on a disk")
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--out", type=Path, help="file for the results")
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args.folder, Path(args.load[0]), args.load[1])))
        return
    description = machine()
    folder = Path(tempfile.mkdtemp(prefix="load_memory-", dir=args.folder))
    try:
        for name in {args.size, "tiny"}:
            (folder / name).mkdir()
        make_checkpoint(folder / "tiny", "tiny")
        parameters = make_checkpoint(folder / args.size, args.size)
        require_memory(int(parameters * 4 * LIMIT), "the float32 run")
        results = {
            dtype: measure(folder / args.size, folder / "tiny", dtype)
            for dtype in ("float16", "float32", *QUANTIZED)
        }
        settings = {
            "size": args.size,
            **SIZES[args.size],
            "parameters": parameters,
            "stored_bytes": (folder / args.size / "state_dict.bin").stat().st_size,
            "limit": LIMIT,
            "largest_matrix_bytes": largest_matrix(args.size),
        }
    finally:
        shutil.rmtree(folder)
    path = write_result(
        "load_memory", args.out, machine=description, settings=settings, results=results
    )
    for dtype, result in results.items():
        print(
            f"{dtype}: {result['peak_bytes'] / 1e9:.3f} GB for {result['weights_bytes'] / 1e9:.3f}"
            f" GB of weights, ratio {result['peak_to_weights']:.3f} (limit {LIMIT}"
            + (f" and {2 * largest_matrix(args.size) / 1e9:.3f} GB)" if dtype in QUANTIZED else ")")
        )
    print(path)


if __name__ == "__main__":
    main()
