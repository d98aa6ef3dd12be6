"""Statistics with known values."""

import math

import pytest
import torch

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.evaluation.statistics import (
    bootstrap,
    cosine_similarities,
    frechet_distance,
    frechet_distance_of,
    kernel_distance,
    kl_divergence,
    median_distance,
    permutation_p,
    retrieval,
    retrieval_ranks,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def orthogonal(dim: int) -> torch.Tensor:
    return torch.linalg.qr(normal(dim, dim)).Q


def test_frechet_distance_of_gaussians_that_commute():
    """With common axes it is the sum of squared differences of means and deviations."""
    q = orthogonal(7)
    # No deviation is 0: half of the digits of its root would be rounding.
    a, b = torch.linspace(0.2, 3, 7).double(), torch.linspace(2, 0.5, 7).double()
    mean1, mean2 = normal(7), normal(7, seed=1)
    cov1, cov2 = (q @ torch.diag(s.square()) @ q.T for s in (a, b))
    expected = float((mean1 - mean2).square().sum() + (a - b).square().sum())
    assert frechet_distance_of(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance_of(mean1, cov1, mean1, cov1) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_of_gaussians_that_do_not_commute():
    """Two dimensions: tr (S1 S2)^(1/2) = sqrt(tr(S1 S2) + 2 sqrt(det S1 det S2))."""
    cov1 = torch.tensor([[2.0, 0.7], [0.7, 1.0]]).double()
    cov2 = torch.tensor([[0.5, -0.3], [-0.3, 4.0]]).double()
    root = math.sqrt(float((cov1 @ cov2).trace()) + 2 * math.sqrt(float(cov1.det() * cov2.det())))
    expected = float(cov1.trace() + cov2.trace()) - 2 * root
    zero = torch.zeros(2)
    assert frechet_distance_of(zero, cov1, zero, cov2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n, m, dim", [(40, 40, 7), (5, 5, 33), (9, 40, 9), (40, 3, 12)])
def test_frechet_distance_of_samples_is_that_of_their_moments(n, m, dim):
    """With fewer samples than dimensions as well, where covariances are singular."""
    x, y = normal(n, dim), 2 * normal(m, dim, seed=1) @ orthogonal(dim) + 0.3
    moments = [t for s in (x, y) for t in (s.mean(dim=0), torch.cov(s.T))]
    found = frechet_distance(x, y, equal_counts=False)
    # Singular covariances lose half of the digits in the root, samples do not.
    assert found == pytest.approx(frechet_distance_of(*moments), rel=1e-6)
    assert found == pytest.approx(frechet_distance(y, x, equal_counts=False), rel=1e-12)


@pytest.mark.parametrize("n, dim", [(60, 12), (20, 48)])
def test_frechet_distance_agrees_with_scipy(n, dim):
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed")
    x, y = normal(n, dim), normal(n, dim, seed=1) * torch.linspace(0.1, 2, dim)
    (mean1, cov1), (mean2, cov2) = ((s.mean(dim=0), torch.cov(s.T).numpy()) for s in (x, y))
    trace = linalg.sqrtm(cov1 @ cov2 + 0j).real.trace()
    expected = float((mean1 - mean2).square().sum()) + cov1.trace() + cov2.trace() - 2 * trace
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (1e-12, 0.0), (1e12, 0.0), (1.0, 1e6)])
def test_frechet_distance_to_itself_is_zero_and_to_a_moved_copy_the_way(scale, shift):
    x = normal(30, 50) * scale + shift
    power = float(x.var(dim=0).sum())
    assert 0 <= frechet_distance(x, x) <= 1e-9 * power
    moved = frechet_distance(x, x + scale)
    assert moved == pytest.approx(50 * scale**2, rel=1e-6)
    assert frechet_distance(x, x.mean(dim=0) + 3 * (x - x.mean(dim=0))) == pytest.approx(
        4 * power, rel=1e-6
    )


def test_frechet_distance_of_known_gaussians_from_many_samples():
    """Of N(0, 1) and N(1, 4) in each of 4 dimensions: 4 (1 + 1)."""
    x, y = normal(20000, 4), 1 + 2 * normal(20000, 4, seed=1)
    assert frechet_distance(x.float(), y.float()) == pytest.approx(8, rel=0.03)


def test_kernel_distance_by_hand():
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0], [4.0]])
    k = {d: math.exp(-(d**2) / 8) for d in range(5)}  # the bandwidth is 2
    within = k[2] + (2 * k[0] + 4 * k[3]) / 6
    between = (2 * k[1] + k[4] + 2 * k[1] + k[2]) / 6
    assert median_distance(x) == 2
    assert kernel_distance(x, y) == pytest.approx(100 * (within - 2 * between), rel=1e-12)
    assert kernel_distance(x, y, bandwidth=2, scale=1) == pytest.approx(within - 2 * between)


