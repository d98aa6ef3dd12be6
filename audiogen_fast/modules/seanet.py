"""SEANet encoder and decoder, the convolutional halves of EnCodec."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.modules.conv import StreamableConv1d, StreamableConvTranspose1d
from audiogen_fast.modules.lstm import StreamableLSTM

_ELU = {"alpha": 1.0}


def _run(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Apply `layers` in turn, activations in place in inference.

    Only activations after another layer are in place, so the caller's tensor is never changed. On
    a CPU a fresh tensor of a clip's size costs more than the activation itself.
    """
    owned = False
    for layer in layers:
        if owned and isinstance(layer, nn.ELU) and not torch.is_grad_enabled():
            x = F.elu_(x, layer.alpha)
        else:
            x = layer(x)
        owned = True
    return x


class SEANetResnetBlock(nn.Module):
    """`shortcut(x) + block(x)`, the block being activation and convolution in turns.

    Args:
        dim: channels in and out; the inner width is `dim // compress`.
        kernel_sizes, dilations: one per convolution.
        true_skip: identity shortcut; otherwise a convolution of kernel 1.
    """

    def __init__(
        self,
        dim: int,
        kernel_sizes: Sequence[int] = (3, 1),
        dilations: Sequence[int] = (1, 1),
        activation: str = "ELU",
        activation_params: Mapping[str, Any] = _ELU,
        norm: str = "none",
        norm_params: Mapping[str, Any] | None = None,
        causal: bool = False,
        pad_mode: str = "reflect",
        compress: int = 2,
        true_skip: bool = True,
    ):
        super().__init__()
        check(
            len(kernel_sizes) == len(dilations),
            f"kernel_sizes and dilations must have one length, got {kernel_sizes}, {dilations}",
        )
        conv = {"norm": norm, "norm_kwargs": norm_params, "causal": causal, "pad_mode": pad_mode}
        widths = [dim] + [dim // compress] * (len(kernel_sizes) - 1) + [dim]
        block: list[nn.Module] = []
        for i, (kernel_size, dilation) in enumerate(zip(kernel_sizes, dilations, strict=True)):
            block.append(getattr(nn, activation)(**activation_params))
            block.append(
                StreamableConv1d(widths[i], widths[i + 1], kernel_size, dilation=dilation, **conv)
            )
        self.block = nn.Sequential(*block)
        self.shortcut: nn.Module = nn.Identity()
        if not true_skip:
            self.shortcut = StreamableConv1d(dim, dim, kernel_size=1, **conv)

    def forward(self, x: Tensor) -> Tensor:
        return _run(self.block, x).add_(self.shortcut(x))


class _SEANet(nn.Module):
    """Options common to both halves; see `SEANetEncoder`."""

    def __init__(
        self,
        channels: int = 1,
        dimension: int = 128,
        n_filters: int = 32,
        n_residual_layers: int = 3,
        ratios: Sequence[int] = (8, 5, 4, 2),
        activation: str = "ELU",
        activation_params: Mapping[str, Any] = _ELU,
        norm: str = "none",
        norm_params: Mapping[str, Any] | None = None,
        residual_kernel_size: int = 3,
        dilation_base: int = 2,
        causal: bool = False,
        pad_mode: str = "reflect",
        true_skip: bool = True,
        compress: int = 2,
        disable_norm_outer_blocks: int = 0,
    ):
        super().__init__()
        self.channels, self.dimension, self.n_filters = channels, dimension, n_filters
        self.ratios, self.n_residual_layers = list(ratios), n_residual_layers
        self.hop_length = math.prod(self.ratios)
        self.n_blocks = len(self.ratios) + 2  # first and last convolution, one block per ratio
        self.disable_norm_outer_blocks = disable_norm_outer_blocks
        check(
            0 <= disable_norm_outer_blocks <= self.n_blocks,
            f"disable_norm_outer_blocks must lie in 0..{self.n_blocks}, "
            f"got {disable_norm_outer_blocks}",
        )
        self._norm = norm
        self._conv = {"norm_kwargs": norm_params, "causal": causal, "pad_mode": pad_mode}
        self._resnet = {
            "activation": activation,
            "activation_params": activation_params,
            "norm_params": norm_params,
            "causal": causal,
            "pad_mode": pad_mode,
            "compress": compress,
            "true_skip": true_skip,
        }
        self._kernels = (residual_kernel_size, 1)
        self._dilation_base = dilation_base

    def _block_norm(self, distance: int) -> str:
        """Norm of the block that is `distance` blocks from the audio (1 for the outermost)."""
        return "none" if self.disable_norm_outer_blocks >= distance else self._norm

    def _activation(self) -> nn.Module:
        return getattr(nn, self._resnet["activation"])(**self._resnet["activation_params"])

    def _residual_layers(self, width: int, norm: str) -> list[nn.Module]:
        return [
            SEANetResnetBlock(
                width, self._kernels, (self._dilation_base**j, 1), norm=norm, **self._resnet
            )
            for j in range(self.n_residual_layers)
        ]

    def forward(self, x: Tensor) -> Tensor:
        return _run(self.model, x)


class SEANetEncoder(_SEANet):
    """Audio `[B, channels, T]` to latents `[B, dimension, ceil(T / prod(ratios))]`.

    Args:
        channels: audio channels.
        dimension: latent channels.
        n_filters: width of the outermost block; it doubles with every ratio.
        n_residual_layers: residual blocks per ratio, dilated by `dilation_base ** j`.
        ratios: up-sampling ratios in the decoder's order; the encoder uses them reversed.
        activation, activation_params: name of a `torch.nn` activation and its options.
        norm, norm_params: normalisation of the convolutions.
        kernel_size, last_kernel_size, residual_kernel_size: kernels.
        causal, pad_mode: padding of the convolutions.
        true_skip, compress: see `SEANetResnetBlock`.
        lstm: layers of LSTM next to the latents, 0 for none.
        disable_norm_outer_blocks: blocks next to the audio that have no norm.
    """

    def __init__(self, *args, kernel_size: int = 7, last_kernel_size: int = 7, lstm: int = 0, **kw):
        super().__init__(*args, **kw)
        self.ratios.reverse()
        width = self.n_filters
        model: list[nn.Module] = [
            StreamableConv1d(
                self.channels, width, kernel_size, norm=self._block_norm(1), **self._conv
            )
        ]
        for i, ratio in enumerate(self.ratios):
            norm = self._block_norm(i + 2)
            model += self._residual_layers(width, norm)
            model += [
                self._activation(),
                StreamableConv1d(
                    width, width * 2, ratio * 2, stride=ratio, norm=norm, **self._conv
                ),
            ]
            width *= 2
        if lstm:
            model.append(StreamableLSTM(width, num_layers=lstm))
        last_norm = self._block_norm(self.n_blocks)
        model += [
            self._activation(),
            StreamableConv1d(width, self.dimension, last_kernel_size, norm=last_norm, **self._conv),
        ]
        self.model = nn.Sequential(*model)


class SEANetDecoder(_SEANet):
    """Latents `[B, dimension, T]` to audio `[B, channels, T * prod(ratios)]`.

    Args: those of `SEANetEncoder`, and
        final_activation, final_activation_params: `torch.nn` activation on the audio, or None.
        trim_right_ratio: see `StreamableConvTranspose1d`.
    """

    def __init__(
        self,
        *args,
        kernel_size: int = 7,
        last_kernel_size: int = 7,
        lstm: int = 0,
        final_activation: str | None = None,
        final_activation_params: Mapping[str, Any] | None = None,
        trim_right_ratio: float = 1.0,
        **kw,
    ):
        super().__init__(*args, **kw)
        width = self.n_filters * 2 ** len(self.ratios)
        first_norm = self._block_norm(self.n_blocks)
        model: list[nn.Module] = [
            StreamableConv1d(self.dimension, width, kernel_size, norm=first_norm, **self._conv)
        ]
        if lstm:
            model.append(StreamableLSTM(width, num_layers=lstm))
        for i, ratio in enumerate(self.ratios):
            norm = self._block_norm(self.n_blocks - (i + 1))
            model += [
                self._activation(),
                StreamableConvTranspose1d(
                    width,
                    width // 2,
                    ratio * 2,
                    stride=ratio,
                    norm=norm,
                    norm_kwargs=self._conv["norm_kwargs"],
                    causal=self._conv["causal"],
                    trim_right_ratio=trim_right_ratio,
                ),
            ]
            width //= 2
            model += self._residual_layers(width, norm)
        model += [
            self._activation(),
            StreamableConv1d(
                self.n_filters,
                self.channels,
                last_kernel_size,
                norm=self._block_norm(1),
                **self._conv,
            ),
        ]
        if final_activation is not None:
            model.append(getattr(nn, final_activation)(**(final_activation_params or {})))
        self.model = nn.Sequential(*model)
