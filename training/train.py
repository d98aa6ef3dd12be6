"""Training from the command line.

    torchrun --standalone --nproc_per_node=N -m audiogen_fast.training.train RECIPE [key=value ...]
    python -m audiogen_fast.training.train RECIPE [section.key=value ...]

Exit status: 0 at the end of the recipe; 128 + N after signal N, with a checkpoint saved; 2 for a
mistake in the recipe; 1 for anything else.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence

from audiogen_fast.errors import AudioGenFastError, InvalidInputError
from audiogen_fast.training.fields import to_toml
from audiogen_fast.training.recipe import load_recipe, recipe_names, solver_part


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a training run."""
    parser.add_argument(
        "recipe",
        help="name of a recipe, TOML file, or checkpoint whose configuration becomes the recipe",
    )
    parser.add_argument(
        "changes", nargs="*", metavar="section.key=value", help="changes of the recipe"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the whole configuration and stop"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything without memory, print sizes and stop",
    )
    parser.add_argument(
        "--world-size",
        type=int,
        metavar="N",
        help="processes that --dry-run reckons with (default: those there are)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m audiogen_fast.training.train",
        description="Train a language model or a codec.",
        epilog=f"Recipes: {', '.join(recipe_names())}.",
    )
    add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_intermixed_args(argv)
    try:
        return train(args)
    except AudioGenFastError as error:
        if args.debug:
            traceback.print_exc()
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInputError) else 1


def train(args: argparse.Namespace) -> int:
    """Do what the arguments of `add_arguments` ask; the exit status."""
    config = load_recipe(args.recipe, args.changes)
    if args.print_config:
        print(to_toml(config), end="")
        return 0
    solver_class = solver_part(config.solver, 1)
    if args.dry_run:
        world_size = args.world_size or int(os.environ.get("WORLD_SIZE", 1))
        facts = solver_class.dry_run(config, world_size)
        if getattr(args, "json", False):
            print(json.dumps(facts, indent=2))
        else:
            width = max(map(len, facts))
            print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))
        return 0
    from audiogen_fast.training import parallel

    ranks = parallel.start(config.parallel, config.safety)
    try:
        stopped = solver_class(config, ranks).run()
    finally:
        parallel.stop()
    return 128 + stopped if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
