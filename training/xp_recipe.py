"""A configuration of the original (`xp.cfg` of a checkpoint, or its YAML) as a recipe."""

import typing
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from audiogen_fast.config import Config, parse_config
from audiogen_fast.errors import InvalidInputError, check
from audiogen_fast.models.checkpoint import CONFIG_FILE, read_json
from audiogen_fast.training.codec.config import CodecConfig
from audiogen_fast.training.config_lm import LMConfig

_SOLVERS = ("audiogen", "musicgen", "compression")
_SCHEDULES = ("inverse_sqrt", "cosine", "linear_warmup", "polynomial_decay")


def values_of_checkpoint(path: str | Path) -> dict[str, Any]:
    """The recipe that a checkpoint, or a YAML file, stands for.

    A folder with a language model gives that one's recipe, one with a codec alone the codec's; an
    EnCodec in the format of transformers gives its structure.
    """
    path = Path(path)
    if path.suffix in (".yaml", ".yml"):
        try:
            return recipe_of(parse_config(path.read_text()))
        except OSError as error:
            raise InvalidInputError(f"cannot read the recipe {path}: {error}") from error
    from audiogen_fast.models import loaders

    config = read_json(path / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else {}
    if config.get("model_type") == "encodec":
        from transformers import EncodecConfig

        from audiogen_fast.models.hf_encodec import structure

        return {"solver": "codec", **structure(EncodecConfig.from_pretrained(path))}
    lm_files = (path / "state_dict.bin", path / "checkpoint.th")
    if path.is_file() or "lm" in config or any(file.is_file() for file in lm_files):
        package = loaders.load_lm_model_ckpt(path)
    else:
        package = loaders.load_compression_model_ckpt(path)
    check("xp.cfg" in package, f"recipe {path} names a codec that is kept elsewhere")
    is_codec = any(name.startswith("quantizer.") for name in package["best_state"])
    return recipe_of(parse_config(package["xp.cfg"]), is_codec)


def recipe_of(cfg: Mapping[str, Any], is_codec: bool = False) -> dict[str, Any]:
    """The values of a recipe; what has no counterpart here is named in a warning.

    Args:
        is_codec: the configuration came with a codec, whatever its `solver`.
    """
    solver = cfg.get("solver")
    check(
        solver in (*_SOLVERS, None),
        f"solver of an xp.cfg must be one of {_SOLVERS} to be a recipe, got {solver!r}",
    )
    codec = is_codec or solver == "compression"
    given = Config({k: v for k, v in cfg.items() if k not in ("solver", "parallel", "lora")})
    values, ignored = _known(CodecConfig if codec else LMConfig, given, "")
    values["solver"] = "codec" if codec else "lm"
    _rename(given, values)
    if codec:
        _rename_codec(values, of_original=solver is not None)
    told = sorted(set(ignored) - _TAKEN - (_OF_CODEC if codec else set()))
    if told:
        warnings.warn(f"keys without a counterpart are ignored: {', '.join(told)}", stacklevel=2)
    return values


# Keys that `_rename` reads, and those of the original's own machinery.
_TAKEN = frozenset(
    "autocast autocast_dtype fsdp datasource device dtype lm_model compression_model "
    "schedule.inverse_sqrt schedule.cosine schedule.linear_warmup schedule.polynomial_decay "
    "deadlock codebooks_pattern.music_lm interleave_stereo_codebooks num_threads "
    "mp_start_method efficient_attention_backend dora slurm conditioners.args encodec seanet rvq "
    "optim.eager_sync transformer_lm.cross_attention".split()
)
_OF_CODEC = frozenset(
    "compression_model seanet.channels encodec.autoencoder encodec.quantizer encodec.sample_rate "
    "encodec.channels encodec.causal".split()
)


def _rename_codec(values: dict[str, Any], of_original: bool) -> None:
    values["parallel"] = {}  # a codec's has one dtype
    values.pop("compression_model_checkpoint", None)
    rvq = values.get("rvq") or {}
    if of_original and rvq.get("threshold_ema_dead_code"):
        warnings.warn(
            "rvq.threshold_ema_dead_code is 0: the original replaces no entry, whatever it says",
            stacklevel=3,
        )
        rvq["threshold_ema_dead_code"] = 0.0


def _rename(cfg: Mapping[str, Any], values: dict[str, Any]) -> None:
    schedule = cfg.get("schedule") or {}
    name = schedule.get("lr_scheduler")
    if name in _SCHEDULES:
        options, _ = _known(dict, schedule.get(name) or {}, "")
        known = ("warmup", "warmup_init_lr", "lr_min_ratio", "cycle_length", "end_lr", "power",
                 "zero_lr_warmup_steps")  # fmt: skip
        taken = {key: value for key, value in options.items() if key in known}
        values["schedule"] = {"lr_scheduler": name} | taken
    else:
        values["schedule"] = {"lr_scheduler": None}
        if name is not None:
            warnings.warn(f"schedule.lr_scheduler {name!r} is not supported", stacklevel=3)
    parallel = {}
    fsdp = cfg.get("fsdp") or {}
    if fsdp.get("use"):
        parallel = {"mode": "fsdp", "dtype": fsdp.get("param_dtype", "float32")}
    elif cfg.get("autocast"):
        parallel = {"dtype": cfg.get("autocast_dtype", "float16")}
    values["parallel"] = parallel
    dataset = values.setdefault("dataset", {})
    for part in ("train", "valid", "evaluate", "generate"):
        source = (cfg.get("datasource") or {}).get(part)
        if source is not None:
            dataset.setdefault(part, {})["source"] = str(source)
    codec = str(values.pop("compression_model_checkpoint", None) or "")
    if codec.startswith("//pretrained/"):
        values["compression_model_checkpoint"] = codec.removeprefix("//pretrained/")
    elif codec and not codec.startswith("//"):
        values["compression_model_checkpoint"] = codec
    pattern = values.get("codebooks_pattern")
    if pattern and "music_lm" in (cfg.get("codebooks_pattern") or {}):
        pattern["musiclm"] = dict(cfg["codebooks_pattern"]["music_lm"])
    timeout = (cfg.get("deadlock") or {}).get("timeout")
    if timeout:
        values["safety"] = {"timeout": float(timeout)}
    optimizer = (values.get("optim") or {}).get("optimizer")
    if optimizer not in (None, "adam", "adamw"):
        warnings.warn(f"optim.optimizer {optimizer!r} is not supported: adamw", stacklevel=3)
        values["optim"]["optimizer"] = "adamw"
    checkpointing = (values.get("transformer_lm") or {}).get("checkpointing")
    if checkpointing not in (None, "none", "torch"):
        values["transformer_lm"]["checkpointing"] = "torch"


def _known(kind: Any, given: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """The part of nested values that a dataclass has fields for, and the paths of the rest."""
    if not is_dataclass(kind):
        return {k: v for k, v in given.items()}, []
    hints = typing.get_type_hints(kind)
    names = {field.name for field in fields(kind)}
    kept: dict[str, Any] = {}
    ignored: list[str] = []
    for key, value in given.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in names:
            ignored.append(path)
            continue
        inner = _section(hints[key])
        if isinstance(value, Mapping) and typing.get_origin(hints[key]) is dict and inner:
            kept[key] = {}
            for name, item in value.items():
                if isinstance(item, Mapping) and "model" in item:
                    kept[key][name], rest = _known(inner, item, f"{path}.{name}")
                    ignored += rest
                else:
                    ignored.append(f"{path}.{name}")
        elif isinstance(value, Mapping) and inner:
            kept[key], rest = _known(inner, value, path)
            ignored += rest
        else:
            kept[key] = value
    return kept, ignored


def _section(hint: Any) -> Any:
    """The dataclass in a field's type, if there is one."""
    for kind in (hint, *typing.get_args(hint)):
        if is_dataclass(kind):
            return kind
    return None