def test_kernel_distance_is_unbiased():
    """Over many splits of one set its mean is 0, at any sizes; that of FD is far from it."""
    x = normal(90, 20)
    bandwidth = median_distance(x)
    found = []
    for seed in range(200):
        order = torch.randperm(90, generator=torch.Generator().manual_seed(seed))
        found.append(kernel_distance(x[order[:30]], x[order[30:]], bandwidth))
    found = torch.tensor(found)
    # The mean over all splits of one set is exactly 0; four standard errors for 200 of them.
    assert abs(float(found.mean())) < 4 * float(found.std()) / 200**0.5
    assert float(found.min()) < 0 < float(found.max())
    assert kernel_distance(x, normal(50, 20, seed=1) + 0.5) > 10 * float(found.std())


def test_kernel_distance_is_exact_far_from_the_origin():
    x, y = normal(20, 5), normal(30, 5, seed=1)
    expected = kernel_distance(x, y)
    assert kernel_distance(x + 1e5, y + 1e5) == pytest.approx(expected, rel=1e-6)
    assert kernel_distance(1e-9 * x, 1e-9 * y) == pytest.approx(expected, rel=1e-9)


def test_kl_divergence_by_hand():
    r = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [1.0, 0.0, 0.0]])
    g = torch.tensor([[0.25, 0.75, 0.0], [0.25, 0.5, 0.25], [0.0, 1.0, 0.0]])
    expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.0, math.inf]
    assert kl_divergence(r, g, epsilon=0).tolist() == pytest.approx(expected)
    found = kl_divergence(r, g).tolist()
    assert found[:2] == pytest.approx(expected[:2], abs=3e-6)
    assert found[2] == pytest.approx(-math.log(1e-6))  # what a missing label costs at most


def test_kl_divergence_of_equal_posteriors_is_zero():
    p = (10 * normal(20, 527)).softmax(dim=1).float()
    assert kl_divergence(p, p, epsilon=0).tolist() == [0.0] * 20
    assert ((kl_divergence(p, p) <= 0) & (kl_divergence(p, p) >= -527e-6)).all()
    assert (kl_divergence(p, p.roll(1, dims=0)) > 1).all()


def test_retrieval_of_a_permuted_identity():
    """Each query finds its answer first, wherever it lies, and nothing once names are wrong."""
    n = 12
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    similarity = torch.eye(n)[:, order]
    found = retrieval(similarity, range(n), order.tolist())
    assert found == {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0}
    # One answer is before the right one, and the others are as similar as it is.
    found = retrieval(similarity, range(n), order.roll(1).tolist())
    assert found == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0}


def test_retrieval_ranks_by_hand():
    similarity = torch.tensor(
        [
            [0.1, 0.9, 0.8, 0.2],  # a: its best answer is column 2, one other is before it
            [0.9, 0.5, 0.4, 0.3],  # b: column 1, after column 0
            [0.7, 0.1, 0.2, 0.1],  # a: column 0, first
            [0.5, 0.5, 0.5, 0.5],  # c: as similar as everything, so last
        ]
    )
    captions = ["a", "b", "a", "c"]
    assert retrieval_ranks(similarity, captions).tolist() == [1, 1, 0, 3]
    found = retrieval(similarity, captions, at=(1, 2, 4))
    assert found == {"R@1": 0.25, "R@2": 0.75, "R@4": 1.0}
    # Among distinct captions
    columns = similarity[:, [0, 1, 3]]
    assert retrieval_ranks(columns, captions, ["a", "b", "c"]).tolist() == [2, 1, 0, 2]


def test_retrieval_at_the_ranks_in_between():
    n = 20
    similarity = -torch.arange(n).float().expand(n, n)  # every query lists 0, 1, 2 and so on
    assert retrieval(similarity, range(n)) == {"R@1": 0.05, "R@5": 0.25, "R@10": 0.5}


