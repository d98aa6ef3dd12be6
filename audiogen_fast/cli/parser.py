"""Arguments of the command `audiogen-fast`; imports nothing heavy."""

import argparse
import math

from audiogen_fast import __version__

PROGRAM = "audiogen-fast"
FORMATS = ("wav", "flac", "ogg", "mp3")
STRATEGIES = ("loudness", "peak", "rms", "clip")
DTYPES = ("float32", "float16", "bfloat16")
PACKED_FORMATS = ("float32", "bfloat16", "int8", "int4")
QUANTIZED_FORMATS = ("int8", "int4")
EVALUATION_METRICS = ("fad", "kad", "kld", "text_consistency", "language", "codec")
DEFAULT_MODEL = "facebook/audiogen-medium"


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
    _add_evaluate(commands)
    env = commands.add_parser("env", help="report versions, devices and backends")
    _add_common(env)
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
    generate.add_argument("--duration", type=_positive, default=5.0, help="seconds (default 5)")
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
        type=_positive,
        metavar="SECONDS",
        help="take this much of each recording, from its start (default: all of it)",
    )
    command.add_argument(
        "--duration", type=_positive, default=10.0, help="seconds, recording included (default 10)"
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
    _add_source_options(convert)
    _add_common(convert)


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
        "--workers", type=_positive_count, default=8, help="files at a time (default 8)"
    )
    manifest.add_argument("--overwrite", action="store_true", help="replace a manifest")
    _add_common(manifest)


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
    encode.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only these rows, such as split=train; may be repeated",
    )
    encode.add_argument(
        "--segment-duration",
        type=_positive,
        default=10.0,
        metavar="SECONDS",
        help="length of a sample (default 10); the end of shorter ones is silence",
    )
    encode.add_argument(
        "--stride",
        type=_positive,
        metavar="SECONDS",
        help="from one sample of a recording to the next (default: the length of a sample)",
    )
    encode.add_argument(
        "--min-segment-ratio",
        type=_probability,
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
        "--batch-size", type=_positive_count, default=8, help="samples at a time (default 8)"
    )
    encode.add_argument(
        "--shard-items",
        type=_positive_count,
        default=4096,
        help="samples in a file, of which an interruption loses one (default 4096)",
    )
    encode.add_argument(
        "--workers", type=_count, default=0, help="processes that read recordings (default 0)"
    )
    encode.add_argument("--device", help="such as cpu or cuda:1 (default: CUDA where there is one)")
    _add_source_options(encode)
    _add_common(encode)


def _add_train(commands: argparse._SubParsersAction) -> None:
    from audiogen_fast.training.train import add_arguments

    train = commands.add_parser(
        "train",
        help="train a language model or a codec",
        description="Train in one process, from the newest checkpoint of the run if there is one. "
        "On several GPUs: torchrun --nproc_per_node=N -m audiogen_fast.training.train RECIPE.",
    )
    add_arguments(train)
    _add_common(train)


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
    _add_common(export)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="measure generated sounds against recordings",
        description="Measure systems against reference recordings, beside what real clips, "
        "shuffled captions and noise score. Without a system, that is the whole table.",
    )
    evaluate.add_argument(
        "--reference", required=True, metavar="MANIFEST", help=".jsonl, .jsonl.gz, .csv or a folder"
    )
    _add_where(evaluate, "--where", "of the references")
    evaluate.add_argument("--root", metavar="FOLDER", help="that relative paths are relative to")
    evaluate.add_argument(
        "--limit", type=_positive_count, metavar="N", help="so many references, drawn by the seed"
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
    _add_where(
        measures, "--head-where", "that the small text measure learns from (default split=metric)"
    )
    measures.add_argument(
        "--no-degraded",
        action="store_true",
        help="leave out the rows of real clips with noise and without high frequencies",
    )
    measures.add_argument(
        "--items",
        type=_count,
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
        "--duration", type=_positive, metavar="SECONDS", help="(default: as long as the reference)"
    )
    _add_sampling_options(sampling)
    sampling.add_argument(
        "--batch-size", type=_positive_count, default=8, help="sounds at a time (default 8)"
    )
    evaluate.add_argument(
        "--device", help="such as cpu or cuda:1 (default: CUDA where there is one)"
    )
    _add_common(evaluate)


def _add_where(parser: argparse._ActionsContainer, option: str, which: str) -> None:
    parser.add_argument(
        option,
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help=f"only these rows {which}; may be repeated",
    )


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
        type=_seeds,
        default=[0],
        metavar="N[,N...]",
        help="sound i is drawn with seed N + i, or with the i-th of a list (default 0)",
    )
    _add_sampling_options(sampling)
    sampling.add_argument(
        "--two-step-cfg", action="store_true", help="encode the two halves of guidance apart"
    )
    sampling.add_argument(
        "--extend-stride",
        type=_positive,
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
    model.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"hub id, folder, file, URL or debug (default {DEFAULT_MODEL})",
    )
    model.add_argument(
        "--batch-size", type=_positive_count, default=8, help="sounds at a time (default 8)"
    )
    model.add_argument("--device", help="such as cpu or cuda:1 (default: CUDA where there is one)")
    model.add_argument(
        "--dtype", choices=DTYPES, help="(default float32 on a CPU, float16 elsewhere)"
    )
    model.add_argument("--engine", default="auto", help="what decodes (default auto)")
    model.add_argument(
        "--quantize",
        choices=QUANTIZED_FORMATS,
        help="decode with weights packed in this format: faster, a little less exact",
    )
    _add_source_options(model)
    _add_common(parser)


def _add_sampling_options(sampling: argparse._ActionsContainer) -> None:
    sampling.add_argument(
        "--top-k", type=_count, default=250, help="draw among this many codes (default 250); 0: all"
    )
    sampling.add_argument(
        "--top-p",
        type=_probability,
        default=0.0,
        help="draw among the codes that reach this probability; takes precedence over --top-k",
    )
    sampling.add_argument("--temperature", type=_not_negative, default=1.0, help="(default 1)")
    sampling.add_argument("--greedy", action="store_true", help="take the most likely codes")
    sampling.add_argument(
        "--cfg-coef", type=_number, default=3.0, help="strength of guidance (default 3); 1: none"
    )


def _add_source_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--local-files-only", action="store_true", help="use the cache, never the network"
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, and nothing else, on stdout"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be finite, got {text}")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def _not_negative(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return value


def _probability(text: str) -> float:
    value = _not_negative(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must lie in 0..1, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return value


def _positive_count(text: str) -> int:
    value = _count(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be at least 1, got 0")
    return value


def _seeds(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
