"""Initial weights of a codec."""

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from audiogen_fast.models.encodec import EncodecModel


@torch.no_grad()
def keep_variance(model: EncodecModel) -> None:
    """Weights that pass the variance of a signal on from layer to layer, and biases of zero.

    torch's own start makes a convolution's output a third as strong as its input in power, or
    less: after the twenty layers of an encoder nearly all of the latents is bias, every frame
    chooses the same few entries, and minutes go by until the codec notices the sound. Here weights
    are normal with the variance `1 / fan`, fan being the inputs of one output: channels times
    kernel, divided by the stride where it is transposed (He et al. 2015 without the factor for
    ReLU). The last convolution stays as it is, so that the first audio is quiet.
    """
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]
    last = [m for m in model.decoder.modules() if isinstance(m, nn.Conv1d)][-1]
    for conv in convolutions:
        if conv is last:
            continue
        fan = conv.in_channels * conv.kernel_size[0]
        if isinstance(conv, nn.ConvTranspose1d):
            fan /= conv.stride[0]
        weight = torch.randn_like(conv.weight) / math.sqrt(fan)
        if parametrize.is_parametrized(conv, "weight"):
            conv.weight = weight
        else:
            conv.weight.copy_(weight)
        if conv.bias is not None:
            conv.bias.zero_()
