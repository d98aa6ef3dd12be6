"""Arguments of `audiogen-fast evaluate`; imports nothing heavy."""

import argparse

from audiogen_fast.cli.options import (
    add_common,
    add_device_option,
    add_sampling_options,
    add_where_option,
)
from audiogen_fast.cli.value_types import count, positive, positive_count

EVALUATION_METRICS = ("fad", "kad", "kld", "text_consistency", "language", "codec")


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="measure generated sounds against recordings",
        description="Measure systems against reference recordings, beside what real clips, "
        "shuffled captions and noise score. Without a system, that is the whole table.",
    )
    evaluate.add_argument(
        "--reference", required=True, metavar="MANIFEST", help=".jsonl, .jsonl.gz, .csv or a folder"
    )
    add_where_option(evaluate, " of the references")
    evaluate.add_argument("--root", metavar="FOLDER", help="that relative paths are relative to")
    evaluate.add_argument(
        "--limit", type=positive_count, metavar="N", help="so many references, drawn by the seed"
    )
    evaluate.add_argument(
        "--output",
        default="evaluation",
        metavar="FOLDER",
        help="for index.html, report.json, table.csv and items.csv (default evaluation)",
    )
    evaluate.add_argument("--overwrite", action="store_true", help="replace a report that is there")
    evaluate.add_argument("--quiet", action="store_true", help="print nothing but errors")

    systems = evaluate.add_argument_group("systems")
    for option, what in (
        ("--generated", "a folder of sounds that a system made of the captions"),
        ("--model", "hub id, folder or file of a model that makes them now"),
        ("--codec", "hub id, folder or file of a codec that encodes and decodes the references"),
    ):
        systems.add_argument(
            option,
            action="append",
            default=[],
            metavar="[NAME=]PLACE",
            help=f"{what}, NAME being that of its row; may be repeated",
        )

    measures = evaluate.add_argument_group("measures")
    measures.add_argument(
        "--metrics",
        nargs="+",
        choices=EVALUATION_METRICS,
        metavar="METRIC",
        help=f"some of {', '.join(EVALUATION_METRICS)} (default: all that can be had)",
    )
    measures.add_argument(
        "--encoder",
        action="append",
        metavar="NAME[:PLACE]",
        help="of sounds: aisfx (default), clap:FOLDER, passt; may be repeated",
    )
    measures.add_argument(
        "--text-encoder",
        metavar="NAME[:PLACE]",
        help="of sounds and captions: clap:FOLDER or contrastive:FILE (default: an --encoder that "
        "can do both, else a small one trained on --head-where)",
    )
    add_where_option(
        measures,
        " that the small text measure learns from (default split=metric)",
        "--head-where",
    )
    measures.add_argument(
        "--no-degraded",
        action="store_true",
        help="leave out the rows of real clips with noise and without high frequencies",
    )
    measures.add_argument(
        "--items",
        type=count,
        default=4,
        metavar="N",
        help="best and worst clips of each system on the page (default 4)",
    )

    sampling = evaluate.add_argument_group("sampling, for --model")
    sampling.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of all that is drawn; sound i is drawn with seed N + i (default 0)",
    )
    sampling.add_argument(
        "--duration", type=positive, metavar="SECONDS", help="(default: as long as the reference)"
    )
    add_sampling_options(sampling)
    sampling.add_argument(
        "--batch-size", type=positive_count, default=8, help="sounds at a time (default 8)"
    )
    add_device_option(evaluate)
    add_common(evaluate)
