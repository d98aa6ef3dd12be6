"""Options that several commands share; imports nothing heavy."""

import argparse

from audiogen_fast.cli.value_types import count, not_negative, number, probability
from audiogen_fast.pretrained import TINY

DTYPES = ("float32", "float16", "bfloat16")
QUANTIZED_FORMATS = ("int8", "int4")
DEFAULT_MODEL = TINY


def add_model_options(model: argparse._ActionsContainer) -> None:
    model.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="hub id, folder, file, URL or debug; facebook/audiogen-medium is Meta's (default "
        f"{DEFAULT_MODEL}, the small one in the package)",
    )
    add_device_option(model)
    model.add_argument(
        "--dtype", choices=DTYPES, help="(default float32 on a CPU, float16 elsewhere)"
    )
    model.add_argument("--engine", default="auto", help="what decodes (default auto)")
    model.add_argument(
        "--quantize",
        choices=QUANTIZED_FORMATS,
        help="decode with weights packed in this format: faster, a little less exact",
    )
    add_source_options(model)


def add_sampling_options(sampling: argparse._ActionsContainer) -> None:
    sampling.add_argument(
        "--top-k",
        type=count,
        help="draw among this many codes; 0: all (default: the model's own, or 250)",
    )
    sampling.add_argument(
        "--top-p",
        type=probability,
        default=0.0,
        help="draw among the codes that reach this probability; takes precedence over --top-k",
    )
    sampling.add_argument(
        "--temperature", type=not_negative, help="(default: the model's own, or 1)"
    )
    sampling.add_argument("--greedy", action="store_true", help="take the most likely codes")
    sampling.add_argument(
        "--cfg-coef", type=number, default=3.0, help="strength of guidance (default 3); 1: none"
    )


def add_device_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: CUDA where there is one)")


def add_where_option(
    parser: argparse._ActionsContainer, which: str, option: str = "--where"
) -> None:
    """Conditions on the rows of a manifest, which `training.data.manifest.conditions` reads."""
    parser.add_argument(
        option,
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help=f"only these rows{which}; may be repeated",
    )


def add_source_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--local-files-only", action="store_true", help="use the cache, never the network"
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, and nothing else, on stdout"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
