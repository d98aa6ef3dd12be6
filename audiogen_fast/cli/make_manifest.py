"""`audiogen-fast manifest`."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from audiogen_fast.errors import check
from audiogen_fast.training.data.manifest import write_manifest
from audiogen_fast.training.data.probe import probe_folder, with_paths

_SHOWN = 10


def make_manifest(args: argparse.Namespace) -> dict[str, Any]:
    """Write a manifest of all recordings in `args.folder`; what was found, for `json`."""
    output = Path(args.output or Path(args.folder, "data.jsonl"))
    check(
        args.overwrite or not output.exists(),
        f"{output} is there already; pass --overwrite or another --output",
    )
    start = time.perf_counter()
    with tqdm(unit=" files", disable=args.json or None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = probe_folder(
            args.folder, workers=args.workers, decode=args.decode, progress=progress
        )
    write_manifest(output, with_paths(found.rows, output, args.relative))
    report = {
        "command": "manifest",
        "output": str(output),
        "recordings": len(found.rows),
        "audio_seconds": round(sum(row["duration"] for row in found.rows), 3),
        "skipped": [{"path": s.path, "reason": s.reason} for s in found.skipped],
        "seconds": round(time.perf_counter() - start, 3),
    }
    if not args.json:
        _show(report)
    return report


def _show(report: dict[str, Any]) -> None:
    hours = report["audio_seconds"] / 3600
    print(f"{report['output']}: {report['recordings']} recordings, {hours:.2f} h")
    skipped = report["skipped"]
    for entry in skipped[:_SHOWN]:
        print(f"skipped {entry['path']}: {entry['reason']}", file=sys.stderr)
    if len(skipped) > _SHOWN:
        print(f"and {len(skipped) - _SHOWN} more (--json lists all)", file=sys.stderr)
