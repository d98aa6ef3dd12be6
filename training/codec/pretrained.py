"""Starting from the weights of another codec."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from audiogen_fast.errors import InvalidInputError, check
from audiogen_fast.models import hf_encodec
from audiogen_fast.models.encodec import CompressionModel, EncodecModel
from audiogen_fast.training.checkpoint import read_tensors
from audiogen_fast.training.codec.config import CodecConfig
from audiogen_fast.training.codec.export import read_run
from audiogen_fast.training.codec.parts import discriminator_names
from audiogen_fast.training.runs import choose, is_run, run_config

# What makes a codec another one. The rest of `rvq` is how it learns; `seanet.norm` may be that of
# weights that were multiplied out.
_COMPARED = (
    "sample_rate channels encodec.renormalize seanet.dimension seanet.n_filters "
    "seanet.n_residual_layers seanet.ratios seanet.activation seanet.kernel_size "
    "seanet.last_kernel_size seanet.residual_kernel_size seanet.dilation_base seanet.causal "
    "seanet.pad_mode seanet.true_skip seanet.compress seanet.lstm "
    "seanet.decoder.trim_right_ratio rvq.n_q rvq.bins"
).split()


def load_weights(model: EncodecModel, name: str, config: CodecConfig) -> None:
    """Give a model that is to be trained the weights of a codec.

    Args:
        model: of the configuration.
        name: folder of a run of the codec solver, whose newest moving average is taken; or a
            checkpoint that `CompressionModel.get_pretrained` knows. Of one in the format of
            transformers with more codebooks than the model the first ones are taken.
        config: the model's.
    Raises:
        InvalidInputError: it is no EnCodec, or of another structure.
        CheckpointError: it cannot be read.
    """
    if is_run(name):
        theirs, state = read_run(name)[:2]
        cfg, folded = theirs.model_config(), False
    else:
        loaded = CompressionModel.get_pretrained(name)
        if isinstance(loaded, hf_encodec.HFEncodecCompressionModel):
            cfg, folded = hf_encodec.structure(loaded.model.config), False
            cfg["rvq"]["n_q"] = min(cfg["rvq"]["n_q"], config.rvq.n_q)
            state = hf_encodec.state_of(loaded, cfg["rvq"]["n_q"])
        else:
            check(
                isinstance(loaded, EncodecModel),
                f"continue_from must be an EnCodec, got {name}",
            )
            cfg, state, folded = getattr(loaded, "cfg", {}), loaded.state_dict(), True
    _check_structure(config, cfg, name)
    try:
        _load_folded(model, state) if folded else model.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidInputError(
            f"continue_from: {name} does not fit the configuration: {error}"
        ) from error


def load_discriminators(modules: Mapping[str, nn.Module], name: str, config: CodecConfig) -> bool:
    """Give discriminators the weights of those of a run, which take long to learn anew.

    Args:
        modules: the discriminators of `config`, by name.
        name: see `load_weights`; of a run the newest checkpoint is taken.
    Returns:
        Whether it is a run with the same discriminators; else nothing is changed.
    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    if not modules or not is_run(name):
        return False
    theirs = run_config(name)
    same = all(getattr(theirs, kind) == getattr(config, kind) for kind in modules)
    if not same or set(discriminator_names(theirs)) != set(modules):
        return False
    tensors = {
        f"adversary_{kind}.{key}": tensor
        for kind, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    read_tensors(choose(name, theirs).path, tensors)
    return True


def _check_structure(config: CodecConfig, cfg: Mapping[str, Any], name: str) -> None:
    """Compare what the shapes of tensors do not tell too, such as `seanet.causal`."""
    differing = []
    for path in _COMPARED:
        ours, theirs = _value(config.model_config(), path), _value(cfg, path)
        if theirs not in (None, ours):
            differing.append(f"{path} is {theirs} there and {ours} here")
    check(
        not differing,
        f"continue_from: {name} does not fit the configuration: {', '.join(differing)}",
    )


def _value(cfg: Any, path: str) -> Any:
    for key in path.split("."):
        cfg = cfg.get(key) if isinstance(cfg, Mapping) else None
    return cfg


@torch.no_grad()
def _load_folded(model: EncodecModel, state: Mapping[str, Tensor]) -> None:
    """Load the state of a model for inference, whose normalised weights are plain ones.

    A weight w becomes the direction w with the length of w.

    Raises:
        RuntimeError: tensors are missing, left over, or of another shape.
    """
    # Not through a folded copy: folding takes the property `weight` from a class that copies share,
    # and weights that are assigned then are plain attributes that nothing trains or saves.
    remaining = dict(state)
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            key, shape = f"{name}.weight", module.weight.shape
            weight = remaining.pop(key, None)
            if weight is None or weight.shape != shape:
                found = "missing" if weight is None else f"{list(weight.shape)}"
                raise RuntimeError(f"{key} must be {list(shape)}, and is {found}")
            module.weight = weight.clone()
    missing, unexpected = model.load_state_dict(remaining, strict=False)
    missing = [name for name in missing if ".parametrizations." not in name]
    if missing or unexpected:
        raise RuntimeError(f"{missing} are missing, {unexpected} left over")
