"""Makes a text encoder small enough to be shipped: fewer tokens, no pooler, weights in int8.

    python -m audiogen_fast.training.shrink_encoder IN OUT --texts MANIFEST

IN is a folder or hub id of an encoder of transformers with a WordPiece tokenizer (BERT, MiniLM and
their like). OUT is a folder for `conditioners.NAME.encoder.name`. The layout of its weights is that
of `audiogen_fast.modules.encoder_files`.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiogen_fast.errors import AudioGenFastError, check
from audiogen_fast.files import write_atomically
from audiogen_fast.modules.encoder_conditioner import EncoderConditioner, most_tokens
from audiogen_fast.modules.encoder_files import (
    INT8_FILE,
    WEIGHTS_FILE,
    pack_int8,
    write_compact_json,
    write_int8,
)
from audiogen_fast.training import wordpiece

DTYPES = ("int8", "float32")
_COLUMNS = ("description", "caption")
_BATCH = 32
# Of tokenizer_config.json: old numbers, how texts were cut once, and where the tokenizer was.
_DROPPED = (
    "added_tokens_decoder",
    "is_local",
    "local_files_only",
    "max_length",
    "stride",
    "truncation_strategy",
)


@dataclass
class Shrunk:
    """What was made, and how near its states are to the encoder's."""

    folder: str
    bytes: int
    vocabulary: int
    max_length: int | None
    texts: int
    """That were compared: those whose tokens are all kept."""
    cosine_min: float | None
    """Over the states of all their tokens; None without texts."""
    cosine_mean: float | None


def shrink_encoder(
    source: str | Path,
    output: str | Path,
    texts: Sequence[str] = (),
    vocabulary: int = 8000,
    max_length: int | None = None,
    dtype: str = "int8",
) -> Shrunk:
    """Write a small copy of an encoder to the folder `output`.

    Args:
        source: folder or hub id.
        texts: all of whose tokens are kept, as far as they have any.
        vocabulary: tokens to keep; from as many as there are on, all stay.
        max_length: tokens of a text; positions beyond are cut off. None keeps all.
        dtype: `int8`, or `float32` for an ordinary `model.safetensors`.
    Raises:
        InvalidInputError: `output` is not empty, or a number does not fit the encoder.
        CheckpointError: the encoder cannot be loaded.
    """
    check(dtype in DTYPES, f"dtype must be one of {DTYPES}, got {dtype!r}")
    output = Path(output)
    empty = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    check(empty, f"output must be a new or an empty folder, got {output}")
    whole = EncoderConditioner(str(source), 1)
    whole.load()
    state, config = dict(whole._encoder.state_dict()), whole._encoder.config
    tokenizer = wordpiece.tokenizer_json(whole._tokenizer)
    needed = {token for text in texts for token in whole._tokenizer.tokenize(text)}
    tokens = wordpiece.chosen_tokens(tokenizer, needed, vocabulary)
    tokenizer, renumbered = wordpiece.trimmed(tokenizer, tokens)
    table = _name_of(whole._encoder, whole._encoder.get_input_embeddings().weight)
    state[table] = state[table][list(renumbered)]
    if max_length is not None:
        _cut_positions(whole._encoder, state, max_length)
    config = _changed(config, renumbered, max_length)
    state = {whole._prefix + name: tensor for name, tensor in state.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".shrinking-") as temporary:
        staged = Path(temporary, output.name)
        _write(staged, whole._tokenizer, tokenizer, config, state, dtype, max_length)
        os.replace(staged, output)
    small = EncoderConditioner(str(output), 1)
    small.load()
    alike = _alike(whole, small, texts)
    every = torch.cat(list(_cosines(whole, small, alike))) if alike else None
    return Shrunk(
        str(output),
        sum(path.stat().st_size for path in output.iterdir()),
        len(tokens),
        small.limit,
        len(alike),
        None if every is None else every.min().item(),
        None if every is None else every.mean().item(),
    )


def _name_of(encoder: nn.Module, parameter: Tensor) -> str:
    return next(name for name, p in encoder.named_parameters() if p is parameter)


def _cut_positions(encoder: nn.Module, state: dict[str, Tensor], max_length: int) -> None:
    """Shorten the table of positions, which has one for each token of the longest text."""
    most = most_tokens(encoder)
    check(
        most is not None and 1 <= max_length <= most,
        f"max_length must lie in 1..{most}, the positions of the encoder, got {max_length}",
    )
    tables = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == most
        and "position" in name and module is not encoder.get_input_embeddings()
    ]  # fmt: skip
    check(
        len(tables) == 1,
        f"max_length can be set for encoders with one table of positions, found {tables}",
    )
    state[f"{tables[0]}.weight"] = state[f"{tables[0]}.weight"][:max_length]


