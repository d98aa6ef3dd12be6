"""The command `audiogen-fast`: what it runs, what it prints, how it ends.

Exit status: 0; 2 for wrong usage or input; 1 for anything else that failed (a checkpoint, a file);
130 after Ctrl-C. Everything heavy is imported by the command that needs it, so `--help` is quick.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from audiogen_fast.cli.parser import PROGRAM, build_parser
from audiogen_fast.errors import InvalidInputError

_MAX_MESSAGE = 600


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process by default) and return its exit status."""
    args = _parse(argv)
    try:
        if args.command == "train":
            from audiogen_fast.cli.train import train

            return train(args)
        if args.command == "demo":
            from audiogen_fast.cli.demo import demo

            return demo(args)
        report = _run(args)
        if args.json:
            print(json.dumps(report, indent=2))
    except KeyboardInterrupt:
        resume = args.command in ("generate", "continue", "encode")
        advice = "; the same command makes what is missing" if resume else ""
        print(f"{PROGRAM}: interrupted{advice}", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        print(f"{PROGRAM}: error: {_one_line(error, whole=args.debug)}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInputError) else 1
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if args.command == "train":
        # A command among others cannot have its options in the midst of its arguments: argparse
        # leaves over what follows them.
        while rest and not rest[0].startswith("-"):
            args.changes.append(rest.pop(0))
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _run(args: argparse.Namespace) -> dict[str, Any]:
    """Do what was asked; the result is what `--json` prints."""
    if args.command == "env":
        from audiogen_fast.env import get_env, show_env

        if args.json:
            return get_env()
        print(show_env())
        return {}
    if args.command == "convert":
        from audiogen_fast.cli.convert import convert

        return convert(args)
    if args.command == "export":
        from audiogen_fast.cli.train import export

        return export(args)
    if args.command == "manifest":
        from audiogen_fast.cli.make_manifest import make_manifest

        return make_manifest(args)
    if args.command == "encode":
        from audiogen_fast.cli.encode import encode

        return encode(args)
    if args.command == "evaluate":
        from audiogen_fast.cli.evaluate import evaluate

        return evaluate(args)
    from audiogen_fast.cli.sounds import continue_sounds, generate_sounds

    return generate_sounds(args) if args.command == "generate" else continue_sounds(args)


def _one_line(error: Exception, whole: bool) -> str:
    message = " ".join(str(error).split()) or type(error).__name__
    if whole or len(message) <= _MAX_MESSAGE:
        return message
    return f"{message[:_MAX_MESSAGE]} ... (--debug shows all of it)"
