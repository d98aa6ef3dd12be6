"""The decode of the quantiser on a CPU and on a GPU, with and without gradients."""

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.ops import dispatch, reference

CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def random(*shape, seed, dtype, device):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7, 6), (1, 4, 131, 19, 130), (2, 1, 0, 7, 6)])
def test_rvq_decode_and_its_gradients(shape, dtype, device):
    """Without gradients by the kernel, with them by the definition: the same numbers."""
    B, K, T, card, D = shape
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, card, (B, K, T), generator=generator).to(device)
    books = [random(card, D, seed=k, dtype=dtype, device=device) for k in range(K + 1)]
    exact = reference.rvq_decode(codes, [b.double() for b in books])
    out = dispatch.rvq_decode(codes, books)
    assert out.dtype == dtype and out.shape == (B, D, T)
    plain = reference.rvq_decode(codes, books)
    epsilon = torch.finfo(dtype).eps
    if T:
        error, allowed = ((x.double() - exact).abs().max() for x in (out, plain))
        assert error <= 2 * allowed + epsilon * exact.abs().max()
    books = [b.requires_grad_() for b in books[:K]]
    weights = random(B, D, T, seed=9, dtype=dtype, device=device)
    grads = torch.autograd.grad(dispatch.rvq_decode(codes, books), books, weights)
    wide = [b.detach().double().requires_grad_() for b in books]
    truth = torch.autograd.grad(reference.rvq_decode(codes, wide), wide, weights.double())
    for one, other in zip(grads, truth, strict=True):
        # Sums of up to B T terms in the dtype of the tables, as torch adds them.
        assert_close(one.double(), other, rtol=8 * epsilon, atol=16 * epsilon * (1 + B * T / card))