def _changed(config: Any, renumbered: dict[int, int], max_length: int | None) -> Any:
    """The configuration with new sizes and the new numbers of its special tokens."""
    config = type(config).from_dict(config.to_dict())
    config.vocab_size = len(renumbered)
    for name, number in config.to_dict().items():
        if name.endswith("_token_id") and isinstance(number, int):
            setattr(config, name, renumbered.get(number))
    if max_length is not None:
        config.max_position_embeddings = max_length
    return config


def _write(
    output: Path,
    tokenizer: Any,
    content: dict[str, Any],
    config: Any,
    state: dict[str, Tensor],
    dtype: str,
    max_length: int | None,
) -> None:
    from safetensors.torch import save

    output.mkdir()
    tokenizer.save_pretrained(output)  # for everything beside tokenizer.json
    for extra in ("vocab.txt", "special_tokens_map.json", "added_tokens.json"):
        (output / extra).unlink(missing_ok=True)
    write_compact_json(output / "tokenizer.json", content)
    path = output / "tokenizer_config.json"
    options = json.loads(path.read_text())
    for name in _DROPPED:
        options.pop(name, None)
    if max_length is not None:
        options["model_max_length"] = max_length
    path.write_text(json.dumps(options, indent=2) + "\n")
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    if dtype == "int8":
        write_int8(output / INT8_FILE, pack_int8(state))
    else:
        write_atomically(output / WEIGHTS_FILE, save(state, {"format": "pt"}))
    config.save_pretrained(output)


def _alike(whole: EncoderConditioner, small: EncoderConditioner, texts: Sequence[str]) -> list[str]:
    """The texts that both split into the same tokens."""
    found = []
    for text in dict.fromkeys(texts):
        split = [
            one._tokenizer.convert_ids_to_tokens(one.tokenize([text])["input_ids"][0].tolist())
            for one in (whole, small)
        ]
        if text and split[0] == split[1]:
            found.append(text)
    return found


@torch.no_grad()
def _cosines(
    whole: EncoderConditioner, small: EncoderConditioner, texts: Sequence[str]
) -> Iterator[Tensor]:
    """Cosines of the states of all tokens of texts that both split alike."""
    texts = sorted(texts, key=len)  # little padding
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        ours, theirs = small.tokenize(batch), whole.tokenize(batch)
        cosines = torch.cosine_similarity(small.encode(ours), whole.encode(theirs), dim=-1)
        yield cosines[ours["attention_mask"].bool()]


def read_texts(path: str | Path) -> list[str]:
    """Texts of a manifest (`description` or `caption`), the lines of a `.txt` file, or the last
    column of a `.tsv` file without its comments and its `-`, such as the captions of the corpus.

    Raises:
        InvalidInputError: the file is not there, or has no such text.
    """
    path = Path(path)
    if path.suffix in (".txt", ".tsv"):
        check(path.is_file(), f"texts: no such file: {path}")
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        if path.suffix == ".tsv":
            cells = [line.split("\t")[-1].strip() for line in found if not line.startswith("#")]
            found = [cell for cell in cells if cell != "-"]
    else:
        from audiogen_fast.training.data.captions import Captions
        from audiogen_fast.training.data.manifest import read_manifest

        captions = Captions(lowercase=False)
        values = [meta.extra.get(name) for meta in read_manifest(path) for name in _COLUMNS]
        found = captions.texts(values)
    found = [text for text in dict.fromkeys(found) if text]
    check(bool(found), f"texts: {path} has no {' or '.join(_COLUMNS)}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m audiogen_fast.training.shrink_encoder", description=__doc__.splitlines()[0]
    )
    parser.add_argument("source", metavar="IN", help="folder or hub id of the encoder")
    parser.add_argument("output", metavar="OUT", help="new or empty folder")
    parser.add_argument("--vocabulary", type=int, default=8000, metavar="N", help="tokens to keep")
    parser.add_argument(
        "--texts",
        type=Path,
        metavar="MANIFEST",
        help="manifest whose descriptions keep all of their tokens, or a .txt or .tsv file",
    )
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens of a text (all)")
    parser.add_argument("--dtype", choices=DTYPES, default="int8", help="of the weights (int8)")
    args = parser.parse_args(argv)
    try:
        texts = [] if args.texts is None else read_texts(args.texts)
        made = shrink_encoder(
            args.source, args.output, texts, args.vocabulary, args.max_length, args.dtype
        )
    except AudioGenFastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(made), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
