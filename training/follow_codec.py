"""A language model for the codes of another codec, so that it need not begin anew.

    audiogen-fast encode SOUNDS --checkpoint MODEL --output old ...
    audiogen-fast encode SOUNDS --checkpoint CODEC --output new ...
    python -m audiogen_fast.training.follow_codec MODEL OUT --codec CODEC --codes old new

A codec that is trained on gives its codebook entries other meanings, and its language model knows
none of them. Both caches are of the same sounds, so how often the new code i falls on the frames of
the old code j says what i means: the embedding of i, and its row of the output head, become the
mean of those of the old codes by that count. OUT loads like MODEL, and is what `continue_from`
takes; the training that follows must make up what codes alone do not tell.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from audiogen_fast.errors import AudioGenFastError, check
from audiogen_fast.models.lm import LMModel
from audiogen_fast.models.loaders import load_compression_model, load_lm_model
from audiogen_fast.models.saving import save_pretrained
from audiogen_fast.models.weights import fingerprint
from audiogen_fast.training.data import TokenCache

PRIOR_FRAMES = 0.5
"""How many frames the old codes as a whole count for in each new one: all there is of a code that
was never seen."""


def count_pairs(caches: Iterable[tuple[TokenCache, TokenCache]], n_q: int, card: int) -> Tensor:
    """Frames by codebook, new code and old code: float32 `[n_q, card, card]`.

    Args:
        caches: old and new codes of the same samples in the same order. Frames of padding, which
            are not of the sounds, are left out.
    Raises:
        InvalidInputError: two caches are not of the same samples, or of other codebooks.
    """
    counts = torch.zeros(n_q, card * card)
    for old, new in caches:
        where = f"the codes of {old.folder} and {new.folder}"
        check(
            len(old) == len(new) > 0,
            f"{where} must be of as many samples, at least one, got {len(old)} and {len(new)}",
        )
        for cache in (old, new):
            codec = cache.settings["codec"]
            check(
                (codec["n_q"], codec["card"]) == (n_q, card),
                f"{cache.folder} must have {n_q} codebooks of {card} entries, as the model has, "
                f"got {codec['n_q']} of {codec['card']}",
            )
        for number in range(len(old)):
            one, other = old.sample(number), new.sample(number)
            check(
                _identity(one.row) == _identity(other.row) and one.codes.shape == other.codes.shape,
                f"{where} must be of the same samples: number {number} is {one.row['id']} with "
                f"{one.codes.shape[1]} frames and {other.row['id']} with {other.codes.shape[1]}",
            )
            pairs = (other.codes * card + one.codes)[:, : old.real_frames(one.row)]
            counts.scatter_add_(1, pairs, torch.ones(pairs.shape))
    return counts.view(n_q, card, card)


def _identity(row: dict) -> tuple:
    return tuple(row[name] for name in ("id", "seek_time", "n_frames", "mixed_with"))


def carry_over(lm: LMModel, counts: Tensor) -> None:
    """Give each code the mean of the old ones' embeddings and head rows, in place.

    Args:
        counts: of `count_pairs`.
    """
    prior = counts.sum(1, keepdim=True)
    prior = prior * (PRIOR_FRAMES / prior.sum(-1, keepdim=True).clamp(min=1))
    shares = counts + prior
    shares /= shares.sum(-1, keepdim=True).clamp(min=1e-30)
    with torch.no_grad():
        for share, embedding, head in zip(shares, lm.emb, lm.linears, strict=True):
            # The row after the codes is the special token's, and stays.
            for rows in _rows(embedding, head):
                rows[: lm.card] = (share @ rows[: lm.card].float()).to(rows.dtype)


def _rows(embedding: nn.Module, head: nn.Module) -> list[Tensor]:
    found = [embedding.weight, head.weight]
    return found if head.bias is None else [*found, head.bias]


def follow_codec(
    model: str | Path,
    output: str | Path,
    codec: str | Path,
    codes: Sequence[tuple[str | Path, str | Path]],
) -> Tensor:
    """Write `model`, made ready for the codes of `codec`, to the folder `output`.

    Args:
        model: language model, with the codec whose codes it knows, as `AudioGen.get_pretrained`
            takes it.
        codec: as `CompressionModel.get_pretrained` takes it.
        codes: pairs of caches that `audiogen-fast encode` wrote of the same sounds: with the codec
            of `model`, and with `codec`.
    Returns:
        How many codes of each codebook were seen in the new caches, int64 `[n_q]`.
    Raises:
        InvalidInputError: caches of other codecs, of different samples, or of other codebooks.
    """
    check(len(codes) > 0, "codes must have a pair of caches at least, got none")
    lm = load_lm_model(model, dtype=torch.float32)
    check(lm.packed is None, f"model must not be packed for the native engine, got {model}")
    before, after = load_compression_model(model), load_compression_model(codec)
    prints = fingerprint(before), fingerprint(after)
    caches = [(TokenCache(old), TokenCache(new)) for old, new in codes]
    for pair in caches:
        for cache, own, name in zip(pair, prints, (model, codec), strict=True):
            check(
                cache.settings["codec"]["fingerprint"] == own,
                f"{cache.folder} must have codes of the codec of {name}, got those of another one",
            )
    counts = count_pairs(caches, lm.n_q, lm.card)
    carry_over(lm, counts)
    save_pretrained(output, lm, after)
    return (counts.sum(-1) > 0).sum(-1)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m audiogen_fast.training.follow_codec",
        description=__doc__.splitlines()[0],
    )
    parser.add_argument("model", help="folder, file or hub id of language model and codec")
    parser.add_argument("output", help="folder for the model")
    parser.add_argument("--codec", required=True, help="folder, file or hub id of the new codec")
    parser.add_argument(
        "--codes",
        nargs=2,
        action="append",
        required=True,
        metavar=("OLD", "NEW"),
        help="caches of the same sounds by the codec of MODEL and by CODEC; may be given again",
    )
    args = parser.parse_args(argv)
    try:
        seen = follow_codec(args.model, args.output, args.codec, args.codes)
    except AudioGenFastError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    numbers = ", ".join(str(int(number)) for number in seen)
    print(f"{args.output}: carried over, codes of each codebook that were seen: {numbers}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
