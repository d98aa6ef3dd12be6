"""Starting from the weights of another codec."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
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
    if is_run(name):
        state, folded = read_run(name)[1], False
    else:
        loaded = CompressionModel.get_pretrained(name)
        check(
            isinstance(loaded, EncodecModel),
            f"continue_from must be an EnCodec of this package or of audiocraft, got {name}",
        )
        state, folded = loaded.state_dict(), True
    try:
        _load_folded(model, state) if folded else model.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidInputError(
            f"continue_from: {name} does not fit the configuration: {error}"
        ) from error


@torch.no_grad()
def _load_folded(model: EncodecModel, state: Mapping[str, Tensor]) -> None:
    """Load the state of a model for inference, whose normalised weights are plain ones.

    A weight w becomes the direction w with the length of w.
    """
    folded = fold_weight_norm(copy.deepcopy(model))
    folded.load_state_dict(state)
    for name, module in model.named_modules():
        if ".parametrizations" in name:
            continue
        source = folded.get_submodule(name)
        for key, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                value.copy_(getattr(source, key))
        if parametrize.is_parametrized(module, "weight"):
            module.weight = source.weight
