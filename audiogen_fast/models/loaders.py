"""Loading and saving models: from any place and layout to modules ready for inference."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

from audiogen_fast.config import Config
from audiogen_fast.errors import CheckpointError, InvalidInputError
from audiogen_fast.models import builders
from audiogen_fast.models.checkpoint import (
    CONFIG_FILE,
    FORMAT,
    FORMAT_VERSION,
    OWN_FILES,
    Checkpoint,
    load_codec_state,
    load_state,
    read_checkpoint,
    read_own_format,
)
from audiogen_fast.models.encodec import CompressionModel, EncodecModel
from audiogen_fast.models.hub import HubOptions, find_file, find_folder
from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules.text_conditioners import T5Conditioner

_RELEASED_FILES = {"lm": "state_dict.bin", "compression_model": "compression_state_dict.bin"}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def get_audiocraft_cache_dir() -> str | None:
    """The download folder set by the environment, if any."""
    return HubOptions().cache


def resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The language model's dtype: as given, or float32 on a CPU and float16 elsewhere."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in _DTYPES:
        names = [str(d).removeprefix("torch.") for d in _DTYPES]
        raise InvalidInputError(f"dtype must be one of {names}, got {dtype!r}")
    return found


def _read(name: str | Path, part: str, options: HubOptions) -> Checkpoint:
    """The checkpoint of `part` at `name`, in whichever layout is there."""
    name = str(name)
    path = Path(name)
    if path.is_file() and part == "compression_model":
        # A file that is given for the whole model is the language model; its codec lies beside.
        beside = path.parent / _RELEASED_FILES[part]
        path = beside if beside.is_file() else path
    if path.is_file():
        return read_checkpoint(path)
    released = find_file(name, _RELEASED_FILES[part], options)
    if released is not None:
        return read_checkpoint(released)
    config = find_file(name, CONFIG_FILE, options)
    if config is None:
        wanted = f"{_RELEASED_FILES[part]!r}, or {CONFIG_FILE!r} with {OWN_FILES[part]!r}"
        raise CheckpointError(f"{name}: holds none of {wanted}")
    if not path.is_dir():
        find_file(name, OWN_FILES[part], options)  # into the same folder of the cache
    return read_own_format(config.parent, part)


def load_lm_model(
    file_or_url_or_id: str | Path,
    device: torch.device | str = "cpu",
    cache_dir: str | Path | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> LMModel:
    """Load a language model, in evaluation mode, with its configuration as `.cfg`.

    Args:
        file_or_url_or_id: see `audiogen_fast.models.hub.find_file`.
        device, dtype: where and how to hold the weights; see `resolve_dtype`.
        cache_dir, revision, local_files_only: see `HubOptions`.
    Raises:
        CheckpointError: the files are missing, damaged, or do not fit.
    """
    options = HubOptions(revision=revision, local_files_only=local_files_only, cache_dir=cache_dir)
    device = torch.device(device)
    checkpoint = _read(file_or_url_or_id, "lm", options)
    encoders = _text_encoders(str(file_or_url_or_id), checkpoint.cfg, options)
    with torch.device("meta"):
        model = _build(
            checkpoint, builders.get_lm_model, encoders, local_files_only=local_files_only
        )
    for conditioner in model.condition_provider.conditioners.values():
        if isinstance(conditioner, T5Conditioner):
            conditioner.load()
    load_state(model, checkpoint, device, resolve_dtype(dtype, device))
    model.cfg = checkpoint.cfg
    return model.eval()


def _text_encoders(name: str, cfg: Config, options: HubOptions) -> Path | None:
    """The folder beside the checkpoint that holds its text encoder, if one does."""
    for conditioner in (cfg.get("conditioners") or {}).values():
        t5 = conditioner.get("t5") if isinstance(conditioner, dict) else None
        if not t5 or not isinstance(t5.get("name"), str):
            continue
        for subfolder in dict.fromkeys((t5["name"], t5["name"].split("/")[-1])):
            found = find_folder(name, subfolder, options)
            if found is not None:
                return found.parents[subfolder.count("/")]
    return None


def _build(checkpoint: Checkpoint, builder, *args, **kwargs):
    try:
        return builder(checkpoint.cfg, *args, **kwargs)
    except (KeyError, TypeError, AttributeError, InvalidInputError) as error:
        detail = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{checkpoint.source}: its configuration cannot be built: {detail}"
        ) from error


def load_compression_model(
    file_or_url_or_id: str | Path,
    device: torch.device | str = "cpu",
    cache_dir: str | Path | None = None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> CompressionModel:
    """Load a codec, in evaluation mode and float32; arguments as for `load_lm_model`."""
    options = HubOptions(revision=revision, local_files_only=local_files_only, cache_dir=cache_dir)
    checkpoint = _read(file_or_url_or_id, "compression_model", options)
    if checkpoint.pretrained is not None:
        return get_pretrained_compression_model(checkpoint.pretrained, device, options)
    with torch.device("meta"):
        model: EncodecModel = _build(checkpoint, builders.get_compression_model)
    load_codec_state(model, checkpoint, torch.device(device))
    model.cfg = checkpoint.cfg
    return model.eval()


def get_pretrained_compression_model(
    name: str | Path, device: torch.device | str = "cpu", options: HubOptions | None = None
) -> CompressionModel:
    """A codec by name: `debug_compression_model`, a checkpoint, or an EnCodec hub id."""
    if str(name) == "debug_compression_model":
        return builders.get_debug_compression_model(device)
    if str(name) in ("dac_44khz", "dac_24khz"):
        raise CheckpointError(f"the codec {name!r} (DAC) is not supported; EnCodec is")
    if Path(name).exists():
        return load_compression_model(name, device)
    from transformers import EncodecModel as TransformersEncodec

    from audiogen_fast.models.hf_encodec import HFEncodecCompressionModel

    options = options or HubOptions()
    try:
        model = TransformersEncodec.from_pretrained(
            str(name), local_files_only=options.local_files_only, cache_dir=options.cache
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load the codec {str(name)!r}: {error}") from error
    wrapped = HFEncodecCompressionModel(model).to(device).eval()
    wrapped.pretrained_name = str(name)
    return wrapped


def save_pretrained(folder: str | Path, lm: LMModel, compression_model: CompressionModel) -> Path:
    """Write both models, their configurations and the text encoder to `folder`.

    The result loads by memory map and needs nothing from the network. Everything is written
    beside and renamed, so an interrupted or failed save leaves no half model behind.

    Raises:
        InvalidInputError: a model was not loaded from a checkpoint, so its configuration is
            unknown; or `folder` exists and is not a folder.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"folder must be a folder or not exist, got the file {folder}")
    inner = getattr(compression_model, "model", compression_model)  # under a stereo wrapper
    codec = compression_model if isinstance(compression_model, EncodecModel) else inner
    config = {"format": FORMAT, "version": FORMAT_VERSION}
    for part, model in (("lm", lm), ("compression_model", codec)):
        pretrained = getattr(model, "pretrained_name", None)
        if pretrained is not None:
            config |= {part: {}, f"{part}_pretrained": pretrained}
        elif getattr(model, "cfg", None) is None:
            raise InvalidInputError(f"{part} has no configuration (.cfg), so it cannot be saved")
        else:
            config[part] = model.cfg
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        staged = Path(temporary)
        for part, model in (("lm", lm), ("compression_model", codec)):
            if f"{part}_pretrained" not in config:
                tensors = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
                save_file(tensors, staged / OWN_FILES[part], metadata={"format": "pt"})
        for conditioner in lm.condition_provider.conditioners.values():
            if isinstance(conditioner, T5Conditioner):
                conditioner.save_encoder(staged / conditioner.name)
        # The configuration last: without it the folder is not a model yet.
        (staged / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        names = sorted(os.listdir(staged), key=lambda name: name == CONFIG_FILE)
        for name in names:
            target = folder / name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(staged / name, target)
    return folder
