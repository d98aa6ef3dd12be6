"""What `torch.ops.audiogen_fast` runs on a GPU, as a whole: signatures, layouts and gradients."""

import inspect
import os

import pytest
import torch

from audiogen_fast.ops import autograd, cpu, cuda, library, reference

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
OPS = [
    "codebook_embedding",
    "codebook_embedding_backward",
    "add_layer_norm",
    "add_layer_norm_backward",
    "mlp",
    "mlp_backward",
    "cross_attention",
    "cross_attention_backward",
    "codebook_cross_entropy",
]


@pytest.fixture(autouse=True)
def launchers_for_every_tensor(monkeypatch):
    """Interpreted, the differentiable functions get the launchers as their CPU kernels."""
    if not INTERPRETED:
        return
    # The shape of the attention's statistics is the device's own.
    for name in OPS:
        operator = getattr(library, name)
        monkeypatch.setitem(operator._backend_fns, "cpu", getattr(cuda, name))


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE)


def heads(*shape, seed=0):
    return random(*shape, seed=seed).transpose(1, 2)


def cases():
    codes = torch.randint(0, 5, (2, 3, 4), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    targets = torch.where(codes == 0, -1, codes - 1)
    lengths, pads = (torch.tensor(n, device=DEVICE) for n in ([6, 3], [0, 5]))
    tables = [random(5, 8, seed=k) for k in range(3)]
    heads_of = [random(4, 8, seed=k) for k in range(3)]
    biases = [random(4, seed=k + 5) for k in range(3)]
    return {
        "codebook_embedding": (lambda op, *t: op.codebook_embedding(codes, t), tables),
        "add_layer_norm": (
            lambda op, *t: op.add_layer_norm(*t, 1e-5),
            [random(2, 3, 8), random(2, 3, 8, seed=1), random(8, seed=2), random(8, seed=3)],
        ),
        "mlp": (
            lambda op, *t: op.mlp(*t),
            [random(2, 3, 8), random(20, 8, seed=1), random(8, 20, seed=2)],
        ),
        "cross_attention": (
            lambda op, *t: op.cross_attention(*t, lengths, pads),
            [heads(2, 5, 2, 8), heads(2, 6, 2, 8, seed=1), heads(2, 6, 2, 8, seed=2)],
        ),
        "codebook_cross_entropy": (
            lambda op, h, *t: op.codebook_cross_entropy(h, t[:3], t[3:], targets),
            [random(2, 4, 8), *heads_of, *biases],
        ),
    }


@pytest.mark.parametrize("name", cases())
def test_results_and_gradients(name):
    call, tensors = cases()[name]

    def evaluate(op, dtype):
        inputs = [t.detach().to(dtype).requires_grad_() for t in tensors]
        out = call(op, *inputs)
        out = out if isinstance(out, tuple) else (out,)
        out = out[:1] if name == "codebook_cross_entropy" else out
        weights = [random(*o.shape, seed=9).to(o.dtype) for o in out]
        return [o.detach() for o in out], torch.autograd.grad(out, inputs, weights)

    actual, exact = evaluate(autograd, torch.float32), evaluate(reference, torch.float64)
    for ours, truth in zip(actual, exact, strict=True):
        for one, other in zip(ours, truth, strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_the_deterministic_gradient_is_asked_for_by_torchs_own_switch(monkeypatch):
    asked = []
    module = cuda._kernels("codebook_embedding")
    launch = module.codebook_embedding_backward
    monkeypatch.setattr(
        module,
        "codebook_embedding_backward",
        lambda *a: asked.append(a[-1]) or launch(*a),
    )
    call, tables = cases()["codebook_embedding"]
    tables = [t.requires_grad_() for t in tables]
    torch.use_deterministic_algorithms(True)
    try:
        call(autograd, *tables).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    call(autograd, *tables).sum().backward()
    assert asked == [True, False]


@pytest.mark.parametrize("name", OPS)
def test_both_devices_take_the_same_arguments(name):
    ours, theirs = (inspect.signature(getattr(m, name)) for m in (cuda, cpu))
    assert list(ours.parameters) == list(theirs.parameters)
    assert ours.return_annotation == theirs.return_annotation
