"""A whole clip, text to audio, in this process; prints JSON.

    python -m benchmarks.clip FOLDER [--format int4] [--seconds 10]

`FOLDER` is a checkpoint, such as one of `benchmarks/checkpoint.py`. Loading, packing and a first
short clip come before and are reported apart.
"""

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import torch

from audiogen_fast import AudioGen
from audiogen_fast.generation.native import FORMATS
from benchmarks.common import process_memory

DESCRIPTION = "footsteps on gravel"


def load(folder: Path, name: str) -> AudioGen:
    """A model that decodes with weights in that format."""
    options = {
        "eager": {"engine": "eager"},
        "float32": {"engine": "native"},
        "bfloat16": {"engine": "native", "dtype": "bfloat16"},
    }.get(name, {"quantize": name})
    return AudioGen.get_pretrained(folder, device="cpu", **options)


class Clock:
    """Adds up the seconds spent in methods of objects."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, target: Any, method: str, part: str) -> None:
        call = getattr(target, method)

        @functools.wraps(call)
        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

        setattr(target, method, timed)


@torch.inference_mode()
def whole_clip(folder: Path, name: str, seconds: float) -> dict[str, float | str]:
    """Seconds of loading and of each part, real-time factor and memory.

    The language model's part is what text and codec leave of the whole.
    """
    start = time.perf_counter()
    model = load(folder, name)
    model.set_generation_params(duration=0.2)
    model.generate([DESCRIPTION], seed=0)
    ready = time.perf_counter() - start
    model.set_generation_params(duration=seconds)
    clock = Clock()
    clock.watch(model.lm, "encode_conditions", "text")
    clock.watch(model.compression_model, "decode", "codec")
    start = time.perf_counter()
    wav = model.generate([DESCRIPTION], seed=0)
    total = time.perf_counter() - start
    assert wav.shape[-1] == round(seconds * model.sample_rate)
    text, codec = clock.seconds["text"], clock.seconds["codec"]
    return {
        "format": name,
        "seconds": seconds,
        "ready_s": round(ready, 3),
        "total_s": round(total, 3),
        "text_s": round(text, 3),
        "lm_s": round(total - text - codec, 3),
        "codec_s": round(codec, 3),
        "rtf": round(total / seconds, 4),
        **{k.replace("_bytes", "_gb"): round(v / 1e9, 3) for k, v in process_memory().items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=("eager", *FORMATS), default="int4")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(whole_clip(args.folder, args.format, args.seconds)))


if __name__ == "__main__":
    main()
