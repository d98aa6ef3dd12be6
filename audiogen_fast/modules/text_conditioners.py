"""Conditioners that turn text into vectors: a T5 encoder, or a lookup table.

`encoder_conditioner` has the one for any other text encoder.
"""

import hashlib
import random
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from audiogen_fast.errors import CheckpointError, check
from audiogen_fast.modules.encoder_files import quiet_transformers

# [B, L, D] vectors and their int mask [B, L]; masked vectors are exactly zero.
ConditionType = tuple[Tensor, Tensor]
_ENCODER_PARAMETER = re.compile(r"(?:^|\.)conditioners\.[^.]+\.(?:t5|text_model)\.")
_STOP_WORDS = frozenset("a an the of in on at to and or is are was were with for by it its".split())


def hash_trick(word: str, n_bins: int) -> int:
    """A stable bin in `0..n_bins - 1` for any string."""
    return int(hashlib.sha256(word.encode("utf-8")).hexdigest(), 16) % n_bins


def length_to_mask(lengths: Tensor) -> Tensor:
    """int `[B, max(1, longest)]`: 1 where the index is below the row's length."""
    longest = max(1, int(lengths.max()))
    return (torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)).int()


class NoopTokenizer:
    """One token per text: for labels such as a category, where the whole string counts."""

    def __init__(self, n_bins: int, pad_idx: int = 0):
        self.n_bins, self.pad_idx = n_bins, pad_idx

    def __call__(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        tokens = [self.pad_idx if t is None else hash_trick(t, self.n_bins) for t in texts]
        lengths = torch.tensor([0 if t is None else 1 for t in texts])
        return torch.tensor(tokens).unsqueeze(1), length_to_mask(lengths)


class WhiteSpaceTokenizer:
    """One token per word, without punctuation and common stop words, lower-cased.

    The original lemmatises with spaCy here. No released model uses this tokenizer (only the tiny
    `debug` one does), so a plain split replaces that dependency; token ids differ from it.
    """

    def __init__(self, n_bins: int, pad_idx: int = 0):
        self.n_bins, self.pad_idx = n_bins, pad_idx

    def __call__(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        rows = []
        for text in texts:
            words = re.findall(r"[\w']+", (text or "").lower())
            words = [word for word in words if word not in _STOP_WORDS]
            rows.append(torch.tensor([hash_trick(w, self.n_bins) for w in words]).long())
        lengths = torch.tensor([len(row) for row in rows])
        mask = length_to_mask(lengths)
        tokens = torch.full(mask.shape, self.pad_idx)
        for row, words in zip(tokens, rows, strict=True):
            row[: len(words)] = words
        return tokens, mask


class TextConditioner(nn.Module):
    """Base: `tokenize` what may synchronise with the host, then `forward` to vectors.

    Args:
        dim: width of the encoder.
        output_dim: width of the language model.
    """

    def __init__(self, dim: int, output_dim: int):
        super().__init__()
        self.dim, self.output_dim = dim, output_dim
        self.output_proj = nn.Linear(dim, output_dim)

    def tokenize(self, texts: Sequence[str | None]) -> Any:
        raise NotImplementedError

    def forward(self, inputs: Any) -> ConditionType:
        raise NotImplementedError

    def project(self, vectors: Tensor, mask: Tensor) -> ConditionType:
        """The condition for what the encoder gave, `[B, L, dim]` with an int mask `[B, L]`."""
        # Masking after the projection makes padded slots exactly zero, bias included.
        return self.output_proj(vectors.to(self.output_proj.weight)) * mask.unsqueeze(-1), mask


class LUTConditioner(TextConditioner):
    """A learned vector per token.

    Args:
        n_bins: size of the table.
        tokenizer: `noop` or `whitespace`.
        pad_idx: token of an absent text.
    """

    def __init__(self, n_bins: int, dim: int, output_dim: int, tokenizer: str, pad_idx: int = 0):
        super().__init__(dim, output_dim)
        kinds = {"noop": NoopTokenizer, "whitespace": WhiteSpaceTokenizer}
        check(tokenizer in kinds, f"tokenizer must be one of {sorted(kinds)}, got {tokenizer!r}")
        self.embed = nn.Embedding(n_bins, dim)
        self.tokenizer = kinds[tokenizer](n_bins, pad_idx)

    def tokenize(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        device = self.embed.weight.device
        tokens, mask = self.tokenizer(texts)
        return tokens.to(device), mask.to(device)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> ConditionType:
        tokens, mask = inputs
        return self.project(self.embed(tokens), mask)


class PretrainedTextConditioner(TextConditioner):
    """Base: a text encoder of transformers, kept out of the state dict unless it is fine-tuned.

    It always computes in float32, and without `finetune` it never gets a gradient. An absent or
    empty description has its whole mask set to 0, so all its vectors are zero.

    Args:
        name: of the encoder; its last part is that of the folder it is saved to.
        dim: width of its vectors.
        output_dim: width of the language model.
        finetune: train the encoder too; it is then part of the state dict.
        word_dropout: probability of dropping each word, in training.
        path: folder with the encoder and tokenizer; None resolves `name` through the hub.
        local_files_only: never download.
        cache_dir: folder for downloads; None for the hub's own.
    """

    STATE_NAME = ""
    """What a fine-tuned encoder is called in the state dict."""

    def __init__(
        self,
        name: str,
        dim: int,
        output_dim: int,
        finetune: bool,
        word_dropout: float,
        path: str | Path | None,
        local_files_only: bool,
        cache_dir: str | Path | None,
    ):
        super().__init__(dim, output_dim)
        self.name, self.finetune, self.word_dropout = name, finetune, word_dropout
        self.source = str(path) if path is not None else name
        self.local_files_only, self.cache_dir = local_files_only, cache_dir
        self.__dict__["_encoder"] = None
        self.__dict__["_tokenizer"] = None

    @property
    def folder_name(self) -> str:
        """The folder of a saved model that has the encoder."""
        return PurePosixPath(self.name).name

    def prepare(self) -> None:
        """What loading a model does: here, load the encoder."""
        self.load()

    @torch.inference_mode(False)
    def load(self) -> None:
        """Load encoder and tokenizer now (otherwise the first use does).

        With `finetune` this also registers the encoder's parameters.

        Raises:
            CheckpointError: it cannot be found, is damaged or incomplete, or has another width.
        """
        if self._encoder is not None:
            return
        try:
            # transformers draws what a file lacks; that must not change what is drawn next here.
            with quiet_transformers(), torch.random.fork_rng(devices=[]):
                encoder, tokenizer, missing = self._read()
        except Exception as error:  # damaged files raise errors of many libraries
            raise CheckpointError(
                f"cannot load the text encoder {self.source!r}: {error}. To use it offline, put a "
                f"folder {self.folder_name!r} with its files beside the checkpoint."
            ) from error
        if missing:  # which would be left random
            raise CheckpointError(f"the text encoder {self.source!r} lacks {sorted(missing)}")
        self._check(encoder, tokenizer)
        encoder = encoder.train(self.finetune)
        if self.finetune:
            setattr(self, self.STATE_NAME, encoder)
        self.__dict__["_encoder"], self.__dict__["_tokenizer"] = encoder, tokenizer

    def share(self, other: "PretrainedTextConditioner") -> None:
        """Use the encoder of another conditioner; a fine-tuned one, whose parameters may be spread
        over processes, is loaded from the same place instead, and is to get a state."""
        if self.finetune:
            self.source, self.cache_dir = other.source, other.cache_dir
            self.local_files_only = other.local_files_only
            self.load()
        else:
            other.load()
            self.__dict__ |= {name: other.__dict__[name] for name in ("_encoder", "_tokenizer")}

    def _read(self) -> tuple[nn.Module, Any, set[str]]:
        """Encoder, tokenizer, and names of parameters that the files lack."""
        raise NotImplementedError

    def _check(self, encoder: nn.Module, tokenizer: Any) -> None:
        width = encoder.config.hidden_size
        if width != self.dim:
            raise CheckpointError(
                f"the text encoder {self.source!r} has vectors of {width}, those of {self.name!r} "
                f"have {self.dim}"
            )

    @property
    def encoder(self) -> nn.Module:
        """The encoder, on the device of the projection."""
        self.load()
        device = self.output_proj.weight.device
        if self._encoder.device != device:
            self._encoder.to(device)
        return self._encoder

    def save_encoder(self, folder: str | Path) -> None:
        """Write encoder and tokenizer to `folder` in the format of transformers."""
        self.load()
        self._encoder.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)

    def tokenize(self, texts: Sequence[str | None]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, int64 `[B, L]`, padded to the longest text."""
        self.load()
        entries = [text or "" for text in texts]
        if self.word_dropout > 0.0 and self.training:
            entries = [
                " ".join(w for w in e.split(" ") if random.random() >= self.word_dropout)
                for e in entries
            ]
        inputs = self._tokens(entries)
        mask = inputs["attention_mask"]
        mask[[i for i, entry in enumerate(entries) if entry == ""], :] = 0
        device = self.output_proj.weight.device
        return {"input_ids": inputs["input_ids"].to(device), "attention_mask": mask.to(device)}

    def _tokens(self, entries: list[str]) -> Any:
        return self._tokenizer(entries, return_tensors="pt", padding=True)

    def encode(self, inputs: dict[str, Tensor]) -> Tensor:
        """The encoder's states of tokenised texts, float32 `[B, L, dim]`."""
        with torch.autocast(inputs["input_ids"].device.type, enabled=False):
            return self.encoder(**inputs).last_hidden_state

    def forward(self, inputs: dict[str, Tensor]) -> ConditionType:
        with torch.set_grad_enabled(self.finetune and torch.is_grad_enabled()):
            vectors = self.encode(inputs)
        return self.project(vectors, inputs["attention_mask"])


def encoder_folders(name: str) -> list[str]:
    """Where a folder of checkpoints may have the encoder `name`: under its full or last name.

    Never outside of that folder, whatever the name.
    """
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts
    names = [str(path), path.name] if inside else [path.name]
    return list(dict.fromkeys(one for one in names if one not in ("", ".", "..")))


def is_encoder_parameter(name: str) -> bool:
    """Whether a tensor of a language model belongs to a fine-tuned text encoder."""
    return _ENCODER_PARAMETER.search(name) is not None


class T5Conditioner(PretrainedTextConditioner):
    """A T5 encoder.

    Args:
        name: model of the T5 family, such as `t5-large`.
        output_dim, finetune, word_dropout, path, local_files_only, cache_dir: see the base.
    """

    STATE_NAME = "t5"
    DIMS = {
        "t5-small": 512,
        "t5-base": 768,
        "t5-large": 1024,
        "t5-3b": 1024,
        "t5-11b": 1024,
        "google/flan-t5-small": 512,
        "google/flan-t5-base": 768,
        "google/flan-t5-large": 1024,
        "google/flan-t5-xl": 2048,
        "google/flan-t5-xxl": 4096,
    }

    def __init__(
        self,
        name: str,
        output_dim: int,
        finetune: bool = False,
        word_dropout: float = 0.0,
        normalize_text: bool = False,
        path: str | Path | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        device=None,
        autocast_dtype: str | None = None,  # accepted for old configurations; always float32
    ):
        check(name in self.DIMS, f"T5 name must be one of {sorted(self.DIMS)}, got {name!r}")
        check(not normalize_text, "normalize_text is not supported (it needs spaCy)")
        dim = self.DIMS[name]
        super().__init__(
            name, dim, output_dim, finetune, word_dropout, path, local_files_only, cache_dir
        )

    def _read(self) -> tuple[nn.Module, Any, set[str]]:
        # Imported here: transformers takes seconds, and not every model has text.
        from transformers import AutoTokenizer, T5EncoderModel

        options = {"local_files_only": self.local_files_only, "cache_dir": self.cache_dir}
        tokenizer = AutoTokenizer.from_pretrained(self.source, **options)
        encoder, found = T5EncoderModel.from_pretrained(
            self.source, dtype=torch.float32, output_loading_info=True, **options
        )
        return encoder, tokenizer, set(found["missing_keys"])
