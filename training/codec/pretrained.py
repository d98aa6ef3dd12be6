"""Starting from the weights of another codec."""

import copy

import torch
from torch.nn.utils import parametrize

from audiogen_fast.errors import InvalidInputError, check
from audiogen_fast.models.encodec import CompressionModel, EncodecModel
from audiogen_fast.modules.conv import fold_weight_norm
from audiogen_fast.training.codec.export import is_run, read_run


def load_weights(model: EncodecModel, name: str) -> None:
    """Give a model that is to be trained the weights of a codec.

    Args:
        model: of the configuration.
        name: folder of a run of the codec solver, whose newest moving average is taken; or a
            checkpoint that `CompressionModel.get_pretrained` knows.
    Raises:
        InvalidInputError: it is no EnCodec, or of another structure.
        CheckpointError: it cannot be read.
    """
    try:
        if is_run(name):
            model.load_state_dict(read_run(name)[1])
            return
        loaded = CompressionModel.get_pretrained(name)
        check(
            isinstance(loaded, EncodecModel),
            f"continue_from must be an EnCodec of this package or of audiocraft, got {name}",
        )
        _copy_folded(loaded, model)
    except RuntimeError as error:  # of load_state_dict
        raise InvalidInputError(
            f"continue_from: {name} does not fit the configuration: {error}"
        ) from error


@torch.no_grad()
def _copy_folded(loaded: EncodecModel, model: EncodecModel) -> None:
    """Copy a model for inference, whose normalised weights are plain ones, into one for training.

    A weight w becomes the direction w with the length of w.
    """
    folded = fold_weight_norm(copy.deepcopy(model))
    folded.load_state_dict(loaded.state_dict())
    for name, module in model.named_modules():
        if ".parametrizations" in name:
            continue
        source = folded.get_submodule(name)
        for key, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                value.copy_(getattr(source, key))
        if parametrize.is_parametrized(module, "weight"):
            module.weight = source.weight
