"""Resampling by a fraction of two integer rates: windowed sinc, one filter per output phase.

The method is Julius O. Smith's band-limited interpolation, https://ccrma.stanford.edu/~jos/resample/,
with the constants of the `julius` package, whose results the published model's users have.
"""

import math
from functools import lru_cache

import torch
from torch.nn import functional as F

from audiogen_fast.errors import check

_ZEROS = 24
"""Zero crossings of the sinc kept on each side."""
_ROLLOFF = 0.945
"""Cut-off as a fraction of the lower Nyquist frequency; the margin a finite filter needs."""
_DENSE_KERNEL = 2**20
"""Up to this many coefficients all phases share one window, above it the window is trimmed."""
_PHASES_PER_GROUP = 64


def resample_frac(wav: torch.Tensor, old_rate: int, new_rate: int) -> torch.Tensor:
    """Resample the last dimension.

    With both rates divided by their greatest common divisor, output sample `new * m + i` is
    `sum_n wav[old * m + n] * h_i[n]`, `h_i` being the filter of phase i (see `_phase_filters`).
    The first and last sample are repeated beyond the edges.

    Args:
        wav: `[*, T]`, floating point, any device. Half precision is computed in float32.
        old_rate, new_rate: sample rates, positive integers.

    Returns:
        `[*, floor(new_rate * T / old_rate)]`, the dtype and device of `wav`; `wav` itself when
        the rates are equal.

    Raises:
        InvalidInputError: `wav` is not floating point.
    """
    divisor = math.gcd(old_rate, new_rate)
    old, new = old_rate // divisor, new_rate // divisor
    if old == new:
        return wav
    check(wav.is_floating_point(), f"wav must be floating point, got {wav.dtype}")
    *shape, length = wav.shape
    out_length = new * length // old
    if wav.numel() == 0 or out_length == 0:
        return wav.new_zeros(*shape, out_length)

    x = wav.reshape(-1, 1, length).to(_compute_dtype(wav))
    width = _half_width(old, new)
    x = F.pad(x, (width, width + old), mode="replicate")
    frames = length // old + 1
    phases = []
    for first, last, start, stop in _phase_groups(old, new, width):
        kernel = _phase_filters(old, new, first, last, start, stop, x.dtype, x.device)
        # start counts from -width, which is the index 0 of the padded signal
        span = x[..., start + width : stop + width + (frames - 1) * old]
        phases.append(F.conv1d(span, kernel, stride=old))
    y = torch.cat(phases, dim=1).transpose(1, 2).reshape(*shape, -1)
    return y[..., :out_length].to(wav.dtype)


def _compute_dtype(wav: torch.Tensor) -> torch.dtype:
    # in float32, cuDNN may compute a convolution in TF32, which keeps 10 bits
    return torch.float64 if wav.is_cuda else torch.promote_types(wav.dtype, torch.float32)


def _half_width(old: int, new: int) -> int:
    """Input samples on each side of an output sample that its filter reaches."""
    return math.ceil(_ZEROS * old / (min(old, new) * _ROLLOFF))


def _phase_groups(old: int, new: int, width: int) -> list[tuple[int, int, int, int]]:
    """Groups (first phase, last phase, first tap, tap after the last) that share one window.

    The filter of phase i is centred on input i * old / new, so a window common to all phases is
    mostly zeros when both rates stay large (44101 to 16000 Hz: 2.8 GB of coefficients for 141
    taps that count in each of 16000 phases). Such rates are done in groups of near phases.
    """
    if new * (2 * width + old) <= _DENSE_KERNEL:
        return [(0, new - 1, -width, width + old)]
    groups = []
    for first in range(0, new, _PHASES_PER_GROUP):
        last = min(first + _PHASES_PER_GROUP, new) - 1
        stop = min(last * old // new + width + 2, width + old)
        groups.append((first, last, first * old // new - width, stop))
    return groups


@lru_cache(maxsize=64)
def _phase_filters(
    old: int,
    new: int,
    first: int,
    last: int,
    start: int,
    stop: int,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Filters of the phases first..last, `[last - first + 1, 1, stop - start]`.

    h_i[n] = sinc(pi t) * cos(pi t / (2 * zeros)) ** 2, t = (n / old - i / new) * cutoff clamped
    to +-zeros, divided by the sum over n so that a constant signal is kept.
    """
    # a cached inference tensor would break a later backward pass through the resampler
    with torch.inference_mode(False), torch.no_grad():
        # computed in float32 in this order of operations, like julius: results are then equal
        taps = torch.arange(start, stop).float()
        shifts = torch.tensor([-i / new for i in range(first, last + 1)]).view(-1, 1, 1)
        t = (shifts + taps / old) * (min(old, new) * _ROLLOFF)
        t = t.clamp(-_ZEROS, _ZEROS) * math.pi
        sinc = torch.where(t == 0, torch.ones_like(t), torch.sin(t) / t)
        kernel = sinc * torch.cos(t / _ZEROS / 2) ** 2
        return (kernel / kernel.sum(dim=-1, keepdim=True)).to(device=device, dtype=dtype)
