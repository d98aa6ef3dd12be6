"""`audiogen-fast encode`."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from audiogen_fast.cli.sounds import choose_device
from audiogen_fast.errors import check
from audiogen_fast.models import loaders
from audiogen_fast.models.builders import get_wrapped_compression_model
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.models.hub import HubOptions, Place
from audiogen_fast.modules.text_conditioners import PretrainedTextConditioner
from audiogen_fast.training.data.encode import encode_manifest
from audiogen_fast.training.data.manifest import conditions, read_manifest
from audiogen_fast.training.data.text_encoders import FrozenTextEncoder
from audiogen_fast.training.data.windows import EncodeConfig

_SHOWN = 10


def encode(args: argparse.Namespace) -> dict[str, Any]:
    """Write a cache of `args.manifest`, or what is missing of it; what was made, for `json`."""
    start = time.perf_counter()
    where = conditions(args.where)
    manifest = read_manifest(args.manifest, args.root, where)
    codec, text_encoder = _load(args)
    config = EncodeConfig(
        segment_duration=args.segment_duration,
        stride=args.stride,
        min_segment_ratio=args.min_segment_ratio,
        require_description=not args.allow_missing_descriptions,
        text_dtype=args.text_dtype,
        shard_items=args.shard_items,
    )
    with tqdm(unit=" samples", disable=args.json or None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            if bar.total is None:
                # what was there already is no measure of the speed
                bar.reset(total)
                bar.initial = bar.n = done
                bar.refresh()
            else:
                bar.update(done - bar.n)

        index = encode_manifest(
            manifest,
            args.output,
            codec,
            text_encoder,
            config,
            batch_size=args.batch_size,
            workers=args.workers,
            progress=progress,
        )
    folder = Path(args.output)
    report = {
        "command": "encode",
        "output": str(folder),
        "samples": sum(shard.items for shard in index.shards),
        "texts": sum(shard.texts for shard in index.shards),
        "texts_encoded": text_encoder is not None,
        "shards": len(index.shards),
        "bytes": sum((folder / shard.name).stat().st_size for shard in index.shards),
        "skipped": index.skipped,
        "seconds": round(time.perf_counter() - start, 3),
    }
    if not args.json:
        _show(report)
    return report


def _load(args: argparse.Namespace) -> tuple[CompressionModel, FrozenTextEncoder | None]:
    check(args.checkpoint != "debug", "--checkpoint must be a checkpoint, debug has none")
    device = choose_device(args.device)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = HubOptions(revision=args.revision, local_files_only=args.local_files_only)
    if args.no_text:
        codec = loaders.load_compression_model(
            args.checkpoint,
            device,
            revision=args.revision,
            local_files_only=args.local_files_only,
        )
        return codec.eval(), None
    place = Place(args.checkpoint, options)
    # in its stored dtype the language model, of which only the text encoder is needed, stays in
    # its file
    codec, lm = loaders.load_models(place, torch.device("cpu"), loaders.stored_dtype(place))
    codec = get_wrapped_compression_model(codec, lm.cfg).to(device).eval()
    conditioner = lm.condition_provider.conditioners["description"]
    frozen = isinstance(conditioner, PretrainedTextConditioner) and not conditioner.finetune
    check(
        frozen,
        "the text encoder of the checkpoint must be frozen for its results to be kept, this one "
        "is trained with the model; pass --no-text",
    )
    return codec, FrozenTextEncoder(conditioner.to(device))


def _show(report: dict[str, Any]) -> None:
    texts = f"{report['texts']} texts{'' if report['texts_encoded'] else ' (not encoded)'}"
    print(
        f"{report['output']}: {report['samples']} samples, {texts}, {report['bytes'] / 1e6:.1f} MB "
        f"in {report['shards']} files"
    )
    skipped = report["skipped"]
    for entry in skipped[:_SHOWN]:
        print(f"skipped {entry['path']}: {entry['reason']}", file=sys.stderr)
    if len(skipped) > _SHOWN:
        print(f"and {len(skipped) - _SHOWN} more (index.json lists all)", file=sys.stderr)
