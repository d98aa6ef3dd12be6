"""Discriminators of waveforms: multi-period (Kong et al. 2020) and multi-scale (Kumar et al. 2019).

The released codec was trained without them; they can be used beside the STFT discriminator.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.modules.conv import NormConv1d, pad1d
from audiogen_fast.training.codec.discriminators import NormConv2d, Output


class PeriodDiscriminator(nn.Module):
    """Convolutions over samples that are `period` apart.

    Args:
        period: in samples.
        in_channels, out_channels: of the audio, and of the logits.
        n_layers: number of layers before the last; all but the last of them have the stride.
        kernel_sizes: of these layers, and of the last one.
        stride: see `n_layers`.
        filters, filters_scale, max_filters: layer i has `filters * filters_scale^(i + 1)`
            channels, at most `max_filters`.
        norm: see `NormConv2d`.
        negative_slope: of the leaky ReLU after each layer but the last.
    """

    def __init__(
        self,
        period: int,
        in_channels: int = 1,
        out_channels: int = 1,
        n_layers: int = 5,
        kernel_sizes: Sequence[int] = (5, 3),
        stride: int = 3,
        filters: int = 8,
        filters_scale: int = 4,
        max_filters: int = 1024,
        norm: str = "weight_norm",
        negative_slope: float = 0.2,
    ):
        super().__init__()
        self.period, self.negative_slope = period, negative_slope
        width, layers = in_channels, []
        for i in range(n_layers):
            wider = min(filters * filters_scale ** (i + 1), max_filters)
            step = (stride if i < n_layers - 1 else 1, 1)
            layers.append(NormConv2d(width, wider, (kernel_sizes[0], 1), step, norm=norm))
            width = wider
        self.convs = nn.ModuleList(layers)
        self.conv_post = NormConv2d(width, out_channels, (kernel_sizes[1], 1), norm=norm)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits `[B, 1, n, period]`, and all layers' outputs, of audio `[B, C, T]`."""
        missing = -x.shape[-1] % self.period
        x = pad1d(x, (0, missing), "reflect").unflatten(-1, (-1, self.period))
        feature_maps = []
        for layer in self.convs:
            x = F.leaky_relu(layer(x), self.negative_slope)
            feature_maps.append(x)
        x = self.conv_post(x)
        return x, [*feature_maps, x]


class MultiPeriodDiscriminator(nn.Module):
    """`PeriodDiscriminator` for several periods; the other arguments are those of each."""

    def __init__(self, periods: Sequence[int] = (2, 3, 5, 7, 11), **options):
        super().__init__()
        self.discriminators = nn.ModuleList(
            PeriodDiscriminator(period, **options) for period in periods
        )

    def forward(self, x: Tensor) -> Output:
        outputs = [discriminator(x) for discriminator in self.discriminators]
        return [logits for logits, _ in outputs], [maps for _, maps in outputs]


class ScaleDiscriminator(nn.Module):
    """Grouped, strided convolutions over the waveform.

    Args:
        in_channels, out_channels: of the audio, and of the logits.
        kernel_sizes: the first layer's kernel is their product; they are those of the last two.
        filters, max_filters: width of the first layer, and the largest one.
        downsample_scales: stride of each inner layer, which is also the factor of its width; its
            kernel is `10 * stride + 1`, and each of its groups has four input channels.
        norm: see `NormConv1d`.
        negative_slope: of the leaky ReLU after each layer but the last.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        kernel_sizes: Sequence[int] = (5, 3),
        filters: int = 16,
        max_filters: int = 1024,
        downsample_scales: Sequence[int] = (4, 4, 4, 4),
        norm: str = "weight_norm",
        negative_slope: float = 0.2,
    ):
        super().__init__()
        check(
            len(kernel_sizes) == 2 and all(k % 2 == 1 for k in kernel_sizes),
            f"kernel_sizes must be two odd numbers, got {tuple(kernel_sizes)}",
        )
        self.negative_slope = negative_slope
        first = kernel_sizes[0] * kernel_sizes[1]
        self.reflected = (first - 1) // 2
        layers, width = [NormConv1d(in_channels, filters, first, norm=norm)], filters
        for scale in downsample_scales:
            wider = min(width * scale, max_filters)
            options = {"stride": scale, "padding": 5 * scale, "groups": width // 4}
            layers.append(NormConv1d(width, wider, 10 * scale + 1, norm=norm, **options))
            width = wider
        wider = min(2 * width, max_filters)
        same = {"padding": kernel_sizes[0] // 2, "norm": norm}
        layers.append(NormConv1d(width, wider, kernel_sizes[0], **same))
        self.convs = nn.ModuleList(layers)
        same["padding"] = kernel_sizes[1] // 2
        self.conv_post = NormConv1d(wider, out_channels, kernel_sizes[1], **same)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits `[B, 1, n]`, and all layers' outputs, of audio `[B, C, T]`."""
        x = pad1d(x, (self.reflected, self.reflected), "reflect")
        feature_maps = []
        for layer in self.convs:
            x = F.leaky_relu(layer(x), self.negative_slope)
            feature_maps.append(x)
        x = self.conv_post(x)
        return x, [*feature_maps, x]


class MultiScaleDiscriminator(nn.Module):
    """`ScaleDiscriminator` of the audio and of copies at lower rates.

    Args:
        num_scales: number of discriminators; each sees half the rate of the one before, by
            averages of four samples every two, two zeros added at both ends. (The original
            throws the averages away, so that all its discriminators see the full rate.)
        Other arguments: those of each.
    """

    def __init__(self, num_scales: int = 3, **options):
        super().__init__()
        self.discriminators = nn.ModuleList(
            ScaleDiscriminator(**options) for _ in range(num_scales)
        )

    def forward(self, x: Tensor) -> Output:
        logits, feature_maps = [], []
        for i, discriminator in enumerate(self.discriminators):
            if i:
                x = F.avg_pool1d(x, 4, 2, padding=2)
            output, maps = discriminator(x)
            logits.append(output)
            feature_maps.append(maps)
        return logits, feature_maps
