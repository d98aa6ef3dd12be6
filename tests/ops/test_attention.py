"""The choice of attention for prompts, and the layout that flash-attn wants."""

import functools
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from audiogen_fast import InvalidInputError, _attention, _backend, env
from audiogen_fast.errors import MissingDependencyError
from audiogen_fast.ops import attention, autograd, dispatch

VARIABLE = _attention.ATTENTION_VARIABLE


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    for module in (_attention, _backend):
        module.forget()
    yield
    for module in (_attention, _backend):
        module.forget()


@pytest.fixture
def device(monkeypatch):
    """A machine with GPUs of some compute capabilities, as far as the choice looks."""

    def pretend(*capabilities, current=0):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
        monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
        for module in (_attention, _backend):
            module.forget()

    return pretend


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(monkeypatch):
    assert _attention.choose_attention() == ("sdpa", "there is no CUDA device")
    _attention.forget()
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
            _attention.forget()
            chosen, reason = _attention.choose_attention()
            assert chosen == "sdpa" and name in reason


def test_what_is_missing_is_told(monkeypatch, device):
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # makes its import fail
    device((9, 0))
    assert _attention.choose_attention() == ("sdpa", "flash-attn is not installed")
    monkeypatch.setenv(VARIABLE, "flash-attn")
    _attention.forget()
    with pytest.raises(MissingDependencyError, match=r"pip install 'audiogen-fast\[flash-attn\]'"):
        _attention.choose_attention()
    device((7, 5))
    with pytest.raises(InvalidInputError, match=r"needs compute capability 8.0.*\(7, 5\)"):
        _attention.choose_attention()
    device((9, 0))
    monkeypatch.setenv(VARIABLE, "FA4")
    with pytest.raises(MissingDependencyError, match="FA4: its package is not installed"):
        _attention.choose_attention()


def test_each_device_has_its_own_answer(monkeypatch, device):
    """The first to be asked about, or the current one, does not answer for the others."""
    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_func=print))
    monkeypatch.delenv("AUDIOGEN_FAST_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    old, new = torch.device("cuda", 0), torch.device("cuda", 1)
    device((7, 5), (9, 0), current=1)
    for _ in range(2):
        assert _attention.choose_attention(old)[0] == "sdpa"
        assert _attention.choose_attention(new)[0] == "flash-attn"
        assert "(7, 5)" in _backend.why_no_triton(old)
        assert _backend.why_no_triton(new) is None
        assert not dispatch.kernels_run_on(old) and dispatch.kernels_run_on(new)
    for unnamed in (None, torch.device("cuda")):
        assert _attention.choose_attention(unnamed)[0] == "flash-attn"
        assert _backend.why_no_triton(unnamed) is None
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for unnamed in (None, torch.device("cuda")):
        assert _attention.choose_attention(unnamed)[0] == "sdpa"
        assert "(7, 5)" in _backend.why_no_triton(unnamed)
    assert _backend.why_no_triton(torch.device("cpu")) == "the model is on cpu"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _backend.why_no_triton(torch.device("cpu")) is None


class OnCuda(torch.Tensor):
    """A CPU tensor that says it is on the old device."""

    device = torch.device("cuda", 0)


def test_a_device_that_kernels_cannot_be_launched_on_takes_the_reference(monkeypatch, device):
    monkeypatch.delenv("AUDIOGEN_FAST_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def launched(*_):
        raise RuntimeError("launched")

    monkeypatch.setattr(dispatch.cuda, "rvq_decode", launched)
    codes = torch.tensor([[[1, 0, 2]]])
    book = torch.arange(12.0).view(3, 4)
    tables = [book.as_subclass(OnCuda)]
    device((7, 5))
    assert not autograd.uses_fast_path(tables[0])
    assert torch.equal(dispatch.rvq_decode(codes, tables), book[[1, 0, 2]].T[None])
    device((8, 0))
    assert autograd.uses_fast_path(tables[0])
    assert not autograd.uses_fast_path(tables[0].double())
    with pytest.raises(RuntimeError, match="launched"):
        dispatch.rvq_decode(codes, tables)


def test_the_question_is_a_constant_to_compiled_code(monkeypatch):
    """Tracing it would fail: it looks for packages and asks the driver."""

    @functools.cache
    def capability(index):
        with open(__file__):  # nothing that can be traced
            return ((7, 5), (9, 0))[index]

    monkeypatch.setattr(_backend, "_why_no_triton_anywhere", functools.cache(lambda: None))
    monkeypatch.setattr(_backend, "_capability", capability)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def signed(x, where):
        return x if dispatch.kernels_run_on(where) else -x

    compiled = torch.compile(signed, backend="eager", fullgraph=True)
    for index, expected in ((0, -3.0), (1, 3.0)):
        assert compiled(torch.tensor(3.0), torch.device("cuda", index)) == expected


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
