"""Loading models: from any place and layout to modules ready for inference."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from audiogen_fast.config import Config, to_yaml
from audiogen_fast.errors import CheckpointError, InvalidInputError, check
from audiogen_fast.models import builders
from audiogen_fast.models.checkpoint import (
    CODEC_FOLDER,
    CONFIG_FILE,
    FORMAT,
    OWN_FILES,
    Checkpoint,
    read_checkpoint,
    read_json,
    read_own_format,
)
from audiogen_fast.models.encodec import CompressionModel, EncodecModel
from audiogen_fast.models.hub import HubOptions, Place
from audiogen_fast.models.lm import LMModel
from audiogen_fast.models.packed import is_packed_parameter
from audiogen_fast.models.weights import load_codec_state, load_state
from audiogen_fast.modules.text_conditioners import (
    PretrainedTextConditioner,
    T5Conditioner,
    encoder_folders,
)

_FILES = {
    "lm": ("state_dict.bin", "checkpoint.th"),
    "compression_model": ("compression_state_dict.bin",),
}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def get_audiocraft_cache_dir() -> str | None:
    """The download folder set by the environment, if any."""
    return HubOptions().cache


def resolve_device(device: torch.device | str | None) -> torch.device:
    """The device as given, or the first CUDA device, or the CPU without one."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(
            f"device must be one of torch's, got {device!r}: {error}"
        ) from error
    check(
        found.type != "cuda" or torch.cuda.is_available(),
        f"device must be 'cpu', as torch finds no CUDA device here, got {device!r}",
    )
    return found


def resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The language model's dtype: as given, or float32 on a CPU and float16 elsewhere."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in _DTYPES:
        names = [str(d).removeprefix("torch.") for d in _DTYPES]
        raise InvalidInputError(f"dtype must be one of {names}, got {dtype!r}")
    return found


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
        file_or_url_or_id: see `audiogen_fast.models.hub.Place`.
        device, dtype: where and how to hold the weights; see `resolve_dtype`.
        cache_dir, revision, local_files_only: see `HubOptions`.
    Raises:
        CheckpointError: the files are missing, damaged, or do not fit.
    """
    options = HubOptions(revision=revision, local_files_only=local_files_only, cache_dir=cache_dir)
    return _load_lm(Place(file_or_url_or_id, options), torch.device(device), dtype)


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
    place = Place(file_or_url_or_id, options)
    return _load_codec(_read(place, "compression_model"), torch.device(device), options)


def load_models(
    place: Place,
    device: torch.device,
    dtype: torch.dtype | str | None = None,
    as_stored: Callable[[LMModel], bool] | None = None,
) -> tuple[CompressionModel, LMModel]:
    """Codec and language model from one place; arguments as for `load_lm_model`.

    A file stands for the language model; its codec lies beside it.

    Args:
        as_stored: asked with the model before it has weights: whether the matrices that the native
            engine packs should stay mapped in the dtype they are stored in.
    """
    checkpoint = _read(place, "compression_model", beside=True)
    codec = _load_codec(checkpoint, device, place.options)
    return codec, _load_lm(place, device, dtype, as_stored)


def _load_lm(
    place: Place,
    device: torch.device,
    dtype: torch.dtype | str | None,
    as_stored: Callable[[LMModel], bool] | None = None,
) -> LMModel:
    dtype = resolve_dtype(dtype, device)
    checkpoint = _read(place, "lm")
    encoders = _text_encoders(place, checkpoint.cfg)
    model: LMModel = _build(
        checkpoint, builders.get_lm_model, encoders, place.offline, place.options.cache_dir
    )
    for conditioner in model.condition_provider.conditioners.values():
        if isinstance(conditioner, PretrainedTextConditioner):
            conditioner.prepare()
    model.packed = checkpoint.packed
    check(
        model.packed is None or device.type == "cpu",
        f"device must be 'cpu' for {checkpoint.source}, whose weights are packed for the native "
        f"engine, got {device}",
    )
    keep = as_stored is not None and as_stored(model)
    load_state(
        model,
        checkpoint,
        device,
        dtype,
        as_stored=is_packed_parameter if keep else None,
        absent=is_packed_parameter if model.packed else None,
    )
    model.cfg = checkpoint.cfg
    return model.eval()


def _load_codec(
    checkpoint: Checkpoint, device: torch.device, options: HubOptions
) -> CompressionModel:
    if checkpoint.pretrained is not None:
        return get_pretrained_compression_model(checkpoint.pretrained, device, options)
    model: EncodecModel = _build(checkpoint, builders.get_compression_model)
    load_codec_state(model, checkpoint, device)
    model.cfg = checkpoint.cfg
    return model


def load_lm_model_ckpt(
    file_or_url_or_id: str | Path, cache_dir: str | Path | None = None
) -> dict[str, Any]:
    """What a language model's checkpoint holds: tensors `best_state` and YAML text `xp.cfg`."""
    return _package(_read(Place(file_or_url_or_id, HubOptions(cache_dir=cache_dir)), "lm"))


