"""The choice of attention for prompts, and the layout that flash-attn wants."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from audiogen_fast import InvalidInputError, _attention, env
from audiogen_fast.errors import MissingDependencyError
from audiogen_fast.ops import attention

VARIABLE = _attention.ATTENTION_VARIABLE


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    for function in (_attention.choose_attention, _attention.load_flash_attn):
        function.cache_clear()
    yield
    for function in (_attention.choose_attention, _attention.load_flash_attn):
        function.cache_clear()


@pytest.fixture
def device(monkeypatch):
    """A machine with a GPU of some compute capability, as far as the choice looks."""

    def pretend(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return pretend


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(monkeypatch):
    assert _attention.choose_attention() == ("sdpa", "there is no CUDA device")
    _attention.choose_attention.cache_clear()
    monkeypatch.setenv(VARIABLE, "FA4")
    with pytest.raises(InvalidInputError, match=f"{VARIABLE}=FA4 needs a CUDA device"):
        _attention.choose_attention()
    monkeypatch.setenv(VARIABLE, "xformers")
    with pytest.raises(InvalidInputError, match="auto, sdpa, flash-attn, FA3, FA4, got xformers"):
        _attention.choose_attention()
    assert "attention: invalid: " in env.show_env()


def test_off_switches(monkeypatch, device):
    device((9, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_func=print))
    assert _attention.choose_attention()[0] == "flash-attn"
    for name, value in ((VARIABLE, "sdpa"), ("AUDIOGEN_FAST_BACKEND", "reference")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            _attention.choose_attention.cache_clear()
            chosen, reason = _attention.choose_attention()
            assert chosen == "sdpa" and name in reason


def test_what_is_missing_is_told(monkeypatch, device):
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # makes its import fail
    device((9, 0))
    assert _attention.choose_attention() == ("sdpa", "flash-attn is not installed")
    monkeypatch.setenv(VARIABLE, "flash-attn")
    _attention.choose_attention.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"pip install 'audiogen-fast\[flash-attn\]'"):
        _attention.choose_attention()
    device((7, 5))
    with pytest.raises(InvalidInputError, match=r"needs compute capability 8.0.*\(7, 5\)"):
        _attention.choose_attention()
    device((9, 0))
    monkeypatch.setenv(VARIABLE, "FA4")
    with pytest.raises(MissingDependencyError, match="FA4: its package is not installed"):
        _attention.choose_attention()


def test_layout_of_flash_attn():
    """Its tensors are [B, T, H, d]; by its definition, computed with torch."""

    def flash_attn_func(q, k, v, causal):
        assert q.shape == (2, 5, 3, 8) and causal
        scores = torch.einsum("bthd,bshd->bhts", q, k) / 8**0.5
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
        return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)

    q, k, v = torch.randn(3, 2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    actual = attention.flash_attention(flash_attn_func, q, k, v)
    torch.testing.assert_close(actual, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flash_attn_equals_torch():
    pytest.importorskip("flash_attn")
    if _attention.choose_attention()[0] != "flash-attn":
        pytest.skip(_attention.choose_attention()[1])
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 100, 64, device="cuda", generator=generator).half()
    with torch.no_grad():
        actual = attention.scaled_dot_product_attention(q, k, v, is_causal=True)
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    torch_error = (F.scaled_dot_product_attention(q, k, v, is_causal=True) - expected).norm()
    assert (actual - expected).norm() <= 2 * torch_error
