"""`audiogen-fast convert`."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from audiogen_fast.api import AudioGen
from audiogen_fast.errors import check
from audiogen_fast.generation.native import NativeEngine
from audiogen_fast.models import loaders
from audiogen_fast.models.hub import HubOptions, Place
from audiogen_fast.models.saving import save_pretrained


def convert(args: argparse.Namespace) -> dict[str, Any]:
    """Write the model `args.source` to the folder `args.destination` in the own format.

    The language model keeps the dtype it is stored in unless `args.dtype` names one, or is packed
    for the native engine in the format `args.quantize`; codec and text encoder are float32.
    """
    destination = Path(args.destination)
    occupied = destination.exists() and (not destination.is_dir() or any(destination.iterdir()))
    check(
        args.overwrite or not occupied,
        f"destination must be a new or an empty folder (or pass --overwrite), got {destination}",
    )
    check(
        args.source != "debug", "source must be a checkpoint, got the model debug, which has none"
    )
    start = time.perf_counter()
    check(
        args.dtype is None or args.quantize is None,
        f"dtype must not be given together with quantize={args.quantize}, got {args.dtype}",
    )
    where = {"revision": args.revision, "local_files_only": args.local_files_only}
    dtype = args.dtype or args.quantize
    if dtype is None:
        stored = loaders.stored_dtype(args.source, HubOptions(**where))
        dtype = str(stored).removeprefix("torch.")
    if args.quantize is None:
        model = AudioGen.get_pretrained(args.source, "cpu", dtype=dtype, engine="eager", **where)
        model.save_pretrained(destination)
    else:
        place = Place(args.source, HubOptions(**where))
        codec, lm = loaders.load_models(place, torch.device("cpu"), as_stored=lambda _: True)
        engine = NativeEngine(lm, args.quantize, group_size=args.group_size)
        engine.prepare(just_loaded=True)
        save_pretrained(destination, lm, codec, engine.packed_weights())
    files = [path for path in sorted(destination.rglob("*")) if path.is_file()]
    report = {
        "command": "convert",
        "source": args.source,
        "destination": str(destination),
        "dtype": dtype,
        "files": [{"path": str(path), "bytes": path.stat().st_size} for path in files],
        "seconds": round(time.perf_counter() - start, 3),
    }
    if not args.json:
        megabytes = sum(file["bytes"] for file in report["files"]) / 1e6
        print(f"{destination}: {megabytes:.1f} MB, language model in {dtype}")
    return report
