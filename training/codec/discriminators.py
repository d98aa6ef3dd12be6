"""Multi-scale STFT discriminator (Défossez et al. 2022, section 3.4 and figure 2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from audiogen_fast.errors import check

Output = tuple[list[Tensor], list[list[Tensor]]]
"""Logits of each sub-discriminator, and the feature maps of each of its layers."""

_FLOOR = 1e-8
"""Added to energies before they are compressed: a root's slope at 0 has no bound."""

_NORMS = {
    "none": lambda conv: conv,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
}


class NormConv2d(nn.Module):
    """`nn.Conv2d` that keeps its size at stride 1, with a weight normalisation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        norm: str = "none",
    ):
        super().__init__()
        check(norm in _NORMS, f"norm must be one of {sorted(_NORMS)}, got {norm!r}")
        padding = tuple((k - 1) * d // 2 for k, d in zip(kernel_size, dilation, strict=True))
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation)
        self.conv = _NORMS[norm](conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class STFTDiscriminator(nn.Module):
    """Convolutions over a complex spectrogram whose real and imaginary parts are channels.

    Args:
        filters: width of the first layer; layer i has `filters * filters_scale^i`.
        in_channels, out_channels: of the audio, and of the logits.
        n_fft, hop_length, win_length: of the transform, in samples; Hann windows, not centred,
            divided by the root of the window's energy with `normalized`.
        max_filters, filters_scale: see `filters`.
        kernel_size, stride: of the inner layers, over time and frequency.
        dilations: over time, one inner layer each.
        norm: `none`, `weight_norm` or `spectral_norm`; the first layer has none.
        negative_slope: of the leaky ReLU after each layer but the last.
        power: magnitudes are raised to it, phases kept; below 1 quiet parts are seen too.
    """

    def __init__(
        self,
        filters: int = 32,
        in_channels: int = 1,
        out_channels: int = 1,
        n_fft: int = 1024,
        hop_length: int = 256,
        win_length: int = 1024,
        max_filters: int = 1024,
        filters_scale: int = 1,
        kernel_size: tuple[int, int] = (3, 9),
        dilations: Sequence[int] = (1, 2, 4),
        stride: tuple[int, int] = (1, 2),
        normalized: bool = True,
        norm: str = "weight_norm",
        negative_slope: float = 0.3,
        power: float = 1.0,
    ):
        super().__init__()
        check(0 < power <= 1, f"power must lie above 0 and be at most 1, got {power}")
        self.power = power
        self.n_fft, self.hop_length, self.win_length = n_fft, hop_length, win_length
        self.negative_slope = negative_slope
        window = torch.hann_window(win_length)
        if normalized:
            window = window / window.square().sum().sqrt()
        self.register_buffer("window", window, persistent=False)
        widths = [min(filters * filters_scale**i, max_filters) for i in range(len(dilations) + 2)]
        square = (kernel_size[0], kernel_size[0])
        layers = [NormConv2d(2 * in_channels, filters, kernel_size)]
        # The original's second layer expects `filters * filters_scale` channels, which the first
        # one gives only at a scale of 1.
        for width, wider, dilation in zip(widths, widths[1:], dilations, strict=False):
            layers.append(NormConv2d(width, wider, kernel_size, stride, (dilation, 1), norm))
        layers.append(NormConv2d(widths[-2], widths[-1], square, norm=norm))
        self.convs = nn.ModuleList(layers)
        self.conv_post = NormConv2d(widths[-1], out_channels, square, norm=norm)

    def spectrogram(self, x: Tensor) -> Tensor:
        """`[B, 2 C, frames, bins]`, all real parts first, of audio `[B, C, T]`."""
        check(
            x.ndim == 3 and x.shape[-1] >= self.n_fft,
            f"x must be [B, C, T] with T >= {self.n_fft} (n_fft), got {tuple(x.shape)}",
        )
        spectrum = torch.stft(
            x.flatten(0, 1).float(),
            self.n_fft,
            self.hop_length,
            self.win_length,
            self.window,
            center=False,
            return_complex=True,
        )
        parts = torch.view_as_real(spectrum).unflatten(0, x.shape[:2])  # [B, C, bins, frames, 2]
        if self.power != 1:
            energy = parts.square().sum(-1, keepdim=True)
            parts = parts * (energy + _FLOOR) ** ((self.power - 1) / 2)
        return parts.permute(0, 4, 1, 3, 2).flatten(1, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits `[B, 1, frames, bins']` and a feature map for each layer but the last."""
        x = self.spectrogram(x)
        feature_maps = []
        for layer in self.convs:
            x = F.leaky_relu(layer(x), self.negative_slope)
            feature_maps.append(x)
        return self.conv_post(x), feature_maps


class MultiScaleSTFTDiscriminator(nn.Module):
    """`STFTDiscriminator` at several resolutions; the other arguments are those of each."""

    def __init__(
        self,
        n_ffts: Sequence[int] = (1024, 2048, 512, 256, 128),
        hop_lengths: Sequence[int] = (256, 512, 128, 64, 32),
        win_lengths: Sequence[int] = (1024, 2048, 512, 256, 128),
        **options,
    ):
        super().__init__()
        check(
            len(n_ffts) == len(hop_lengths) == len(win_lengths) > 0,
            "n_ffts, hop_lengths and win_lengths must have one length above 0, got "
            f"{len(n_ffts)}, {len(hop_lengths)} and {len(win_lengths)}",
        )
        self.discriminators = nn.ModuleList(
            STFTDiscriminator(n_fft=n_fft, hop_length=hop, win_length=win, **options)
            for n_fft, hop, win in zip(n_ffts, hop_lengths, win_lengths, strict=True)
        )

    def forward(self, x: Tensor) -> Output:
        """Logits and feature maps of each scale, of audio `[B, C, T]`."""
        outputs = [discriminator(x) for discriminator in self.discriminators]
        return [logits for logits, _ in outputs], [maps for _, maps in outputs]
