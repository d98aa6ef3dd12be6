"""Conditioners that turn text into vectors: a T5 encoder, or a lookup table."""

import hashlib
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiogen_fast.errors import CheckpointError, check

# [B, L, D] vectors and their int mask [B, L]; masked vectors are exactly zero.
ConditionType = tuple[Tensor, Tensor]
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


class T5Conditioner(TextConditioner):
    """A T5 encoder, kept out of the state dict unless it is fine-tuned.

    An absent or empty description has its whole mask set to 0, so all its vectors are zero.

    Args:
        name: model of the T5 family, such as `t5-large`.
        finetune: train the encoder too; it is then part of the state dict.
        word_dropout: probability of dropping each word, in training.
        path: folder with the encoder and tokenizer; None resolves `name` through the hub.
        local_files_only: never download.
    """

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
        device=None,
        autocast_dtype: str | None = None,  # accepted for old configurations; always float32
    ):
        check(name in self.DIMS, f"T5 name must be one of {sorted(self.DIMS)}, got {name!r}")
        check(not normalize_text, "normalize_text is not supported (it needs spaCy)")
        super().__init__(self.DIMS[name], output_dim)
        self.name, self.finetune, self.word_dropout = name, finetune, word_dropout
        self.source = str(path) if path is not None else name
        self.local_files_only = local_files_only
        self.__dict__["_encoder"] = None
        self.__dict__["_tokenizer"] = None

    def load(self) -> None:
        """Load encoder and tokenizer now (otherwise the first use does).

        With `finetune` this also registers the encoder's parameters.

        Raises:
            CheckpointError: it cannot be found, is damaged or incomplete, or has another width.
        """
        if self._encoder is not None:
            return
        # Imported here: transformers takes seconds, and not every model has text.
        from transformers import AutoTokenizer, T5EncoderModel
        from transformers.utils import logging

        # Its weights are there in an instant; a progress bar for them is noise.
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        options = {"local_files_only": self.local_files_only}
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.source, **options)
            encoder, found = T5EncoderModel.from_pretrained(
                self.source, dtype=torch.float32, output_loading_info=True, **options
            )
        except Exception as error:  # damaged files raise errors of many libraries
            raise CheckpointError(
                f"cannot load the text encoder {self.source!r}: {error}. To use it offline, put a "
                f"folder {self.name!r} with its files beside the checkpoint."
            ) from error
        finally:
            if bars:
                logging.enable_progress_bar()
        if found["missing_keys"]:  # which would be left random
            raise CheckpointError(
                f"the text encoder {self.source!r} lacks {sorted(found['missing_keys'])}"
            )
        if encoder.config.d_model != self.dim:
            raise CheckpointError(
                f"the text encoder {self.source!r} has vectors of {encoder.config.d_model}, those "
                f"of {self.name!r} have {self.dim}"
            )
        encoder = encoder.train(self.finetune)
        if self.finetune:
            self.t5 = encoder
        self.__dict__["_encoder"], self.__dict__["_tokenizer"] = encoder, tokenizer

    @property
    def encoder(self) -> nn.Module:
        """The T5 encoder, on the device of the projection."""
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
        inputs = self._tokenizer(entries, return_tensors="pt", padding=True)
        mask = inputs["attention_mask"]
        mask[[i for i, entry in enumerate(entries) if entry == ""], :] = 0
        device = self.output_proj.weight.device
        return {"input_ids": inputs["input_ids"].to(device), "attention_mask": mask.to(device)}

    def forward(self, inputs: dict[str, Tensor]) -> ConditionType:
        mask = inputs["attention_mask"]
        device_type = mask.device.type
        # The encoder always runs in float32: T5 overflows in half precision.
        with torch.set_grad_enabled(self.finetune and torch.is_grad_enabled()):
            with torch.autocast(device_type, enabled=False):
                vectors = self.encoder(**inputs).last_hidden_state
        return self.project(vectors, mask)