def load_compression_model_ckpt(
    file_or_url_or_id: str | Path, cache_dir: str | Path | None = None
) -> dict[str, Any]:
    """The same of a codec's, or the name `pretrained` of one kept elsewhere."""
    place = Place(file_or_url_or_id, HubOptions(cache_dir=cache_dir))
    return _package(_read(place, "compression_model"))


def _package(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.pretrained is not None:
        return {"pretrained": checkpoint.pretrained}
    return {"best_state": dict(checkpoint.state), "xp.cfg": to_yaml(checkpoint.cfg)}


def stored_dtype(
    file_or_url_or_id: str | Path | Place, options: HubOptions | None = None
) -> torch.dtype:
    """The dtype that most of a stored language model has; only headers are read."""
    place = file_or_url_or_id
    if not isinstance(place, Place):
        place = Place(place, options or HubOptions())
    counts: dict[torch.dtype, int] = {}
    for tensor in _read(place, "lm").state.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=counts.__getitem__)


def get_pretrained_compression_model(
    name: str | Path, device: torch.device | str = "cpu", options: HubOptions | None = None
) -> CompressionModel:
    """A codec by name: `debug_compression_model`, a checkpoint, or an EnCodec of transformers.

    Args:
        name: a file, a folder in any layout or in the format of transformers, or, of the latter,
            a hub id.
    """
    options = options or HubOptions()
    if str(name) == "debug_compression_model":
        return builders.get_debug_compression_model(device)
    if str(name) in ("dac_44khz", "dac_24khz"):
        raise CheckpointError(f"the codec {name!r} (DAC) is not supported; EnCodec is")
    config = Path(name, CONFIG_FILE)
    in_transformers = config.is_file() and read_json(config).get("model_type") == "encodec"
    if Path(name).exists() and not in_transformers:
        return load_compression_model(name, device)
    from transformers import EncodecModel as TransformersEncodec

    from audiogen_fast.models.hf_encodec import HFEncodecCompressionModel

    try:
        model, found = TransformersEncodec.from_pretrained(
            str(name),
            dtype=torch.float32,
            local_files_only=options.local_files_only,
            cache_dir=options.cache,
            output_loading_info=True,
        )
        codec = HFEncodecCompressionModel(model)
    except Exception as error:  # damaged files raise errors of many libraries
        raise CheckpointError(f"cannot load the codec {str(name)!r}: {error}") from error
    if found["missing_keys"]:
        raise CheckpointError(f"{name}: lacks the tensors {sorted(found['missing_keys'])}")
    return codec.to(device).eval()


def _read(place: Place, part: str, beside: bool = False) -> Checkpoint:
    """The checkpoint of `part` in whichever layout is there, or `beside` the file that is given."""
    if place.given and not place.given.endswith(".safetensors") and not beside:
        path = place.file(place.given)
        if path is None:
            raise place.lacks([place.given])
        return read_checkpoint(path)
    # The own format first: who saved a model into the folder of another wants that one.
    config = place.file(CONFIG_FILE)
    if config is not None and read_json(config).get("format") == FORMAT:
        if place.file(OWN_FILES[part]) is None:
            place.folder(CODEC_FOLDER)
        return read_own_format(config.parent, part)
    for filename in _FILES[part]:
        path = place.file(filename)
        if path is not None:
            return read_checkpoint(path)
    raise place.lacks([*_FILES[part], f"{CONFIG_FILE} with {OWN_FILES[part]}"])


def _text_encoders(place: Place, cfg: Config) -> Path | None:
    """The folder beside the checkpoint that holds its text encoder, if one does."""
    for name in _encoder_names(cfg):
        for subfolder in encoder_folders(name):
            found = place.folder(subfolder)
            if found is not None:
                return found.parents[subfolder.count("/")]
    return None


def _encoder_names(cfg: Config) -> Iterator[str]:
    conditioners = cfg.get("conditioners")
    for conditioner in conditioners.values() if isinstance(conditioners, dict) else ():
        kind = conditioner.get("model") if isinstance(conditioner, dict) else None
        options = conditioner.get(kind) if kind in ("t5", "encoder") else None
        name = options.get("name") if isinstance(options, dict) else None
        if isinstance(name, str) and (kind == "encoder" or name in T5Conditioner.DIMS):
            yield name


def _build(checkpoint: Checkpoint, builder: Callable, *args: Any) -> Any:
    """What the builder makes of the configuration, without memory for weights."""
    try:
        with torch.device("meta"):
            return builder(checkpoint.cfg, *args)
    except Exception as error:  # a configuration is data: anything in it may be wrong
        detail = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{checkpoint.source}: its configuration cannot be used: {detail}"
        ) from error
