"""The mixing augmentation, measured."""

import numpy as np
import pytest
import torch

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training.data import Batch, MixingConfig, SoundInfo
from audiogen_fast.training.data.mixing import mix, mix_batch, mix_descriptions

SAMPLES = 8000


def noise(rows, seed=0, scale=0.1):
    torch.manual_seed(seed)
    return torch.randn(rows, SAMPLES) * scale


def info(number, n_frames=SAMPLES):
    return SoundInfo(
        id=f"{number}",
        path=f"{number}.wav",
        description=f"sound {number}",
        seek_time=0.0,
        n_frames=n_frames,
        total_frames=SAMPLES,
        sample_rate=16_000,
        channels=1,
        duration=SAMPLES / 16_000,
    )


def batch(rows, seed=0):
    return Batch([info(i) for i in range(rows)], wav=noise(rows, seed).unsqueeze(1))


def level_db(wav):
    return 20 * wav.square().mean(-1).sqrt().log10()


def parts(mixed, first, second, start):
    """The scale that each of two sounds has in their mixture, by least squares."""
    shifted = torch.zeros_like(second)
    shifted[start:] = second[: len(second) - start]
    basis = torch.stack([first, shifted], 1).double()
    return torch.linalg.lstsq(basis, mixed.double().unsqueeze(1)).solution[:, 0]


@pytest.mark.parametrize("snr", [-5, 0, 4])
@pytest.mark.parametrize("start", [0, 1234, 4000])
def test_ratio_offset_and_level(snr, start):
    # very different levels before, which must not matter; no level here that clips
    first, second = noise(3, 1, 0.3), noise(3, 2, 0.001)
    levels = torch.tensor([-35.0, -25.0, -20.0])
    mixed = mix(first, second, snr, start, levels)
    assert torch.allclose(level_db(mixed), levels, atol=1e-3)
    for row in range(3):
        a, b = parts(mixed[row], first[row], second[row], start)
        # over all samples of both, before the second is cut off at the end
        measured = level_db(first[row] * a) - level_db(second[row] * b)
        assert abs(measured - snr) < 0.05
        shifted = torch.zeros(SAMPLES)
        shifted[start:] = second[row, : SAMPLES - start]
        assert torch.allclose(mixed[row], (first[row] * a + shifted * b).float(), atol=1e-5)


def test_peaks_come_down_to_099():
    click = torch.zeros(2, SAMPLES)
    click[:, 100] = -1.0  # a peak of one sample is 79 dB above the level of the whole
    mixed = mix(click, noise(2) * 1e-6, 5, 0, torch.tensor([-16.0, -35.0]))
    assert torch.allclose(mixed.abs().amax(1), torch.tensor([0.99, 0.99]), atol=1e-5)
    assert (mixed[:, 100] < 0).all()


def test_silence_stays_and_is_finite():
    silence = torch.zeros(1, SAMPLES)
    assert not mix(silence, silence, 0, 10, torch.tensor([-15.0])).any()
    half = mix(silence, noise(1), 0, 10, torch.tensor([-20.0]))
    assert half.isfinite().all() and abs(level_db(half).item() + 20) < 0.01


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ("rain", "wind", "rain wind"),
        ("rain", "rain", "rain"),
        ("rain", None, "rain"),
        (None, "wind", "wind"),
        (None, None, None),
    ],
)
def test_descriptions_are_joined(first, second, both):
    assert mix_descriptions(first, second) == both


def test_batches_are_mixed_as_often_as_asked():
    config = MixingConfig(aug_p=0.3, mix_p=0.5, mix_snr_low=-5, mix_snr_high=5)
    source = batch(6)
    mixed, ratios, offsets, levels, pairs = 0, set(), [], [], []
    for step in range(600):
        out = mix_batch(source, config, np.random.default_rng(step))
        assert out.wav.shape == (3, 1, SAMPLES) and len(out.infos) == 3
        if out.infos[0].mixed_with is None:
            ids = [int(i.id) for i in out.infos]
            assert len(set(ids)) == 3 and torch.equal(out.wav, source.wav[ids])
            continue
        mixed += 1
        for row, one in enumerate(out.infos):
            pairs.append((int(one.id), int(one.mixed_with)))
            both = f"sound {one.id} sound {one.mixed_with}"
            assert one.description == (both if one.id != one.mixed_with else f"sound {one.id}")
            levels.append(level_db(out.wav[row, 0]).item())
        if mixed <= 40 and (different := [p for p in pairs[-3:] if p[0] != p[1]]):
            i, j = different[0]
            row = pairs[-3:].index((i, j))
            start = offset_of(out.wav[row, 0], source.wav[i, 0], source.wav[j, 0])
            offsets.append(start)
            a, b = parts(out.wav[row, 0], source.wav[i, 0], source.wav[j, 0], start)
            first, second = source.wav[i, 0] * a, source.wav[j, 0] * b
            ratios.add(round((level_db(first) - level_db(second)).item()))
    assert abs(mixed - 180) < 4 * np.sqrt(600 * 0.3 * 0.7)
    assert {first for first, _ in pairs} == {second for _, second in pairs} == set(range(6))
    assert any(first == second for first, second in pairs)
    assert ratios <= set(range(-5, 5)) and len(ratios) >= 8
    # at least half of the sample overlaps
    assert 0 <= min(offsets) < 1000 and 3000 < max(offsets) <= SAMPLES // 2
    whole = {round(level) for level in levels}
    assert all(abs(level - round(level)) < 0.01 for level in levels)
    assert min(whole) == -35 and max(whole) == -16


def offset_of(mixed, first, second):
    """Where the second sound begins: the peak of its correlation with what the first leaves."""
    rest = mixed - first * (mixed @ first) / (first @ first)
    n = 2 * SAMPLES
    spectrum = torch.fft.rfft(rest, n) * torch.fft.rfft(second, n).conj()
    return int(torch.fft.irfft(spectrum, n)[:SAMPLES].argmax())


def test_frames_count_both_sounds():
    source = batch(2)
    source.infos = [info(0, 1000), info(1, 1000)]
    config = MixingConfig(aug_p=1.0, mix_p=1.0)
    for step in range(20):
        out = mix_batch(source, config, np.random.default_rng(step))
        for row, one in enumerate(out.infos):
            expected = 1000
            if one.id != one.mixed_with:
                first, second = (source.wav[int(i), 0] for i in (one.id, one.mixed_with))
                expected = min(SAMPLES, offset_of(out.wav[row, 0], first, second) + 1000)
                assert one.n_frames == max(1000, expected)


def test_nothing_is_mixed_unless_asked():
    source = batch(4)
    for config in (MixingConfig(), MixingConfig(aug_p=0.5, mix_p=0.0)):
        assert mix_batch(source, config, np.random.default_rng(0)) is source


def test_mistakes():
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidInputError, match=r"mix_p \* batch size must be at least 1"):
        mix_batch(batch(1), MixingConfig(aug_p=1.0, mix_p=0.5), rng)
    stereo = Batch([info(0), info(1)], wav=torch.zeros(2, 2, 10))
    with pytest.raises(InvalidInputError, match="mono audio, got 2 channels"):
        mix_batch(stereo, MixingConfig(aug_p=1.0), rng)
    with pytest.raises(InvalidInputError, match="aug_p must lie in 0..1, got 2"):
        MixingConfig(aug_p=2)
    with pytest.raises(InvalidInputError, match="mix_snr_low must be below mix_snr_high"):
        MixingConfig(mix_snr_low=5, mix_snr_high=5)
