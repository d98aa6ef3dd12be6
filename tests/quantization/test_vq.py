"""The residual quantiser: recursion, losses, gradients, and the interface of the codec."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.quantization import DummyQuantizer, ResidualVectorQuantizer
from audiogen_fast.quantization.vq import VectorQuantization


def inputs(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(n_q=3, bins=16, **options) -> ResidualVectorQuantizer:
    torch.manual_seed(0)
    options = {"kmeans_init": False, "threshold_ema_dead_code": 0, **options}
    return ResidualVectorQuantizer(4, n_q=n_q, bins=bins, **options)


def recursion(vq: ResidualVectorQuantizer, x: torch.Tensor, n_q: int):
    """Codes `[B, K, T]`, the vectors chosen by each codebook, and what each one was given."""
    residual, codes, chosen, given = x.transpose(1, 2), [], [], []
    for layer in vq.vq.layers[:n_q]:
        table = layer.codebook.clone()
        nearest = torch.cdist(residual.double(), table.double()).argmin(-1)
        given.append(residual)
        chosen.append(table[nearest])
        codes.append(nearest)
        residual = residual - chosen[-1]
    return torch.stack(codes, 1), chosen, given


@pytest.mark.parametrize("n_q", [1, 2, 3])
def test_encode_quantises_what_is_left_over(n_q):
    vq, x = make().eval(), inputs(2, 4, 30)
    vq.set_num_codebooks(n_q)
    expected, chosen, _ = recursion(vq, x, n_q)
    codes = vq.encode(x)
    assert torch.equal(codes, expected) and codes.dtype == torch.int64
    total = sum(chosen[1:], chosen[0]).transpose(1, 2)
    assert torch.equal(vq.decode(codes), total)
    result = vq(x, 50)
    assert torch.equal(result.codes, expected)
    assert_close(result.x, total)


def test_decode_takes_the_codebooks_it_is_given():
    vq = make().eval()
    codes = torch.tensor([[[3, 0], [15, 1]]])
    books = [layer.codebook for layer in vq.vq.layers]
    expected = torch.stack([books[0][3] + books[1][15], books[0][0] + books[1][1]], dim=1)
    assert torch.equal(vq.decode(codes), expected.unsqueeze(0))


def test_set_num_codebooks():
    vq = make()
    assert (vq.num_codebooks, vq.total_codebooks, vq.bins, vq.dimension) == (3, 3, 16, 4)
    vq.set_num_codebooks(2)
    assert (vq.num_codebooks, vq.total_codebooks) == (2, 3)
    assert vq.encode(inputs(1, 4, 5)).shape == (1, 2, 5)
    for n in (0, 4):
        with pytest.raises(InvalidInputError, match=rf"n must lie in 1\.\.3, got {n}"):
            vq.set_num_codebooks(n)
    for shape in ((1, 4, 5), (1, 0, 5), (2, 5)):
        with pytest.raises(InvalidInputError, match=r"codes must be \[B, K, T\] with 1 <= K <= 3"):
            vq.decode(torch.zeros(shape, dtype=torch.long))


def test_bandwidth_is_that_of_the_codebooks_in_use():
    vq, x = make(bins=2048).eval(), inputs(2, 4, 5)
    assert vq(x, 50).bandwidth.item() == pytest.approx(3 * 11 * 50 / 1000)
    vq.set_num_codebooks(1)
    assert vq(x, 50).bandwidth.item() == pytest.approx(0.55)


def test_q_dropout_uses_each_number_of_codebooks_in_training_only():
    vq, x = make(q_dropout=True), inputs(1, 4, 6)
    used = []
    for _ in range(300):
        result = vq(x, 50)
        used.append(result.codes.shape[1])
        bandwidth = used[-1] * math.log2(16) * 50 / 1000
        assert result.bandwidth.item() == pytest.approx(bandwidth)
    assert all(used.count(n) / 300 == pytest.approx(1 / 3, abs=0.08) for n in (1, 2, 3))
    vq.eval()
    assert {vq(x, 50).codes.shape[1] for _ in range(20)} == {3}


def test_the_gradient_passes_straight_through():
    vq, x, weight = make(), inputs(2, 4, 6).requires_grad_(), inputs(2, 4, 6, seed=1)
    result = vq(x, 50)
    assert not torch.allclose(result.x, x)
    (result.x * weight).sum().backward()
    assert torch.equal(x.grad, weight)


def test_the_penalty_is_the_mean_commitment_loss():
    vq, x = make(), inputs(2, 4, 6).requires_grad_()
    _, chosen, given = recursion(vq, x.detach(), 3)
    expected = [F.mse_loss(c, g) for c, g in zip(chosen, given, strict=True)]
    penalty = vq(x, 50).penalty
    assert_close(penalty, torch.stack(expected).mean())
    penalty.backward()
    # Each layer pulls its own input, which moves one to one with x.
    parts = [2 * (g - c) / x.numel() for c, g in zip(chosen, given, strict=True)]
    assert_close(x.grad, (sum(parts) / 3).transpose(1, 2))


def test_no_penalty_in_evaluation():
    result = make().eval()(inputs(1, 4, 5), 50)
    assert result.penalty.item() == 0 and not result.x.requires_grad


def orthogonal(codebook: torch.Tensor) -> float:
    unit = codebook.double() / codebook.double().norm(dim=-1, keepdim=True)
    n, total = len(unit), 0.0
    for i in range(n):
        for j in range(n):
            total += (float(unit[i] @ unit[j]) - (i == j)) ** 2
    return total / n**2


def test_orthogonal_loss():
    torch.manual_seed(0)
    options = {"commitment_weight": 0.0, "decay": 1.0, "threshold_ema_dead_code": 0}
    vq = VectorQuantization(4, 8, orthogonal_reg_weight=10.0, **options)
    with torch.no_grad():  # an update with decay 1 keeps a codebook that is its own average
        vq._codebook.cluster_size.fill_(1.0)
    x = inputs(1, 4, 5)
    codes = vq.encode(x).unique()
    assert 1 < len(codes) < 8
    assert vq(x)[2].item() == pytest.approx(10 * orthogonal(vq.codebook), rel=1e-4)
    vq.orthogonal_reg_active_codes_only = True
    assert vq(x)[2].item() == pytest.approx(10 * orthogonal(vq.codebook[codes]), rel=1e-4)
    vq.orthogonal_reg_active_codes_only, vq.orthogonal_reg_max_codes = False, 2
    torch.manual_seed(3)
    chosen = torch.randperm(8)[:2]
    torch.manual_seed(3)
    assert vq(x)[2].item() == pytest.approx(10 * orthogonal(vq.codebook[chosen]), rel=1e-4)
    vq.orthogonal_reg_weight = 0.0
    assert vq(x)[2].item() == 0


def test_options_reach_every_codebook():
    options = {"decay": 0.7, "kmeans_iters": 3, "threshold_ema_dead_code": 5, "kmeans_init": True}
    vq = make(
        orthogonal_reg_weight=0.5,
        orthogonal_reg_max_codes=7,
        orthogonal_reg_active_codes_only=True,
        **options,
    )
    for layer in vq.vq.layers:
        book = layer._codebook
        assert (book.decay, book.kmeans_iters, book.threshold_ema_dead_code) == (0.7, 3, 5)
        assert not book.inited and book.embed.shape == (16, 4)
        assert (layer.orthogonal_reg_weight, layer.orthogonal_reg_max_codes) == (0.5, 7)
        assert layer.orthogonal_reg_active_codes_only and layer.commitment_weight == 1


def test_evaluation_changes_nothing():
    vq, x = make(), inputs(2, 4, 30)
    before = {name: tensor.clone() for name, tensor in vq.state_dict().items()}
    vq.eval()(x, 50)
    vq.encode(x)
    assert all(torch.equal(before[name], tensor) for name, tensor in vq.state_dict().items())


def test_training_learns_the_distribution():
    """From random entries, most of which start dead."""
    vq, x = make(threshold_ema_dead_code=2), inputs(4, 4, 100)
    untrained = F.mse_loss(vq.eval()(x, 50).x, x)
    for step in range(1, 81):
        vq.train()(inputs(2, 4, 100, seed=step), 50)
    assert F.mse_loss(vq.eval()(x, 50).x, x) < 0.5 * untrained


def test_names_of_the_state():
    names = ("inited", "cluster_size", "embed", "embed_avg")
    expected = {f"vq.layers.{k}._codebook.{name}" for k in range(3) for name in names}
    assert set(make().state_dict()) == expected


def test_the_dummy_quantizer_passes_everything_through():
    x, dummy = inputs(2, 4, 5), DummyQuantizer()
    assert torch.equal(dummy.decode(dummy.encode(x)), x)
    result = dummy(x, 50)
    assert torch.equal(result.x, x) and torch.equal(result.codes[:, 0], x)
    assert result.bandwidth.item() == pytest.approx(4 * 5 * 32 * 50 / 1000)
    assert dummy.num_codebooks == dummy.total_codebooks == 1
    with pytest.raises(AttributeError, match="exactly one codebook"):
        dummy.set_num_codebooks(2)
