"""A conditioner for any text encoder of transformers."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiogen_fast.errors import CheckpointError, check
from audiogen_fast.modules.encoder_files import (
    INT8_FILE,
    check_folder,
    read_encoder,
    write_compact_json,
    write_int8,
)
from audiogen_fast.modules.text_conditioners import PretrainedTextConditioner, encoder_folders

_MAX_DIM = 1 << 16
# What tokenizers say that know no limit is a number of 30 digits.
_NO_LIMIT = 1 << 20


class EncoderConditioner(PretrainedTextConditioner):
    """A text encoder of any family: the states of its last layer, one vector per token.

    Of an encoder-decoder, the encoder. Weights are read from safetensors only, or from an int8
    file (`encoder_files`); a folder on this machine is loaded at the first use.

    Args:
        name: a folder, or the id of a hub repository.
        output_dim: width of the language model.
        dim: width of the encoder's vectors; None reads it from the encoder's `config.json` now.
        finetune, word_dropout, path, local_files_only, cache_dir: see the base.
        max_length: tokens that a text may have, those that the tokenizer adds included; longer
            ones are cut, with one warning. None: what the encoder can take.
    """

    STATE_NAME = "text_model"

    def __init__(
        self,
        name: str,
        output_dim: int,
        dim: int | None = None,
        finetune: bool = False,
        word_dropout: float = 0.0,
        max_length: int | None = None,
        path: str | Path | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        device=None,
    ):
        named = isinstance(name, str) and bool(encoder_folders(name))
        check(named, f"encoder name must be a folder or a hub id, got {name!r}")
        _check_number("dim", dim, _MAX_DIM)
        _check_number("max_length", max_length, _NO_LIMIT)
        if dim is None:
            dim = _width(str(path or name), local_files_only, cache_dir)
        super().__init__(
            name, dim, output_dim, finetune, word_dropout, path, local_files_only, cache_dir
        )
        self.max_length = max_length
        self.limit: int | None = None
        """Tokens that texts are cut to, once the encoder is loaded; None: they are not."""
        self._stored: dict[str, Tensor] | None = None
        self._prefix = ""
        self._warned = False

    def prepare(self) -> None:
        """What loading a model does: check the files, and load what cannot wait.

        Raises:
            CheckpointError: see `load`.
        """
        folder = Path(self.source)
        if self.finetune or not folder.is_dir() or not check_folder(folder):
            self.load()

    def _read(self) -> tuple[nn.Module, Any, set[str]]:
        # Imported here: transformers takes seconds, and not every model has text.
        from transformers import AutoTokenizer

        where = {"local_files_only": self.local_files_only, "cache_dir": self.cache_dir}
        tokenizer = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False, **where)
        read = read_encoder(self.source, **where)
        self._stored, self._prefix = read.stored, read.prefix
        return read.encoder, tokenizer, read.missing

    def _check(self, encoder: nn.Module, tokenizer: Any) -> None:
        super()._check(encoder, tokenizer)
        if tokenizer.pad_token is None:
            raise CheckpointError(f"the tokenizer of {self.source!r} must have a padding token")
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        limits = [tokenizer.model_max_length, most_tokens(encoder)]
        limit = min((x for x in limits if x is not None and x < _NO_LIMIT), default=None)
        least = tokenizer.num_special_tokens_to_add() + 1
        asked = self.max_length
        check(
            asked is None or least <= asked <= (limit or _NO_LIMIT),
            f"max_length must lie in {least}..{limit or _NO_LIMIT} for the text encoder "
            f"{self.source!r}, got {asked}",
        )
        self.limit = asked or limit

    def share(self, other: "EncoderConditioner") -> None:
        super().share(other)
        if not self.finetune:
            self.limit = other.limit
            self._stored, self._prefix = other._stored, other._prefix

    def save_encoder(self, folder: str | Path) -> None:
        """Write encoder and tokenizer to `folder`, in int8 where they came so and are not trained;
        see the base."""
        self.load()
        if self._stored is None or self.finetune:
            state = self._encoder.state_dict()
            state = {self._prefix + name: tensor for name, tensor in state.items()}
            self._encoder.save_pretrained(folder, state_dict=state)
        else:
            self._encoder.config.save_pretrained(folder)
            write_int8(Path(folder, INT8_FILE), self._stored)
        self._tokenizer.save_pretrained(folder)
        path = Path(folder, "tokenizer.json")
        if path.is_file():  # indented, a vocabulary takes half as much again
            write_compact_json(path, json.loads(path.read_bytes()))

    def _tokens(self, entries: list[str]) -> Any:
        options = {"padding": True, "return_token_type_ids": False, "verbose": False}
        inputs = self._tokenizer(entries, return_tensors="pt", **options)
        longest = inputs["input_ids"].shape[1]
        if self.limit is None or longest <= self.limit:
            return inputs
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"texts are cut to max_length={self.limit} tokens, the longest here has {longest}; "
                "this is said once",
                stacklevel=3,
            )
        return self._tokenizer(
            entries, return_tensors="pt", truncation=True, max_length=self.limit, **options
        )

    def encode(self, inputs: dict[str, Tensor]) -> Tensor:
        mask = inputs["attention_mask"]
        # Attention over nothing is not defined; what these rows give is masked afterwards.
        first = (torch.arange(mask.shape[1], device=mask.device) == 0).to(mask)
        attended = torch.where(mask.any(dim=1, keepdim=True), mask, first)
        return super().encode(inputs | {"attention_mask": attended})

    @property
    def tokenizer_fingerprint(self) -> str:
        """SHA-256 of what decides which tokens a text has."""
        self.load()
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        kind = type(self._tokenizer).__name__
        return hashlib.sha256(repr((kind, vocabulary, self.limit)).encode()).hexdigest()


def most_tokens(encoder: nn.Module) -> int | None:
    """The longest input that the encoder has positions for; None where there is no such limit."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(
            ("position_embeddings", "embed_positions", "position_embedding", "wpe")
        ):
            # RoBERTa counts from behind its padding index.
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - max(skipped, getattr(module, "offset", 0))
    return getattr(encoder.config, "max_position_embeddings", None)


def _width(source: str, local_files_only: bool, cache_dir: str | Path | None) -> int:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            source,
            local_files_only=local_files_only,
            cache_dir=cache_dir,
            trust_remote_code=False,
        )
        return config.hidden_size
    except Exception as error:  # damaged files raise errors of many libraries
        raise CheckpointError(
            f"cannot read the width of the text encoder {source!r}: {error}. Its config.json must "
            "be that of a text encoder, or dim be given."
        ) from error


def _check_number(name: str, value: Any, limit: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= limit
    check(value is None or whole, f"encoder {name} must lie in 1..{limit}, got {value!r}")
