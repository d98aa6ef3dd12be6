"""Arguments of the command `audiogen-fast`; imports nothing heavy."""

import argparse

from audiogen_fast import __version__
from audiogen_fast.cli.evaluate_options import add_evaluate
from audiogen_fast.cli.options import (
    DTYPES,
    add_common,
    add_device_option,
    add_model_options,
    add_sampling_options,
    add_source_options,
    add_where_option,
)
from audiogen_fast.cli.value_types import (
    count,
    port,
    positive,
    positive_count,
    probability,
    seeds,
)

PROGRAM = "audiogen-fast"
FORMATS = ("wav", "flac", "ogg", "mp3")
STRATEGIES = ("loudness", "peak", "rms", "clip")
PACKED_FORMATS = ("float32", "bfloat16", "int8", "int4")


def build_parser() -> argparse.ArgumentParser:
    """The parser; `args.command` tells which command was given."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Text to sound with AudioGen.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_continue(commands)
    _add_convert(commands)
    _add_manifest(commands)
    _add_encode(commands)
    _add_train(commands)
    _add_export(commands)
    add_evaluate(commands)
    _add_demo(commands)
    env = commands.add_parser("env", help="report versions, devices and backends")
    add_common(env)
    return parser


def _add_generate(commands: argparse._SubParsersAction) -> None:
    generate = commands.add_parser(
        "generate",
        help="make a sound for each description",
        description="Make a sound for each description. Run again after an interruption, the same "
        "command makes only the files that are missing.",
    )
    generate.add_argument("descriptions", nargs="*", metavar="DESCRIPTION")
    generate.add_argument(
        "--file",
        metavar="FILE",
        help="more descriptions, one per line; blank lines and lines that begin with # are "
        "skipped; - for standard input",
    )
    generate.add_argument("--duration", type=positive, default=5.0, help="seconds (default 5)")
    _add_sound_options(generate)


def _add_continue(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "continue",
        help="continue recordings",
        description="Continue recordings. Each result begins with its recording as the codec hears "
        "it. Run again after an interruption, the same command makes only what is missing.",
    )
    command.add_argument("audio", nargs="+", metavar="AUDIO", help="wav, flac, ogg or mp3")
    command.add_argument(
        "--description",
        action="append",
        metavar="TEXT",
        help="what to continue with: one for all recordings, or repeated, one for each",
    )
    command.add_argument(
        "--prompt-duration",
        type=positive,
        metavar="SECONDS",
        help="take this much of each recording, from its start (default: all of it)",
    )
    command.add_argument(
        "--duration", type=positive, default=10.0, help="seconds, recording included (default 10)"
    )
    _add_sound_options(command)


def _add_convert(commands: argparse._SubParsersAction) -> None:
    convert = commands.add_parser(
        "convert",
        help="convert a checkpoint of any layout to the package's own format",
        description="Convert a checkpoint of any layout to the package's own format: a folder of "
        "safetensors with the text encoder in it, which loads by memory map and without a network.",
    )
    convert.add_argument("source", help="hub id, folder, file or URL")
    convert.add_argument("destination", help="folder; must be new or empty")
    convert.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the stored language model (default: as in the source)",
    )
    convert.add_argument(
        "--quantize",
        choices=PACKED_FORMATS,
        help="pack the language model in this format for the native engine on a CPU: smaller, and "
        "loaded in no time, but for that engine only",
    )
    convert.add_argument(
        "--group-size",
        type=int,
        choices=(64, 128),
        default=128,
        help="columns per scale of int4 (default 128; 64 is more exact and a little larger)",
    )
    convert.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    add_source_options(convert)
    add_common(convert)


def _add_manifest(commands: argparse._SubParsersAction) -> None:
    manifest = commands.add_parser(
        "manifest",
        help="list the recordings of a folder for training",
        description="List all recordings below a folder, those in tar and zip archives included, "
        "with their durations. What cannot be read is left out and reported.",
    )
    manifest.add_argument("folder", help="is searched at any depth")
    manifest.add_argument(
        "--output",
        metavar="FILE",
        help=".jsonl, .jsonl.gz or .csv (default: data.jsonl in the folder)",
    )
    manifest.add_argument(
        "--relative",
        action="store_true",
        help="paths relative to the manifest, which can then move with the recordings (default: "
        "absolute paths)",
    )
    manifest.add_argument(
        "--decode",
        action="store_true",
        help="decode all of it, to find what is damaged or silent, and the peaks",
    )
    manifest.add_argument(
        "--workers", type=positive_count, default=8, help="files at a time (default 8)"
    )
    manifest.add_argument("--overwrite", action="store_true", help="replace a manifest")
    add_common(manifest)


def _add_encode(commands: argparse._SubParsersAction) -> None:
    encode = commands.add_parser(
        "encode",
        help="write the codes of recordings and the encodings of their texts for training",
        description="Write what the codec and the text encoder of a checkpoint make of a "
        "manifest, so that training needs neither. Run again after an interruption, the same "
        "command goes on where it was.",
    )
    encode.add_argument("manifest", help=".jsonl, .jsonl.gz, .csv, or a folder with one")
    encode.add_argument(
        "--checkpoint", required=True, help="hub id, folder, file or URL of the model"
    )
    encode.add_argument("--output", required=True, metavar="FOLDER", help="made if need be")
    encode.add_argument("--root", metavar="FOLDER", help="that relative paths are relative to")
    add_where_option(encode, ", such as split=train")
    encode.add_argument(
        "--segment-duration",
        type=positive,
        default=10.0,
        metavar="SECONDS",
        help="length of a sample (default 10); the end of shorter ones is silence",
    )
    encode.add_argument(
        "--stride",
        type=positive,
        metavar="SECONDS",
        help="from one sample of a recording to the next (default: the length of a sample)",
    )
    encode.add_argument(
        "--min-segment-ratio",
        type=probability,
        default=0.5,
        help="leave out the last sample of a recording that has less than this of its length "
        "(default 0.5)",
    )
    encode.add_argument(
        "--allow-missing-descriptions",
        action="store_true",
        help="keep recordings of which nothing is said",
    )
    encode.add_argument("--no-text", action="store_true", help="do not encode the texts")
    encode.add_argument(
        "--text-dtype", choices=("float32", "float16"), default="float32", help="(default float32)"
    )
    encode.add_argument(
        "--batch-size", type=positive_count, default=8, help="samples at a time (default 8)"
    )
    encode.add_argument(
        "--shard-items",
        type=positive_count,
        default=4096,
        help="samples in a file, of which an interruption loses one (default 4096)",
    )
    encode.add_argument(
        "--workers", type=count, default=0, help="processes that read recordings (default 0)"
    )
    add_device_option(encode)
    add_source_options(encode)
    add_common(encode)


def _add_train(commands: argparse._SubParsersAction) -> None:
    from audiogen_fast.training.train import add_arguments

    train = commands.add_parser(
        "train",
        help="train a language model or a codec",
        description="Train in one process, from the newest checkpoint of the run if there is one. "
        "On several GPUs: torchrun --nproc_per_node=N -m audiogen_fast.training.train RECIPE.",
    )
    add_arguments(train)
    add_common(train)


def _add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser(
        "export",
        help="write the models of a training run for use",
        description="Write the models of a training run as a folder that AudioGen.get_pretrained "
        "loads.",
    )
    export.add_argument("run", help="folder of the run")
    export.add_argument("destination", help="folder to write to")
    export.add_argument(
        "--format",
        choices=("audiogen_fast", "audiocraft"),
        default="audiogen_fast",
        help="audiocraft: the files that audiocraft loads too (default audiogen_fast)",
    )
    export.add_argument(
        "--step", metavar="N", help="number of the update, or best (default: the newest)"
    )
    export.add_argument(
        "--weights",
        choices=("ema", "last"),
        default="ema",
        help="the moving average (default) or the last weights",
    )
    export.add_argument("--codec", help="checkpoint of the codec (default: the run's)")
    export.add_argument("--adapter", action="store_true", help="only the LoRA adapters")
    add_common(export)


def _add_demo(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser(
        "demo",
        help="open a page in a browser that makes sounds of what is typed there",
        description="Serve a page that makes sounds of what is typed there, and plays them while "
        "they are made. Ctrl-C ends it. It needs gradio: pip install 'audiogen-fast[web]'.",
    )
    demo.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default 127.0.0.1: this machine only; 0.0.0.0: everyone who "
        "can reach it)",
    )
    demo.add_argument(
        "--port", type=port, default=7860, help="(default 7860); 0 takes one that is free"
    )
    demo.add_argument(
        "--browser",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="open the page in this machine's browser (default: print its address)",
    )
    add_model_options(demo.add_argument_group("model"))
    add_common(demo)


def _add_sound_options(parser: argparse.ArgumentParser) -> None:
    """What generating and continuing have in common."""
    parser.add_argument(
        "--output", default="sounds", metavar="FOLDER", help="made if need be (default sounds)"
    )
    parser.add_argument("--format", choices=FORMATS, default="wav", help="(default wav)")
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="loudness",
        help="how the level is set: loudness (-14 LKFS, compressed; default), peak (-1 dB), rms "
        "(-18 dB) or clip (as it is, cut off at -1 dB)",
    )
    parser.add_argument("--overwrite", action="store_true", help="make files again that are there")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--seed",
        type=seeds,
        default=[0],
        metavar="N[,N...]",
        help="sound i is drawn with seed N + i, or with the i-th of a list (default 0)",
    )
    add_sampling_options(sampling)
    sampling.add_argument(
        "--two-step-cfg", action="store_true", help="encode the two halves of guidance apart"
    )
    sampling.add_argument(
        "--extend-stride",
        type=positive,
        metavar="SECONDS",
        help="by which each window of a long sound advances (default 2, or half a window)",
    )
    sampling.add_argument(
        "--batch-invariant",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a sound does not depend on the other descriptions of its batch (default); in the "
        "original it depends on the longest of them",
    )

    model = parser.add_argument_group("model")
    add_model_options(model)
    model.add_argument(
        "--batch-size", type=positive_count, default=8, help="sounds at a time (default 8)"
    )
    add_common(parser)
