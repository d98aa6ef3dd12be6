"""Loudness of a recording after ITU-R BS.1770-4, https://www.itu.int/rec/R-REC-BS.1770.

The two filters are second-order sections of the Audio EQ Cookbook with the corner frequencies
that torchaudio's `Loudness` uses, which also clamps to [-1, 1] after each of them: a recording
near full scale reads a few tenths of a dB less than the standard has it.
"""

import math

import torch

from audiogen_fast.errors import check

_BLOCK_SECONDS = 0.4
_BLOCK_OVERLAP = 0.75
_ABSOLUTE_GATE = -70.0
"""LKFS below which a block does not count."""
_RELATIVE_GATE = -10.0
"""LU below the mean of the blocks that passed the absolute gate."""
_OFFSET = -0.691
"""dB, undoes the filters' gain at 997 Hz: there a sine in one channel reads its mean square."""
_CHANNEL_GAINS = (1.0, 1.0, 1.0, 1.41, 1.41)
"""Left, right, centre, left surround, right surround."""
_SHELF_HZ = 1500.0
_FFT = 2**17
"""Size of the transforms of a long recording."""

Biquad = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Numerator (b0, b1, b2) and denominator (1, a1, a2) of a second-order filter in 1/z."""


def integrated_loudness(wav: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Gated loudness in LKFS.

    Blocks of 0.4 s every 0.1 s; a recording shorter than 0.4 s is one block of its own length
    (the standard leaves it undefined, torchaudio fails).

    Args:
        wav: `[*, C, T]` with 1 to 5 channels (left, right, centre, surrounds), full scale 1.
        sample_rate: in Hz, above 3000 (the shelf's corner must lie below the Nyquist frequency).

    Returns:
        `[*]`, float64 on the CPU; -inf where no block is above -70 LKFS.

    Raises:
        InvalidInputError: no time samples, more than 5 channels, or a sample rate too low.
    """
    check(wav.dim() >= 2, f"wav must be [*, C, T] for loudness, got shape {tuple(wav.shape)}")
    *_, channels, length = wav.shape
    limit = len(_CHANNEL_GAINS)
    check(1 <= channels <= limit, f"wav must have 1 to {limit} channels, got {channels}")
    check(length > 0, "wav must have at least one sample for loudness, got 0")
    check(
        sample_rate > 2 * _SHELF_HZ,
        f"sample_rate must be above {2 * _SHELF_HZ:g} Hz for loudness, got {sample_rate}",
    )
    # float64 because the high-pass has its poles close to 1; the CPU because MPS has no float64
    x = wav.detach().to("cpu", torch.float64)
    for biquad in (_high_shelf(sample_rate), _high_pass(sample_rate)):
        x = _filter(x, biquad).clamp_(-1, 1)

    block = min(round(_BLOCK_SECONDS * sample_rate), length)
    step = round(round(_BLOCK_SECONDS * sample_rate) * (1 - _BLOCK_OVERLAP))
    energy = x.square().unfold(-1, block, step).mean(dim=-1)  # [*, C, blocks]
    gains = torch.tensor(_CHANNEL_GAINS[:channels], dtype=x.dtype)
    power = (gains[:, None] * energy).sum(dim=-2)  # [*, blocks]
    loudness = _to_lkfs(power)
    above = loudness > _ABSOLUTE_GATE
    threshold = _to_lkfs(_masked_mean(power, above)) + _RELATIVE_GATE
    above &= loudness > threshold[..., None]
    return _to_lkfs(_masked_mean(power, above))


def _to_lkfs(power: torch.Tensor) -> torch.Tensor:
    return _OFFSET + 10 * torch.log10(power)


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the last dimension where `mask` holds; 0 where it holds nowhere."""
    return (values * mask).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)


def _high_shelf(sample_rate: int, gain_db: float = 4.0, quality: float = 0.5**0.5) -> Biquad:
    """+4 dB above 1500 Hz: the effect of the head."""
    angle = 2 * math.pi * _SHELF_HZ / sample_rate
    alpha, cos = math.sin(angle) / (2 * quality), math.cos(angle)
    a = 10 ** (gain_db / 40)
    slope = 2 * math.sqrt(a) * alpha
    b = (
        a * ((a + 1) + (a - 1) * cos + slope),
        -2 * a * ((a - 1) + (a + 1) * cos),
        a * ((a + 1) + (a - 1) * cos - slope),
    )
    return _normalised(
        b,
        (
            (a + 1) - (a - 1) * cos + slope,
            2 * ((a - 1) - (a + 1) * cos),
            (a + 1) - (a - 1) * cos - slope,
        ),
    )


def _high_pass(sample_rate: int, corner_hz: float = 38.0, quality: float = 0.5) -> Biquad:
    """Removes what is too low to be heard."""
    angle = 2 * math.pi * corner_hz / sample_rate
    alpha, cos = math.sin(angle) / (2 * quality), math.cos(angle)
    b = ((1 + cos) / 2, -(1 + cos), (1 + cos) / 2)
    return _normalised(b, (1 + alpha, -2 * cos, 1 - alpha))


def _normalised(b: tuple[float, ...], a: tuple[float, ...]) -> Biquad:
    return tuple(v / a[0] for v in b), tuple(v / a[0] for v in a)


def _filter(x: torch.Tensor, biquad: Biquad) -> torch.Tensor:
    """y = b/a * x along the last dimension, starting from rest; float64 in and out.

    A recursion over samples is slow in torch, so each chunk is filtered through the Fourier
    transform, together with as many samples before it as the impulse response takes to die out.
    Zeros after the chunk, as many again, keep the circular wrap-around out.
    """
    b, a = (torch.tensor(v, dtype=torch.float64) for v in biquad)
    # both poles lie within sqrt(a2); 1e-16 of them is below float64 rounding
    memory = math.ceil(math.log(1e-16) / math.log(math.sqrt(a[2].item())))
    step = max(_FFT - 2 * memory, memory)
    y = torch.empty_like(x)
    for start in range(0, x.shape[-1], step):
        chunk = x[..., max(0, start - memory) : start + step]
        n = 1 << (chunk.shape[-1] + memory - 1).bit_length()
        response = torch.fft.rfft(b, n) / torch.fft.rfft(a, n)
        filtered = torch.fft.irfft(torch.fft.rfft(chunk, n) * response, n)
        out = y[..., start : start + step]
        out.copy_(filtered[..., : chunk.shape[-1]][..., -out.shape[-1] :])
    return y
