"""Conversion of waveforms: sample rate, channels, level, PCM integers."""

import math
import sys

import torch

from audiogen_fast.data.loudness import integrated_loudness
from audiogen_fast.data.resample import resample_frac
from audiogen_fast.errors import InvalidInputError, check


def convert_audio_channels(wav: torch.Tensor, channels: int = 2) -> torch.Tensor:
    """Change the number of channels.

    Args:
        wav: `[*, C, T]`.
        channels: wanted number. One: the mean of all. More than a mono `wav` has: copies (a view
            that must not be written to). Fewer than `wav` has: the first ones.

    Returns:
        `[*, channels, T]`; `wav` itself if it has that many already.

    Raises:
        InvalidInputError: more channels wanted than a `wav` that is not mono has.
    """
    check(wav.dim() >= 2, f"wav must be [*, C, T], got shape {tuple(wav.shape)}")
    check(channels >= 1, f"channels must be at least 1, got {channels}")
    *shape, source, length = wav.shape
    if source == channels:
        return wav
    if channels == 1:
        check(source > 0, "wav must have at least 1 channel, got 0")
        return wav.mean(dim=-2, keepdim=True)
    if source == 1:
        return wav.expand(*shape, channels, length)
    check(
        source > channels,
        "The audio file has less channels than requested but is not mono: "
        f"{channels} requested, got {source}",
    )
    return wav[..., :channels, :]


def convert_audio(
    wav: torch.Tensor, from_rate: float, to_rate: float, to_channels: int
) -> torch.Tensor:
    """Change the sample rate, then the number of channels.

    Args:
        wav: `[*, C, T]`, floating point.
        from_rate, to_rate: sample rates in Hz, cut to integers.
        to_channels: see `convert_audio_channels`.

    Returns:
        `[*, to_channels, floor(to_rate * T / from_rate)]`, the dtype and device of `wav`.
    """
    for name, rate in (("from_rate", from_rate), ("to_rate", to_rate)):
        check(math.isfinite(rate) and rate >= 1, f"{name} must be at least 1 Hz, got {rate}")
    wav = resample_frac(wav, int(from_rate), int(to_rate))
    return convert_audio_channels(wav, to_channels)


def normalize_loudness(
    wav: torch.Tensor,
    sample_rate: int,
    loudness_headroom_db: float = 14,
    loudness_compressor: bool = False,
    energy_floor: float = 2e-3,
) -> torch.Tensor:
    """Scale one recording to a loudness of `-loudness_headroom_db` LKFS (ITU-R BS.1770-4).

    Args:
        wav: `[C, T]` or `[T]`, floating point, 1 to 5 channels.
        sample_rate: in Hz, above 3000.
        loudness_headroom_db: dB below full scale.
        loudness_compressor: apply tanh to the result, which then stays within +-1.
        energy_floor: a recording with a lower RMS comes back unchanged.

    Returns:
        The shape, dtype and device of `wav`. A recording whose loudness cannot be measured
        (all of it below -70 LKFS, a swing of 0.1 Hz for example) comes back unchanged too.

    Raises:
        InvalidInputError: NaN or infinite samples, or what `integrated_loudness` refuses.
    """
    _check_floating(wav)
    check(bool(wav.isfinite().all()), "wav must be finite, got NaN or infinite samples")
    if wav.numel() == 0 or _rms(wav) < energy_floor:
        return wav
    loudness = integrated_loudness(torch.atleast_2d(wav), sample_rate)
    check(loudness.numel() == 1, f"wav must be one recording, got shape {tuple(wav.shape)}")
    if not loudness.isfinite():
        return wav
    output = wav * 10 ** ((-loudness_headroom_db - loudness.item()) / 20)
    return torch.tanh(output) if loudness_compressor else output


def _clip_wav(wav: torch.Tensor, log_clipping: bool = False, stem_name: str | None = None) -> None:
    """Clamp to +-1 in place; with `log_clipping`, say on stderr how much was clipped."""
    if log_clipping and wav.numel() and (peak := wav.abs().max().item()) > 1:
        share = (wav.abs() > 1).float().mean().item()
        print(
            f"CLIPPING {stem_name or 'audio'}: {share:.3%} of the samples are beyond full scale, "
            f"the largest is {peak:.3f} (a few are harmless)",
            file=sys.stderr,
        )
    wav.clamp_(-1, 1)


