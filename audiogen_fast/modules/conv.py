"""1-D convolutions with normalised weights and the padding rules of EnCodec."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from audiogen_fast.errors import check
from audiogen_fast.ops.dispatch import fast_paths_enabled

CONV_NORMALIZATIONS = ("none", "weight_norm", "spectral_norm", "time_group_norm")


def get_extra_padding_for_conv1d(
    x: Tensor, kernel_size: int, stride: int, padding_total: int = 0
) -> int:
    """Right padding, in samples, that makes the last window of a strided convolution complete."""
    length = x.shape[-1]
    n_frames = (length - kernel_size + padding_total) / stride + 1
    ideal_length = (math.ceil(n_frames) - 1) * stride + (kernel_size - padding_total)
    return ideal_length - length


def pad_for_conv1d(x: Tensor, kernel_size: int, stride: int, padding_total: int = 0) -> Tensor:
    """`x` zero-padded on the right so that the last window is complete."""
    return F.pad(x, (0, get_extra_padding_for_conv1d(x, kernel_size, stride, padding_total)))


def pad1d(
    x: Tensor, paddings: tuple[int, int], mode: str = "constant", value: float = 0.0
) -> Tensor:
    """`F.pad` on time that also reflects inputs shorter than the padding.

    Such an input is extended with zeros on the right before it is reflected, then cut back.
    """
    left, right = paddings
    check(left >= 0 and right >= 0, f"paddings must not be negative, got {paddings}")
    if left == right == 0:
        return x
    if mode == "constant":
        # With one dimension more, where padding keeps a channels-last layout.
        return F.pad(x.unsqueeze(-2), paddings, mode, value).squeeze(-2)
    if mode != "reflect":
        return F.pad(x, paddings, mode)
    extra = max(0, max(left, right) - x.shape[-1] + 1)
    padded = F.pad(F.pad(x, (0, extra)), paddings, mode)
    return padded[..., : padded.shape[-1] - extra]


def unpad1d(x: Tensor, paddings: tuple[int, int]) -> Tensor:
    """Cut `paddings` samples off both ends of the time axis."""
    left, right = paddings
    check(
        left >= 0 and right >= 0 and left + right <= x.shape[-1],
        f"paddings must lie in 0..{x.shape[-1]} together, got {paddings}",
    )
    return x[..., left : x.shape[-1] - right]


def _normalize_weight(conv: nn.Module, norm: str) -> nn.Module:
    check(norm in CONV_NORMALIZATIONS, f"norm must be one of {CONV_NORMALIZATIONS}, got {norm!r}")
    if norm == "weight_norm":
        return parametrizations.weight_norm(conv)
    if norm == "spectral_norm":
        return parametrizations.spectral_norm(conv)
    return conv


def _output_norm(conv: nn.Module, norm: str, causal: bool, options: Mapping[str, Any]) -> nn.Module:
    if norm != "time_group_norm":
        return nn.Identity()
    check(not causal, "norm 'time_group_norm' sees the future and cannot be used with causal=True")
    return nn.GroupNorm(1, conv.out_channels, **options)


def _prefers_channels_last(x: Tensor) -> bool:
    # oneDNN's float32 convolutions reach 3 to 5 times the speed on channels-last tensors, which it
    # only knows in two dimensions; in training the plain path keeps gradients simple.
    return x.device.type == "cpu" and not torch.is_grad_enabled() and fast_paths_enabled()


def _apply_conv(conv: nn.Conv1d, x: Tensor, padding: int = 0) -> Tensor:
    """`conv` of `x` with `padding` zeros on both sides; channels-last inside on the CPU."""
    if not _prefers_channels_last(x):
        return conv(F.pad(x, (padding, padding)) if padding else x)
    x = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    stride, dilation = (1, *conv.stride), (1, *conv.dilation)
    weight = conv.weight.unsqueeze(2)
    padding += conv.padding[0]
    return F.conv2d(x, weight, conv.bias, stride, (0, padding), dilation, conv.groups).squeeze(2)


def _apply_conv_transpose(conv: nn.ConvTranspose1d, x: Tensor) -> Tensor:
    """`conv(x)` without padding, on CPU inference through channels-last memory."""
    if not _prefers_channels_last(x):
        return conv(x)
    x = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    weight = conv.weight.unsqueeze(2)
    return F.conv_transpose2d(x, weight, conv.bias, (1, *conv.stride)).squeeze(2)


def fold_weight_norm(module: nn.Module) -> nn.Module:
    """Replace every parametrised weight below `module` by its value, for inference."""
    for child in module.modules():
        if parametrize.is_parametrized(child, "weight"):
            parametrize.remove_parametrizations(child, "weight", leave_parametrized=True)
    return module


class NormConv1d(nn.Module):
    """`nn.Conv1d` with a weight or output normalisation (one of `CONV_NORMALIZATIONS`)."""

    def __init__(self, *args, causal: bool = False, norm: str = "none", norm_kwargs=None, **kwargs):
        super().__init__()
        self.conv = _normalize_weight(nn.Conv1d(*args, **kwargs), norm)
        self.norm = _output_norm(self.conv, norm, causal, norm_kwargs or {})
        self.norm_type = norm

    def forward(self, x: Tensor, padding: int = 0) -> Tensor:
        return self.norm(_apply_conv(self.conv, x, padding))


class NormConvTranspose1d(nn.Module):
    """`nn.ConvTranspose1d` with a weight or output normalisation."""

    def __init__(self, *args, causal: bool = False, norm: str = "none", norm_kwargs=None, **kwargs):
        super().__init__()
        self.convtr = _normalize_weight(nn.ConvTranspose1d(*args, **kwargs), norm)
        self.norm = _output_norm(self.convtr, norm, causal, norm_kwargs or {})
        self.norm_type = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(_apply_conv_transpose(self.convtr, x))


class StreamableConv1d(nn.Module):
    """Convolution that pads its input so that the output has `ceil(T / stride)` steps.

    The padding of `(kernel - 1) * dilation + 1 - stride` is all on the left if `causal`, else
    split with the larger half on the left; the completion of the last window is on the right.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        causal: bool = False,
        norm: str = "none",
        norm_kwargs: Mapping[str, Any] | None = None,
        pad_mode: str = "reflect",
    ):
        super().__init__()
        self.conv = NormConv1d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            dilation=dilation,
            groups=groups,
            bias=bias,
            causal=causal,
            norm=norm,
            norm_kwargs=norm_kwargs,
        )
        self.causal, self.pad_mode = causal, pad_mode
        self.stride = stride
        self.effective_kernel = (kernel_size - 1) * dilation + 1

    @property
    def padding_total(self) -> int:
        return self.effective_kernel - self.stride

    def forward(self, x: Tensor) -> Tensor:
        total = self.padding_total
        extra = get_extra_padding_for_conv1d(x, self.effective_kernel, self.stride, total)
        right = 0 if self.causal else total // 2
        left, right = total - right, right + extra
        if left == right and self.pad_mode == "constant":
            return self.conv(x, padding=left)
        return self.conv(pad1d(x, (left, right), mode=self.pad_mode))


class StreamableConvTranspose1d(nn.Module):
    """Transposed convolution whose output is trimmed to exactly `T * stride` steps.

    Args:
        trim_right_ratio: with `causal`, the share of the trimming done on the right.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        causal: bool = False,
        norm: str = "none",
        trim_right_ratio: float = 1.0,
        norm_kwargs: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        check(
            causal or trim_right_ratio == 1.0,
            f"trim_right_ratio other than 1 needs causal=True, got {trim_right_ratio}",
        )
        check(
            0.0 <= trim_right_ratio <= 1.0,
            f"trim_right_ratio must lie in [0, 1], got {trim_right_ratio}",
        )
        self.convtr = NormConvTranspose1d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            causal=causal,
            norm=norm,
            norm_kwargs=norm_kwargs,
        )
        self.causal, self.trim_right_ratio = causal, trim_right_ratio
        self.kernel_size, self.stride = kernel_size, stride

    @property
    def trimming(self) -> tuple[int, int]:
        """Samples cut off on the left and on the right."""
        total = self.kernel_size - self.stride
        right = math.ceil(total * self.trim_right_ratio) if self.causal else total // 2
        return total - right, right

    def forward(self, x: Tensor) -> Tensor:
        return unpad1d(self.convtr(x), self.trimming)
