import math

import pytest
import torch

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training.losses import codebook_cross_entropy


def make(shape=(3, 4, 7, 11), seed=0, dtype=torch.float32):
    """Logits, targets, and a mask like that of the delay pattern: codebook k lacks k steps."""
    generator = torch.Generator().manual_seed(seed)
    batch, n_codebooks, steps, card = shape
    logits = 3 * torch.randn(shape, generator=generator)
    targets = torch.randint(0, card, shape[:3], generator=generator)
    mask = torch.arange(steps) < steps - torch.arange(n_codebooks).view(-1, 1)
    return logits.to(dtype), targets, mask.expand(batch, n_codebooks, steps).contiguous()


def loop(logits, targets, mask):
    """The definition, one float64 number after the other."""
    per_codebook = []
    for k in range(logits.shape[1]):
        terms = []
        for b, t in mask[:, k].nonzero().tolist():
            row = logits[b, k, t].double().tolist()
            top = max(row)
            log_sum = top + math.log(sum(math.exp(x - top) for x in row))
            terms.append(log_sum - row[targets[b, k, t]])
        per_codebook.append(sum(terms) / len(terms) if terms else 0.0)
    return sum(per_codebook) / len(per_codebook), per_codebook


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4, 7, 11), (1, 1, 1, 1), (2, 3, 5, 2)])
def test_equals_a_float64_loop(shape, dtype):
    logits, targets, mask = make(shape, dtype=dtype)
    loss, per_codebook = codebook_cross_entropy(logits, targets, mask)
    expected, expected_each = loop(logits, targets, mask)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert loss.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert per_codebook.tolist() == pytest.approx(expected_each, rel=tolerance, abs=tolerance)


def test_codebooks_weigh_the_same_whatever_their_counts():
    logits = torch.zeros(1, 2, 4, 8)
    logits[0, 1, :, 0] = 50.0
    targets = torch.zeros(1, 2, 4, dtype=torch.int64)
    mask = torch.tensor([[[True, True, True, True], [True, False, False, False]]])
    loss, per_codebook = codebook_cross_entropy(logits, targets, mask)
    assert per_codebook.tolist() == pytest.approx([math.log(8), 0.0], abs=1e-6)
    assert loss.item() == pytest.approx(math.log(8) / 2, rel=1e-6)


def test_gradient_equals_that_of_the_naive_form():
    logits, targets, mask = make(dtype=torch.float64)
    logits.requires_grad_()
    loss, _ = codebook_cross_entropy(logits, targets, mask)
    (actual,) = torch.autograd.grad(loss, logits)
    naive = 0.0
    for k in range(logits.shape[1]):
        valid = mask[:, k]
        log_p = torch.log_softmax(logits[:, k][valid], dim=-1)
        naive = naive - log_p.gather(1, targets[:, k][valid].unsqueeze(1)).mean()
    (expected,) = torch.autograd.grad(naive / logits.shape[1], logits)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)


def test_masked_logits_and_targets_do_not_matter():
    logits, targets, mask = make()
    clean = logits.clone().requires_grad_()
    loss, per_codebook = codebook_cross_entropy(clean, targets, mask)
    loss.backward()
    for poison in (float("nan"), float("inf"), float("-inf")):
        bad = torch.where(mask.unsqueeze(-1), logits, poison).requires_grad_()
        bad_loss, bad_each = codebook_cross_entropy(
            bad, torch.where(mask, targets, logits.shape[-1]), mask
        )
        bad_loss.backward()
        assert torch.equal(bad_loss, loss)
        assert torch.equal(bad_each, per_codebook)
        assert torch.equal(bad.grad, clean.grad)
    assert clean.grad[~mask].abs().max() == 0


def test_valid_nan_is_not_hidden():
    logits, targets, mask = make()
    logits[0, 2, 0, 3] = float("nan")
    loss, per_codebook = codebook_cross_entropy(logits, targets, mask)
    assert loss.isnan() and per_codebook.isnan().tolist() == [False, False, True, False]


def test_empty_codebook_counts_as_zero():
    logits, targets, mask = make()
    _, before = codebook_cross_entropy(logits, targets, mask)
    mask[:, 1] = False
    logits[:, 1] = float("nan")
    logits.requires_grad_()
    loss, per_codebook = codebook_cross_entropy(logits, targets, mask)
    loss.backward()
    assert per_codebook[1] == 0
    assert per_codebook[[0, 2, 3]].tolist() == before[[0, 2, 3]].tolist()
    assert logits.grad.isfinite().all() and (logits.grad[:, 1] == 0).all()


def test_half_precision_is_accumulated_in_float32():
    # 2^15 equal terms of about 2.08: a float16 sum would overflow, a bfloat16 sum would stall.
    logits = torch.zeros(1, 1, 2**15, 8, dtype=torch.bfloat16)
    targets = torch.zeros(1, 1, 2**15, dtype=torch.int64)
    loss, _ = codebook_cross_entropy(logits, targets, torch.ones_like(targets, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(8), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 4, 7)}, r"logits must be \[B, K, T, card\]"),
        ({"targets": torch.zeros(3, 4, 6, dtype=torch.int64)}, r"targets must be \(3, 4, 7\)"),
        ({"targets": torch.zeros(3, 4, 7)}, "targets must be torch.int64, got torch.float32"),
        ({"mask": torch.ones(3, 4, 7)}, "mask must be torch.bool, got torch.float32"),
        ({"mask": torch.ones(3, 1, 7, dtype=torch.bool)}, r"mask must be \(3, 4, 7\)"),
    ],
)
def test_wrong_arguments(change, message):
    logits, targets, mask = make()
    with pytest.raises(InvalidInputError, match=message):
        codebook_cross_entropy(**{"logits": logits, "targets": targets, "mask": mask, **change})
