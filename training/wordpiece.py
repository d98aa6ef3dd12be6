"""Vocabularies of WordPiece tokenizers: which tokens to keep, and the tokenizer with only those.

WordPiece splits a word by taking the longest token that fits, again and again (Wu et al. 2016,
section 4.1; Devlin et al. 2019). Where a longer token was removed shorter ones are taken, and a
text all of whose tokens were kept is split as before, since no longer token has been added.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from audiogen_fast.errors import InvalidInputError, check

_UNUSED = re.compile(r"\[unused\d+\]")
# Latin letters and signs; general punctuation, super- and subscripts, currency.
_LATIN, _PUNCTUATION = range(0x250), range(0x2000, 0x20D0)


def tokenizer_json(tokenizer: Any) -> dict[str, Any]:
    """What `tokenizer.json` of a tokenizer of transformers says.

    Raises:
        InvalidInputError: it is no WordPiece tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = {} if backend is None else json.loads(backend.to_str())
    kind = (content.get("model") or {}).get("type")
    check(kind == "WordPiece", f"the tokenizer to be trimmed must be WordPiece, got {kind}")
    return content


def chosen_tokens(content: Mapping[str, Any], needed: Iterable[str], size: int) -> list[str]:
    """The tokens to keep, in the order of their old numbers.

    First special tokens, then single characters of Latin script and punctuation, alone and as
    continuations, so that words in it stay words; then the `needed` ones; and then, as far as
    `size` goes, the others in the order of the vocabulary, which is about that of frequency.

    Args:
        content: see `tokenizer_json`.
        needed: tokens to keep whatever their place.
        size: of the new vocabulary.
    Raises:
        InvalidInputError: `size` is below the number of those that have to be kept.
    """
    vocabulary: dict[str, int] = content["model"]["vocab"]
    prefix = content["model"]["continuing_subword_prefix"]
    special = {token["content"] for token in content["added_tokens"]}
    special.add(content["model"]["unk_token"])
    kept = {token for token in vocabulary if token in special}
    kept |= {token for token in vocabulary if _is_common(_character(token, prefix))}
    kept |= {token for token in needed if token in vocabulary}
    check(
        size >= len(kept),
        f"vocabulary must be at least {len(kept)} (special tokens, single characters and what the "
        f"texts need), got {size}",
    )
    order = sorted(vocabulary, key=vocabulary.__getitem__)
    words = [t for t in order if _character(t, prefix) is None and not _UNUSED.fullmatch(t)]
    for token in (*words, *order):  # what is left out of `words` comes last
        if len(kept) == min(size, len(vocabulary)):
            break
        kept.add(token)
    return [token for token in order if token in kept]


def _character(token: str, prefix: str) -> str | None:
    """The character that the whole token is."""
    rest = token.removeprefix(prefix) if token != prefix else token
    return rest if len(rest) == 1 else None


def _is_common(character: str | None) -> bool:
    return character is not None and any(ord(character) in r for r in (_LATIN, _PUNCTUATION))


def trimmed(content: Mapping[str, Any], tokens: list[str]) -> tuple[dict[str, Any], dict[int, int]]:
    """`tokenizer.json` with these tokens alone, numbered in their order.

    Returns:
        The new content, without truncation or padding of its own; and new numbers by old ones.
    Raises:
        InvalidInputError: a part of it refers to a token that is not kept.
    """
    content = json.loads(json.dumps(content))
    old = content["model"]["vocab"]
    content["model"]["vocab"] = {token: number for number, token in enumerate(tokens)}
    renumbered = {old[token]: number for number, token in enumerate(tokens)}
    content["truncation"] = content["padding"] = None
    try:
        for token in content["added_tokens"]:
            token["id"] = renumbered[token["id"]]
        _renumber_processor(content.get("post_processor") or {}, renumbered)
    except KeyError as error:
        raise InvalidInputError(f"the tokenizer refers to the token {error}, not kept") from error
    return content, renumbered


def _renumber_processor(processor: dict[str, Any], renumbered: Mapping[int, int]) -> None:
    """Numbers in what puts special tokens around a text."""
    for part in processor.get("processors") or ():
        _renumber_processor(part, renumbered)
    for special in (processor.get("special_tokens") or {}).values():
        special["ids"] = [renumbered[number] for number in special["ids"]]
    for name in ("sep", "cls"):
        if name in processor:
            token, number = processor[name]
            processor[name] = [token, renumbered[number]]
