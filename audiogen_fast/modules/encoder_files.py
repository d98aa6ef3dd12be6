"""Text encoders of transformers in folders: as transformers writes them, or with int8 weights.

The int8 form is for shipping. It has `INT8_FILE` instead of `model.safetensors` and is read back to
float32. The file is safetensors, and holds

- metadata: `format` is `FORMAT`;
- for a matrix `NAME` `[N, K]`: int8 `NAME` `[N, K]` in -127..127 and float32 `NAME.scale` `[N]`;
  row n stands for `scale[n] * values[n]` (`audiogen_fast.ops.weight_formats`, format int8);
- every other tensor as it is, in float32.

What an encoder has beside its token states, a pooler, is left out in either form.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiogen_fast.errors import CheckpointError
from audiogen_fast.files import write_atomically
from audiogen_fast.ops.weight_formats import QuantizedWeight, dequantize, quantize

CONFIG_FILE, WEIGHTS_FILE, INT8_FILE = "config.json", "model.safetensors", "model.int8.safetensors"
# One key, as several come in any order and the same tensors should give the same file.
FORMAT = "audiogen_fast text encoder, version 1"
_SCALE = ".scale"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no reports: the weights are there in an instant, and callers check what
    is missing themselves."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class Read:
    """An encoder that was read."""

    encoder: nn.Module
    prefix: str
    """Of its tensors' names in files, where it may be part of an encoder-decoder."""
    stored: dict[str, Tensor] | None
    """The tensors of `INT8_FILE` as they are there, if that is where it came from."""
    missing: set[str]
    """Names of parameters that the files lack, which are random."""


def read_encoder(
    source: str, local_files_only: bool = False, cache_dir: str | Path | None = None
) -> Read:
    """An encoder in float32, in evaluation mode, without its pooler.

    Of an encoder-decoder only the encoder is kept. Weights come from safetensors, never from
    pickles, and no code of a repository is run.

    Args:
        source: a folder, or the id of a hub repository.
        local_files_only: never download.
        cache_dir: folder for downloads; None for the hub's own.
    Raises:
        CheckpointError: `INT8_FILE` is damaged or something else.
        Exception: whatever transformers raises about other files.
    """
    from transformers import AutoConfig

    where = {"local_files_only": local_files_only, "cache_dir": cache_dir}
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
    cls = _class_of(config)
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    int8 = Path(source, INT8_FILE)
    stored = None
    if int8.is_file():
        stored = read_int8(int8)
        whole, found = cls.from_pretrained(
            None, config=config, state_dict=dequantized(stored), **options
        )
    else:
        whole, found = cls.from_pretrained(
            source, config=config, use_safetensors=True, **options, **where
        )
    encoder, prefix = encoder_of(whole)
    names = {prefix + name for name in encoder.state_dict()}
    wrong = [*found["mismatched_keys"], *(found["unexpected_keys"] if stored is not None else ())]
    if wrong:
        raise CheckpointError(f"tensors do not fit config.json: {sorted(map(str, wrong))}")
    missing = {name for name in found["missing_keys"] if name in names}
    return Read(encoder.eval(), prefix, stored, missing)


def _class_of(config: Any) -> type:
    """The class of transformers that computes token states for this configuration."""
    from transformers import AutoModel, AutoModelForTextEncoding

    with torch.device("meta"):
        try:
            # For the T5 family this is the encoder alone, where AutoModel has a decoder too.
            return type(AutoModelForTextEncoding.from_config(config))
        except ValueError:  # it does not know this kind
            return type(AutoModel.from_config(config))


def encoder_of(model: nn.Module) -> tuple[nn.Module, str]:
    """The part that turns tokens into states, without a pooler, and the prefix of its tensors."""
    encoder, prefix = model, ""
    if getattr(model, "decoder", None) is not None and hasattr(model, "get_encoder"):
        encoder = model.get_encoder()
        prefix = next(f"{name}." for name, part in model.named_modules() if part is encoder)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # trained, it would have no gradient
    return encoder, prefix


def check_folder(folder: Path) -> bool:
    """Whether a folder has an encoder that later loads, as far as its files' headers tell.

    False where that cannot be said without loading it.

    Raises:
        CheckpointError: what it has is damaged or something else.
    """
    from safetensors import SafetensorError, safe_open

    if (folder / INT8_FILE).is_file():
        read_int8(folder / INT8_FILE)
    elif (folder / WEIGHTS_FILE).is_file():
        try:
            with safe_open(folder / WEIGHTS_FILE, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder / WEIGHTS_FILE}: {error}") from error
    else:
        return False
    for name in (CONFIG_FILE, "tokenizer.json"):
        try:
            json.loads((folder / name).read_bytes())
        except FileNotFoundError:
            return False
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{folder / name}: cannot be read: {error}") from error
    return True


def write_compact_json(path: Path, content: Any) -> None:
    """Write JSON without spaces, whole or not at all."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    write_atomically(path, text.encode("utf-8"))


def pack_int8(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `INT8_FILE` for those of an encoder.

    Raises:
        InvalidInputError: a matrix is not finite.
    """
    packed = {}
    for name, tensor in state.items():
        tensor = tensor.detach().float().cpu()
        if tensor.dim() != 2 or tensor.numel() == 0:
            packed[name] = tensor.contiguous()
            continue
        matrix = quantize(tensor, "int8")
        packed[name] = matrix.data[:, : matrix.k].contiguous()
        packed[name + _SCALE] = matrix.scale
    return packed


def write_int8(path: Path, packed: Mapping[str, Tensor]) -> None:
    """Write what `pack_int8` makes, whole or not at all."""
    from safetensors.torch import save

    write_atomically(path, save(dict(packed), {"format": FORMAT}))


def read_int8(path: Path) -> dict[str, Tensor]:
    """The tensors of an `INT8_FILE`, mapped from it.

    Raises:
        CheckpointError: truncated, of another format or version, or with a tensor that the layout
            does not have.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: truncated or damaged: {error}") from error
    if about.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: must be of the format {FORMAT!r}, got {about.get('format')!r}"
        )
    for name, tensor in stored.items():
        scale = stored.get(name + _SCALE)
        if tensor.dtype == torch.int8:
            fits = tensor.dim() == 2 and scale is not None and scale.dtype == torch.float32
            fits = fits and scale.shape == tensor.shape[:1]
        else:
            fits = tensor.dtype == torch.float32 and scale is None
        if not fits:
            raise CheckpointError(
                f"{path}: {name} must be float32, or an int8 matrix with a float32 scale per row, "
                f"got {tensor.dtype} {tuple(tensor.shape)}"
            )
    return stored


def dequantized(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors in float32, in memory of their own."""
    state = {}
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8:
            n, k = tensor.shape
            scale = stored[name + _SCALE]
            state[name] = dequantize(QuantizedWeight("int8", tensor, scale, n, k, k))
        elif stored.get(name.removesuffix(_SCALE), tensor).dtype != torch.int8:
            state[name] = tensor.clone()
    return state
