"""`audiogen-fast train` and `audiogen-fast export`."""

import argparse
from typing import Any

from audiogen_fast.errors import check


def train(args: argparse.Namespace) -> int:
    """Train in this process; the exit status."""
    from audiogen_fast.training.train import train

    return train(args)


def export(args: argparse.Namespace) -> dict[str, Any]:
    """Write a run's models for use; what was written, for `json`."""
    from audiogen_fast.training import export as lm
    from audiogen_fast.training.config_lm import LMConfig

    step = int(args.step) if args.step is not None and args.step.isdigit() else args.step
    config = lm.run_config(args.run)
    if not isinstance(config, LMConfig):
        from audiogen_fast.training.codec.export import export_codec

        check(not args.adapter, "--adapter is for a run of a language model with lora.rank")
        done = export_codec(args.run, args.destination, args.format, step, args.weights)
    elif args.adapter:
        done = lm.export_adapter(args.run, args.destination, step, args.weights)
    else:
        done = lm.export_lm(args.run, args.destination, args.format, step, args.weights, args.codec)
    report = {
        "command": "export",
        "run": args.run,
        "destination": str(done.folder),
        "format": args.format,
        "step": done.step,
        "weights": done.weights,
    }
    if not args.json:
        print(f"{done.folder}: update {done.step}, weights {done.weights}")
    return report