def test_cosines():
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-200, 0.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 0.0], [-6.0, -8.0]])
    found = cosine_similarities(a, b)
    assert found[:2].flatten().tolist() == pytest.approx([0.6, -1.0, 0.0, 0.0])


def test_bootstrap_covers_the_mean_of_a_normal_sample():
    x = 3 + normal(400)
    low, high = bootstrap(x)
    error = float(x.std()) / 20
    assert low == pytest.approx(float(x.mean()) - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(float(x.mean()) + 1.96 * error, abs=0.2 * error)
    assert bootstrap(x) == (low, high) != bootstrap(x, seed=1)
    narrow = bootstrap(x, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    same = bootstrap(lambda index: float(x[index].mean()), size=400)
    assert same == pytest.approx((low, high), rel=1e-12)
    assert bootstrap(torch.full((5,), 2.5)) == (2.5, 2.5)


def test_bootstrap_around_an_estimate():
    """Repeated items push FD up; the interval then lies around the value all the same."""
    x, y = normal(40, 60), normal(40, 60, seed=1)
    value = frechet_distance(x, y)

    def resampled(index):
        return frechet_distance(x[index], y[index])

    plain = bootstrap(resampled, n=60, size=40)
    moved = bootstrap(resampled, n=60, size=40, estimate=value)
    assert value < plain[0]
    assert moved[0] < value < moved[1]
    assert moved[1] - moved[0] == pytest.approx(plain[1] - plain[0])


def test_permutation_p():
    similarity = torch.eye(12) + 0.1 * normal(12, 12)
    rows = torch.arange(12)

    def matched(order):
        return float(similarity[rows, order].mean())

    assert permutation_p(matched(rows), matched, 12, n=199) == 1 / 200
    # Nothing to find: any p-value, and all of them alike over many cases.
    found = []
    for seed in range(40):
        noise = normal(12, 12, seed=seed)
        observed = float(noise.diagonal().mean())
        p = permutation_p(
            observed, lambda o, s=noise: float(s[rows, o].mean()), 12, n=99, seed=seed
        )
        found.append(p)
    assert 0.3 < sum(found) / len(found) < 0.7 and min(found) < 0.2 and max(found) > 0.8


def test_mistakes_are_named():
    x = normal(5, 3)
    bad = x.clone()
    bad[2, 1] = math.nan
    p = x.softmax(dim=1)
    cases = [
        (lambda: frechet_distance(x, x[:4]), "same number of items.*5 and 4"),
        (lambda: frechet_distance(x[:1], x[:1]), "at least 2 items, got 1 and 1"),
        (lambda: frechet_distance(x, x[:, :2]), r"\[5, 3\] and \[5, 2\]"),
        (lambda: frechet_distance(x, bad), "finite"),
        (lambda: kernel_distance(bad, x), "finite"),
        (lambda: kernel_distance(torch.ones(4, 3), x), "bandwidth must be positive, got 0"),
        (lambda: frechet_distance_of(x[0], p[:3], x[0], torch.eye(3)), "cov1 must be symmetric"),
        (lambda: frechet_distance_of(x[0], torch.eye(3), x[0], -torch.eye(3)), "cov2.*-1"),
        (lambda: frechet_distance_of(x[0], torch.eye(3), x[0], torch.eye(2)), r"\[2, 2\]"),
        (lambda: kl_divergence(p, p[:4]), r"\[5, 3\] and \[4, 3\]"),
        (lambda: kl_divergence(p, x), "generated must be probabilities"),
        (lambda: kl_divergence(2 * p, p), "reference must be probabilities"),
        (lambda: retrieval(x, range(5)), r"\[5, 5\].*\[5, 3\]"),
        (lambda: retrieval(x, range(5), range(3)), "every query must have an answer"),
        (lambda: retrieval(bad, "abcab", "abc"), "finite"),
        (lambda: bootstrap(bad[2]), "finite"),
        (lambda: bootstrap(lambda index: 0.0), "size must be at least 1, got None"),
        (lambda: bootstrap(x[0], level=1.0), "level.*1.0"),
        (lambda: permutation_p(0.0, lambda order: 0.0, 3, n=0), "n must be at least 1, got 0"),
        (lambda: cosine_similarities(x, x[:, :2]), r"\[5, 2\]"),
    ]
    for call, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            call()