def normalize_audio(
    wav: torch.Tensor,
    normalize: bool = True,
    strategy: str = "peak",
    peak_clip_headroom_db: float = 1,
    rms_headroom_db: float = 18,
    loudness_headroom_db: float = 14,
    loudness_compressor: bool = False,
    log_clipping: bool = False,
    sample_rate: int | None = None,
    stem_name: str | None = None,
) -> torch.Tensor:
    """Set the level of a waveform. `wav` is never changed; silence stays silence.

    Args:
        wav: `[C, T]`, floating point.
        normalize: False scales down what would be too loud and leaves the rest ("peak" and "rms").
        strategy: "peak": largest sample at `-peak_clip_headroom_db`; "clip": clamp there;
            "rms": root mean square of the mono mix at `-rms_headroom_db`, then clamp to +-1;
            "loudness": see `normalize_loudness`, then clamp to +-1;
            "none" or "": nothing, but all samples must be below full scale.
        peak_clip_headroom_db: dB below full scale, for "peak" and "clip".
        rms_headroom_db: dB below full scale, for "rms".
        loudness_headroom_db: dB below full scale, for "loudness".
        loudness_compressor: tanh instead of hard clipping, for "loudness".
        log_clipping: report clipping on stderr, for "rms" and "loudness".
        sample_rate: in Hz, needed for "loudness".
        stem_name: name to report clipping under.

    Returns:
        The shape, dtype and device of `wav`; `wav` itself where nothing had to be done.

    Raises:
        InvalidInputError: unknown strategy, integer samples, "loudness" without a sample rate,
            "none" with samples at or beyond full scale.
    """
    _check_floating(wav)
    known = strategy in ("peak", "clip", "rms", "loudness", "none", "")
    check(known, f"Unexpected strategy: '{strategy}', use peak, clip, rms, loudness or none")
    if wav.numel() == 0:
        return wav
    peak_limit = 10 ** (-peak_clip_headroom_db / 20)
    if strategy == "peak":
        return _scale_to(wav, wav.abs().max(), peak_limit, normalize)
    if strategy == "clip":
        return wav.clamp(-peak_limit, peak_limit)
    if strategy in ("none", ""):
        peak = wav.abs().max().item()
        check(peak < 1, f"wav must stay below 1 for strategy '{strategy}', got {peak}")
        return wav
    if strategy == "rms":
        scaled = _scale_to(wav, _rms(wav.mean(dim=0)), 10 ** (-rms_headroom_db / 20), normalize)
    else:
        if sample_rate is None:
            raise InvalidInputError("Loudness normalization requires sample rate, got None")
        scaled = normalize_loudness(wav, sample_rate, loudness_headroom_db, loudness_compressor)
    if scaled is wav:  # the clamp below is in place and must not reach the caller
        scaled = wav.clone()
    _clip_wav(scaled, log_clipping=log_clipping, stem_name=stem_name)
    return scaled


def _scale_to(
    wav: torch.Tensor, level: torch.Tensor, target: float, raise_too: bool
) -> torch.Tensor:
    """`wav * target / level`; only downwards unless `raise_too`; as it is if there is no level."""
    # below the smallest normal number the quotient overflows: silence would become NaN
    if level < torch.finfo(level.dtype).tiny:
        return wav
    scale = target / level
    return wav * scale if raise_too or scale < 1 else wav


def _rms(wav: torch.Tensor) -> torch.Tensor:
    # squares of half precision samples would underflow
    return _at_least_float32(wav).pow(2).mean().sqrt()


def _at_least_float32(wav: torch.Tensor) -> torch.Tensor:
    return wav.to(torch.promote_types(wav.dtype, torch.float32))


def _check_floating(wav: torch.Tensor) -> None:
    check(wav.is_floating_point(), f"wav must be floating point, got {wav.dtype}")


def f32_pcm(wav: torch.Tensor) -> torch.Tensor:
    """PCM integers to floating point, full scale 1: int16 / 2**15, int32 / 2**31.

    Floating point input comes back as it is; any other dtype is an `InvalidInputError`.
    """
    if wav.is_floating_point():
        return wav
    if wav.dtype == torch.int16:
        return wav.float() / 2**15
    if wav.dtype == torch.int32:
        return wav.float() / 2**31
    raise InvalidInputError(f"wav must be floating point, int16 or int32, got {wav.dtype}")


def i16_pcm(wav: torch.Tensor) -> torch.Tensor:
    """Floating point within +-1 to int16: `round(wav * 2**15)`.

    The int16 range ends at 2**15 - 1; where that would be passed, the whole waveform is scaled
    by 2**15 - 1 instead, so `i16_pcm(f32_pcm(x))` can differ from `x` by one step. int16 input
    comes back as it is; anything else, and samples beyond +-1, are an `InvalidInputError`.
    """
    if wav.dtype == torch.int16:
        return wav
    check(wav.is_floating_point(), f"wav must be floating point or int16, got {wav.dtype}")
    # NaN must fail, so this is not written as "not any above 1"
    check(bool((wav.abs() <= 1).all()), "wav must lie within +-1 to become int16")
    wav = _at_least_float32(wav)  # 2**15 - 1 has no half precision value
    candidate = (wav * 2**15).round()
    if (candidate >= 2**15).any():
        candidate = (wav * (2**15 - 1)).round()
    return candidate.short()
