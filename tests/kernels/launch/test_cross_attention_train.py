"""Cross-attention of whole sequences and its gradients, against the reference in float64."""

import os

import pytest
import torch

from audiogen_fast.ops import reference

module = pytest.importorskip("audiogen_fast.kernels.cross_attention_train")
# bfloat16 has no matrix product under the interpreter.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
SHAPES = [  # B, H, T, L, d, lengths, n_pad
    (1, 1, 1, 1, 1, [1], [0]),
    (4, 2, 5, 7, 8, [7, 4, 1, 0], [0, 3, 8, 5]),
    (3, 1, 37, 20, 24, [20, 0, 9], [1, 0, 0]),
    (2, 1, 70, 75, 64, [75, 33], [0, 40]),
    (1, 2, 3, 40, 96, [35], [7]),
    (2, 1, 18, 33, 128, [33, 5], [0, 2]),
    (1, 1, 17, 20, 256, [20], [3]),
]


def make(shape, dtype=torch.float32, scale=1.0):
    B, H, T, L, d, lengths, n_pad = shape
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(B, H, n, d, generator=generator) for n in (T, L, L, T))
    arguments = [t.to(DEVICE, dtype) for t in (scale * q, k, v)]
    return arguments + [torch.tensor(n, device=DEVICE) for n in (lengths, n_pad)], grad.to(
        DEVICE, dtype
    )


def run(arguments, grad):
    out, stats = module.cross_attention(*arguments)
    kept = (*arguments[:4], out, stats)
    return [out, *module.cross_attention_backward(grad, *kept)]


def autograd(arguments, grad, dtype):
    inputs = [t.to(dtype).requires_grad_() for t in arguments[:3]]
    out = reference.cross_attention(*inputs, *arguments[3:])
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(dtype))]


def compare(arguments, grad, floor=1e-6):
    """Our error is at most twice that of torch in the same dtype, for each result."""
    exact = autograd(arguments, grad, torch.float64)
    plain = autograd(arguments, grad, grad.dtype)
    for one, other, third in zip(run(arguments, grad), plain, exact, strict=True):
        assert one.dtype == grad.dtype and one.shape == third.shape
        error, allowed = ((x.double() - third).abs().max() for x in (one, other))
        # Weights are rounded to half precision before their products, as SDPA does.
        epsilon = floor if grad.dtype == torch.float32 else torch.finfo(grad.dtype).eps
        allowed = 2 * allowed + epsilon * third.abs().max().clamp(min=1e-3)
        assert error <= allowed, (error, allowed)


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory is NaN, so that what a kernel does not write shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients(shape, dtype, poisoned):
    compare(*make(shape, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [8, 64, 65, 128, 200, 256])
def test_blocks_of_wide_heads_are_small(width, dtype):
    """16 KiB, of which the gradients hold six: more than the 101376 bytes of an RTX 40 otherwise.

    The compile tests of the cases d=128 and d=256 have the whole numbers.
    """
    q = torch.empty(1, 1, 504, width, dtype=dtype, device="meta")
    blocks = module._blocks(q, q)
    for name in ("BLOCK_T", "BLOCK_L"):
        assert blocks[name] >= 16
        assert blocks[name] * blocks["BLOCK_D"] * dtype.itemsize <= 16 * 1024


@pytest.mark.parametrize("n_pad", [0, 1, 6])
@pytest.mark.parametrize("scale", [30.0, -30.0])
def test_extreme_scores(scale, n_pad, poisoned):
    """Scores far from zero: nothing overflows, and no weight is lost."""
    arguments, grad = make((2, 1, 5, 19, 32, [19, 3], [n_pad, n_pad]), scale=scale)
    # A score's own rounding, absolute in the exponent, is a relative error of its weight.
    scores = (arguments[0] @ arguments[1].mT).abs().max() / 32**0.5
    assert scores > 60
    compare(arguments, grad, floor=torch.finfo(torch.float32).eps * scores.item())


def test_slots_past_the_length_are_never_read_and_get_no_gradient(poisoned):
    arguments, grad = make(SHAPES[1])
    expected = run(arguments, grad)
    for row, n in enumerate(SHAPES[1][5]):
        arguments[1][row, :, n:] = float("nan")
        arguments[2][row, :, n:] = float("inf")
    actual = run(arguments, grad)
    assert all(map(torch.equal, actual, expected))
    for row, n in enumerate(SHAPES[1][5]):
        assert not actual[2][row, :, n:].any() and not actual[3][row, :, n:].any()
    assert not actual[0][3].any() and not actual[1][3].any()


def test_strides_of_packed_projections_and_int32_lengths(poisoned):
    """Views of `[B, T, H * d]` and of packed keys and values, as the model has them."""
    arguments, grad = make(SHAPES[2])
    expected = run(arguments, grad)
    q, k, v, lengths, n_pad = arguments
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    packed = torch.stack([k, v]).permute(1, 3, 0, 2, 4).contiguous()
    k, v = packed.permute(2, 0, 3, 1, 4)
    grad = grad.transpose(2, 3).contiguous().transpose(2, 3)
    assert grad.stride(-1) != 1 and not k.is_contiguous()
    actual = run([q, k, v, lengths.int(), n_pad.int()], grad)
    assert all(map(torch.equal, actual, expected))
    assert actual[0].transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 8), (2, 2, 0, 4, 8), (2, 2, 3, 0, 8)])
def test_nothing_to_do(shape, poisoned):
    B, H, T, L, d = shape
    lengths = [min(L, 1)] * B
    arguments, grad = make((*shape, lengths, [1] * B))
    arguments[3], arguments[4] = arguments[3].long(), arguments[4].long()
    out, dq, dk, dv = run(arguments, grad)
    assert out.shape == (B, H, T, d) and dk.shape == (B, H, L, d)
    for tensor in (dq, dk, dv):
        assert tensor.isfinite().all()
    assert not dq.any() if L == 0 else not dk.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 3, 8)}, r"q must be \[B, H, T, d\]"),
        ({"k": torch.zeros(2, 3, 4, 9)}, r"k must be \[2, 3, L, 8\]"),
        ({"v": torch.zeros(2, 3, 5, 8)}, r"v must be \[2, 3, L, 8\]"),
        ({"k": torch.zeros(2, 3, 8, 4).mT}, "k must have a last stride of 1"),
        ({"v": torch.zeros(2, 3, 4, 8).half()}, "v must be of the dtype of q"),
        ({"lengths": torch.zeros(3).long()}, r"lengths must be \[2\]"),
        ({"n_pad": torch.zeros(2)}, "n_pad must be int64 or int32"),
        ({"q": torch.zeros(2, 3, 5, 300)}, r"in \[1, 256\], got 300"),
        ({"k": torch.zeros(2, 3, 4, 8, device="meta")}, "k must be on the device of q"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"q": torch.zeros(2, 3, 5, 8)}
    arguments |= {name: torch.zeros(2, 3, 4, 8) for name in "kv"}
    arguments |= {name: torch.zeros(2).long() for name in ("lengths", "n_pad")}
    with pytest.raises(ValueError, match=message):
        module.cross_attention(**{**arguments, **change})
