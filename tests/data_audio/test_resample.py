import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from audiogen_fast.data import resample
from audiogen_fast.data.resample import resample_frac
from audiogen_fast.errors import InvalidInputError

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "audio_golden.safetensors")
RATES = [(2, 3), (3, 2), (44100, 16000), (16000, 44100), (48000, 16000)]
GROUPED = [(5507, 2000), (2001, 2003)]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


@pytest.mark.parametrize(("old", "new"), RATES + GROUPED)
def test_equals_recorded_julius(old, new):
    out = resample_frac(GOLDEN["julius.in"], old, new)
    torch.testing.assert_close(out, GOLDEN[f"julius.{old}.{new}"], atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(length=st.integers(1, 3000), rates=st.sampled_from([*RATES, (8000, 11025), (7, 1), (1, 7)]))
def test_equals_julius(length, rates):
    julius = pytest.importorskip("julius")
    x = noise(2, length)
    out, theirs = resample_frac(x, *rates), julius.resample_frac(x, *rates)
    # julius takes the floor of a float32, which can be one more
    assert 0 <= theirs.shape[-1] - out.shape[-1] <= 1
    torch.testing.assert_close(out, theirs[..., : out.shape[-1]], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("old", "new"), [(2501, 500), (2001, 2003)])
def test_phase_groups_equal_one_window(monkeypatch, old, new):
    x = noise(1, 7000)
    assert len(resample._phase_groups(old, new, resample._half_width(old, new))) > 1
    grouped = resample_frac(x, old, new)
    monkeypatch.setattr(resample, "_DENSE_KERNEL", 2**40)
    torch.testing.assert_close(grouped, resample_frac(x, old, new), atol=1e-6, rtol=0)


def test_coprime_rates_need_few_coefficients():
    for old, new in ((44101, 16000), (48000, 44101), (11, 96001)):
        groups = resample._phase_groups(old, new, resample._half_width(old, new))
        sizes = [(last - first + 1) * (stop - start) for first, last, start, stop in groups]
        assert max(sizes) <= resample._DENSE_KERNEL
        assert sum(last - first + 1 for first, last, _, _ in groups) == new


@settings(max_examples=60, deadline=None, derandomize=True)
@given(length=st.integers(0, 500), old=st.integers(1, 60), new=st.integers(1, 60))
def test_length_is_the_exact_floor(length, old, new):
    out = resample_frac(noise(1, 2, length), old, new)
    assert out.shape == (1, 2, new * length // old)
    assert out.isfinite().all()


def test_length_where_float32_would_round_up():
    # 160 * length / 441 ends on .998 here, nearer to the next integer than float32 resolves
    length = next(n for n in range(440000, 441000) if 160 * n % 441 == 440)
    assert resample_frac(torch.zeros(1, length), 44100, 16000).shape[-1] == 160 * length // 441


@pytest.mark.parametrize(("old", "new"), [(44100, 16000), (16000, 44100), *GROUPED])
def test_sine_keeps_its_shape(old, new):
    hz = min(old, new) / 8
    t = torch.arange(5 * old // 4, dtype=torch.float64)
    x = torch.sin(2 * math.pi * hz / old * t)[None]
    out = resample_frac(x, old, new)
    expected = torch.sin(2 * math.pi * hz / new * torch.arange(out.shape[-1], dtype=torch.float64))
    inner = slice(200, -200)  # the edges see the repeated first and last sample
    torch.testing.assert_close(out[0, inner], expected[inner], atol=2e-4, rtol=0)


def test_frequencies_above_the_new_nyquist_vanish():
    x = torch.sin(2 * math.pi * 9500 / 44100 * torch.arange(44100))[None]
    assert resample_frac(x, 44100, 16000)[:, 200:-200].abs().max() < 2e-3


def test_constant_is_kept_to_the_edges():
    out = resample_frac(torch.full((1, 50), 0.7), 44100, 16000)
    torch.testing.assert_close(out, torch.full_like(out, 0.7), atol=1e-6, rtol=0)


def test_equal_rates_give_the_same_tensor():
    x = noise(1, 10)
    assert resample_frac(x, 16000, 16000) is x


def test_one_sample_and_none():
    torch.testing.assert_close(resample_frac(torch.ones(1, 1), 1, 3), torch.ones(1, 3))
    assert resample_frac(torch.ones(1, 1), 3, 1).shape == (1, 0)
    assert resample_frac(torch.ones(2, 0), 1, 3).shape == (2, 0)
    assert resample_frac(torch.ones(0, 9), 1, 3).shape == (0, 27)


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)]
)
def test_other_dtypes(dtype, atol):
    x = noise(2, 500).to(dtype)
    out = resample_frac(x, 3, 2)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), resample_frac(x.float(), 3, 2), atol=atol, rtol=0)


def test_gradient_flows_even_after_use_in_inference_mode():
    resample._phase_filters.cache_clear()
    x = noise(1, 30)
    with torch.inference_mode():
        resample_frac(x, 3, 2)
    x.requires_grad_()
    resample_frac(x, 3, 2).sum().backward()
    # each input counts for new / old outputs, away from the edges
    assert x.grad is not None and x.grad[0, 15].item() == pytest.approx(2 / 3, abs=0.05)


def test_integers_are_refused():
    with pytest.raises(InvalidInputError, match="torch.int16"):
        resample_frac(torch.zeros(1, 9, dtype=torch.int16), 3, 2)
