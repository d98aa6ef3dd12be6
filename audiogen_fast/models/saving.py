"""Saving models in the package's own format."""

import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.models.aligned_file import write_aligned
from audiogen_fast.models.checkpoint import (
    CODEC_FOLDER,
    CONFIG_FILE,
    FORMAT,
    FORMAT_VERSION,
    OWN_FILES,
    PACKED_VERSION,
    read_json,
)
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.models.hf_encodec import HFEncodecCompressionModel
from audiogen_fast.models.lm import LMModel
from audiogen_fast.models.packed import PREFIX, PackedWeights, is_packed_parameter
from audiogen_fast.models.stereo import InterleaveStereoCompressionModel
from audiogen_fast.modules.encoder_conditioner import EncoderConditioner
from audiogen_fast.modules.text_conditioners import PretrainedTextConditioner


def save_pretrained(
    folder: str | Path,
    lm: LMModel,
    compression_model: CompressionModel,
    packed: PackedWeights | None = None,
) -> Path:
    """Write both models, their configurations and the text encoder to `folder`.

    The result loads by memory map and needs nothing from the network. Everything is written
    beside and renamed, so a failed save leaves the folder as it was; models that are mapped from
    files in it stay usable.

    Args:
        packed: of `lm`, to be written instead of the parameters they were packed from; the folder
            then serves the native engine only. A model that was loaded packed is saved packed.
    Raises:
        InvalidInputError: a model was not loaded from a checkpoint, so its configuration is
            unknown; `folder` is a file, or has a `config.json` of something else; or two text
            encoders, or one and another part of the model, have one name.
    """
    folder = Path(folder)
    codec = compression_model
    if isinstance(codec, InterleaveStereoCompressionModel):
        codec = codec.model
    packed = packed or lm.packed
    config: dict[str, Any] = {"format": FORMAT, "version": FORMAT_VERSION}
    if packed is not None:
        config["version"] = PACKED_VERSION
        config["packed"] = {"format": packed.format, "group_size": packed.group_size}
    config["lm"] = _with_own_encoders(_config("lm", lm), lm)
    config["compression_model"] = _config("compression_model", codec)
    encoders = _encoders(lm)
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        staged, replaced = Path(temporary, "new"), Path(temporary, "old")
        staged.mkdir()
        replaced.mkdir()
        _write(staged, config, lm, codec, packed)
        for name, conditioner in encoders.items():
            conditioner.save_encoder(staged / name)
        _share_modes(staged)
        _swap(staged, folder, replaced)
    return folder


def _config(part: str, model: nn.Module) -> dict[str, Any]:
    if isinstance(model, HFEncodecCompressionModel):
        return {"pretrained": CODEC_FOLDER}
    cfg = getattr(model, "cfg", None)
    check(cfg is not None, f"{part} has no configuration (.cfg), so it cannot be saved")
    return cfg


def _check_folder(folder: Path) -> None:
    check(
        folder.is_dir() or not os.path.lexists(folder),
        f"folder must be a folder or not exist, got the file {folder}",
    )
    path = folder / CONFIG_FILE
    check(
        not path.exists() or read_json(path).get("format") == FORMAT,
        f"folder must not hold the {CONFIG_FILE} of another program, which would be overwritten, "
        f"got {folder}",
    )


def _write(
    folder: Path,
    config: dict[str, Any],
    lm: LMModel,
    codec: CompressionModel,
    packed: PackedWeights | None,
) -> None:
    from safetensors.torch import save_file

    text = json.dumps(config, indent=2, default=str) + "\n"
    (folder / CONFIG_FILE).write_text(text)
    metadata = {"format": "pt"}
    if packed is None:
        save_file(_tensors(lm), folder / OWN_FILES["lm"], metadata)
    else:
        tensors = {n: t for n, t in _tensors(lm).items() if not is_packed_parameter(n)}
        tensors |= {PREFIX + name: tensor for name, tensor in packed.tensors.items()}
        write_aligned(folder / OWN_FILES["lm"], tensors)
    if isinstance(codec, HFEncodecCompressionModel):
        codec.model.save_pretrained(folder / CODEC_FOLDER)
    else:
        save_file(_tensors(codec), folder / OWN_FILES["compression_model"], metadata)


def _share_modes(folder: Path) -> None:
    """safetensors makes files that nobody else may read: all get the configuration's mode."""
    mode = (folder / CONFIG_FILE).stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _encoders(lm: LMModel) -> dict[str, PretrainedTextConditioner]:
    """The text encoders by the name of their folder."""
    found: dict[str, PretrainedTextConditioner] = {}
    for name, conditioner in lm.condition_provider.conditioners.items():
        if isinstance(conditioner, PretrainedTextConditioner):
            folder = conditioner.folder_name
            same = found.get(folder, conditioner).source == conditioner.source
            check(
                same and folder not in (CONFIG_FILE, CODEC_FOLDER, *OWN_FILES.values()),
                f"the text encoder of {name} must have a name of its own to be saved, got "
                f"{folder!r}, which another part of the model has",
            )
            # What a fine-tuned one learned is with the language model too, so it gives way.
            if folder not in found or not conditioner.finetune:
                found[folder] = conditioner
    return found


def _with_own_encoders(cfg: dict[str, Any], lm: LMModel) -> dict[str, Any]:
    """The configuration with each `encoder` as it is found in the saved folder, wherever it came
    from; what it is called says nothing of its width, which is added."""
    cfg = copy.deepcopy(cfg)
    for name, conditioner in lm.condition_provider.conditioners.items():
        if isinstance(conditioner, EncoderConditioner):
            own = {"name": conditioner.folder_name, "dim": conditioner.dim}
            cfg["conditioners"][name]["encoder"] |= own
    return cfg


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state as the format wants it: contiguous, and without shared memory."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().contiguous()
        tied = tensor.numel() > 0 and tensor.data_ptr() in seen
        tensors[name] = tensor.clone() if tied else tensor
        seen.add(tensor.data_ptr())
    return tensors


def _swap(staged: Path, folder: Path, replaced: Path) -> None:
    """Move all of `staged` to `folder`, and what it replaces out; if that fails, all back."""
    # The configuration goes first and comes last: without it the folder is not a model.
    names = sorted(os.listdir(staged), key=lambda name: name != CONFIG_FILE)
    moves = [(folder / n, replaced / n) for n in names if os.path.lexists(folder / n)]
    moves += [(staged / name, folder / name) for name in reversed(names)]
    done = []
    try:
        for source, target in moves:
            os.rename(source, target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            os.rename(target, source)
        raise
