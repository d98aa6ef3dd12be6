"""A run's language model with its codec, as folders that `get_pretrained` and audiocraft load."""

from pathlib import Path

import torch

from audiogen_fast.config import Config
from audiogen_fast.errors import check
from audiogen_fast.models import loaders
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.models.hf_encodec import HFEncodecCompressionModel
from audiogen_fast.models.lm import LMModel
from audiogen_fast.models.saving import save_pretrained
from audiogen_fast.models.stereo import InterleaveStereoCompressionModel
from audiogen_fast.training import lora, runs
from audiogen_fast.training.checkpoint import read_tensors
from audiogen_fast.training.codec.export import write_codec, write_released
from audiogen_fast.training.config_lm import LMConfig
from audiogen_fast.training.lm_build import build_codec, build_lm
from audiogen_fast.training.runs import Exported, run_config

FORMATS = ("audiogen_fast", "audiocraft")


def load_run(
    folder: str | Path, step: int | str | None = None, weights: str = "ema"
) -> tuple[LMConfig, LMModel, int, str]:
    """The language model of a run, with its adapters still apart.

    Args:
        step, weights: see `runs.choose`.
    Returns:
        Configuration, model, update, and which weights they are.
    """
    config = run_config(folder)
    check(
        isinstance(config, LMConfig),
        f"run must be one of the lm solver, {folder} is of {config.solver!r}",
    )
    chosen = runs.choose(folder, config, step, weights)
    lm = build_lm(config)
    adapters = config.lora
    if adapters.rank:
        lora.add_adapters(lm, adapters.rank, adapters.alpha, adapters.targets)
    state = lm.state_dict()
    if adapters.rank:
        state = {name: t for name, t in state.items() if lora.is_adapter(name)}
    read_tensors(chosen.path, {chosen.prefix + name: tensor for name, tensor in state.items()})
    return config, lm.eval(), chosen.step, chosen.weights


def export_lm(
    folder: str | Path,
    output: str | Path,
    format: str = "audiogen_fast",
    step: int | str | None = None,
    weights: str = "ema",
    codec: str | None = None,
) -> Exported:
    """Write language model and codec of a run for use.

    Args:
        folder: of the run.
        output: folder to write to. `audiogen_fast`: safetensors with the text encoder, loaded by
            `AudioGen.get_pretrained`; `audiocraft`: `state_dict.bin` and
            `compression_state_dict.bin`, which audiocraft loads too.
        step, weights: see `load_run`.
        codec: checkpoint of the codec; None for the run's own.
    """
    check(format in FORMATS, f"format must be one of {FORMATS}, got {format!r}")
    config, lm, step, kind = load_run(folder, step, weights)
    lm = plain(lm, config)
    if codec is not None:
        compression = loaders.get_pretrained_compression_model(codec)
    else:
        compression = build_codec(config, torch.device("cpu"))
    check(compression is not None, "codec must be given: the run was on codes and names none")
    output = Path(output)
    if format == "audiogen_fast":
        save_pretrained(output, lm, compression)
    else:
        output.mkdir(parents=True, exist_ok=True)
        _write_original(output, lm, compression)
    return Exported(output, step, kind)


def export_adapter(
    folder: str | Path, output: str | Path, step: int | str | None = None, weights: str = "ema"
) -> Exported:
    """Write the adapters of a run alone; see `lora.apply_adapter`."""
    config, lm, step, kind = load_run(folder, step, weights)
    adapters = config.lora
    check(adapters.rank > 0, f"run must have adapters (lora.rank), {folder} trained all weights")
    base = str(config.continue_from)
    lora.save_adapter(Path(output), lm.state_dict(), adapters.rank, adapters.alpha, base)
    return Exported(Path(output), step, kind)


@torch.no_grad()
def plain(lm: LMModel, config: LMConfig) -> LMModel:
    """The model with its adapters added into the weights."""
    from torch.nn.utils import parametrize

    for module in list(lm.modules()):
        for name in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return lm


def _write_original(output: Path, lm: LMModel, codec: CompressionModel) -> None:
    write_released(output / "state_dict.bin", lm.state_dict(), lm.cfg)
    if isinstance(codec, InterleaveStereoCompressionModel):
        codec = codec.model
    check(
        not isinstance(codec, HFEncodecCompressionModel),
        "codec must be an EnCodec of this package for the format audiocraft, got one of "
        "transformers",
    )
    state, cfg = codec.state_dict(), codec.cfg
    if not any("parametrizations" in name for name in state):
        # Normalised weights were multiplied out when it was loaded.
        cfg = Config(cfg, seanet=Config(cfg["seanet"], norm="none", norm_params={}))
    # audiocraft has no defaults for these two.
    cfg = Config(cfg, seanet=Config({"encoder": {}, "decoder": {}} | cfg["seanet"]))
    write_codec(cfg, state, output, "audiocraft")
