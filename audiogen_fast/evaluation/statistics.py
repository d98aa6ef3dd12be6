"""What is computed from embeddings, posteriors and similarities: pure functions, in float64.

Where a function is not symmetric, the reference comes first.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from audiogen_fast.errors import check

KAD_SCALE = 100.0
"""Squared MMDs of embeddings are small; the toolkit of KAD's authors reports hundredths."""


def frechet_distance(x: Tensor, y: Tensor, equal_counts: bool = True) -> float:
    """Frechet distance between Gaussians fitted to two sets of embeddings.

    `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` (Heusel et al. 2017, arXiv 1706.08500; for audio
    Kilgour et al. 2019, arXiv 1812.08466) with the means m and the covariances S over n - 1.
    With centred embeddings `A^T A = S1` and `B^T B = S2`, the trace of the root is the sum of the
    singular values of `A B^T`: exact with fewer samples than dimensions as well, where the root of
    the product of covariances needs a constant added to them.

    The expectation grows as the number of samples falls, so only distances with the same number
    of samples on both sides, and in every row of a table, can be compared.

    Args:
        x: `[N, D]`.
        y: `[M, D]`.
        equal_counts: refuse N != M.
    Returns:
        At least 0; what rounding puts below is 0.
    Raises:
        InvalidInputError: shapes that do not fit, fewer than 2 samples, values that are not
            finite, or unequal numbers of samples.
    """
    x, y = _sets(x, y, equal_counts)
    (mean_x, root_x), (mean_y, root_y) = _gaussian(x), _gaussian(y)
    return _frechet(mean_x - mean_y, root_x, root_y)


def frechet_distance_of(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Frechet distance between two Gaussians; see `frechet_distance`.

    Args:
        mean1, mean2: `[D]`.
        cov1, cov2: `[D, D]`, symmetric and positive semidefinite.
    """
    mean1, cov1, mean2, cov2 = (_double(t) for t in (mean1, cov1, mean2, cov2))
    dim = len(mean1)
    for name, mean, cov in (("1", mean1, cov1), ("2", mean2, cov2)):
        check(
            mean.shape == (dim,) and cov.shape == (dim, dim),
            f"mean{name} and cov{name} must be [{dim}] and [{dim}, {dim}], got "
            f"{list(mean.shape)} and {list(cov.shape)}",
        )
        check(
            bool(mean.isfinite().all() and cov.isfinite().all()),
            f"mean{name} and cov{name} must be finite",
        )
    return _frechet(mean1 - mean2, _root("cov1", cov1), _root("cov2", cov2))


def kernel_distance(
    reference: Tensor, generated: Tensor, bandwidth: float | None = None, scale: float = KAD_SCALE
) -> float:
    """Kernel audio distance (Chung et al. 2025, arXiv 2502.15602).

    `scale` times the unbiased estimate of the squared maximum mean discrepancy with the kernel
    `exp(-|a - b|^2 / (2 bandwidth^2))` (Gretton et al. 2012, lemma 6). Its expectation does not
    depend on the numbers of samples, and is 0 for two sets from one distribution; it may be
    negative.

    Args:
        reference: `[N, D]`.
        generated: `[M, D]`; N and M may differ.
        bandwidth: None is the median distance between two different items of the reference.
        scale: 100, as the toolkit of the paper's authors; 1 gives the squared MMD itself.
    Raises:
        InvalidInputError: shapes that do not fit, fewer than 2 samples, values that are not
            finite, or a reference whose median distance is 0.
    """
    x, y = _sets(reference, generated, equal_counts=False)
    bandwidth = median_distance(x) if bandwidth is None else bandwidth
    check(
        bandwidth > 0,
        f"bandwidth must be positive, got {bandwidth}: the items of the reference are equal",
    )
    within_x, within_y = (_kernel(a, a, bandwidth).fill_diagonal_(0).sum() for a in (x, y))
    within = within_x / (len(x) * (len(x) - 1)) + within_y / (len(y) * (len(y) - 1))
    return float(scale * (within - 2 * _kernel(x, y, bandwidth).mean()))


def median_distance(x: Tensor) -> float:
    """Median Euclidean distance between two different rows of `[N, D]`."""
    return float(F.pdist(_double(x)).median())


def kl_divergence(reference: Tensor, generated: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Kullback-Leibler divergence of each generated item's label posterior from its reference's.

    `sum r (log r - log(g + epsilon))` in nats: the original's `kld` (its `kld_pq`), constant
    included, which bounds what one missing label costs. So equal posteriors give a value between
    `-epsilon C` and 0, and exactly 0 with `epsilon=0`.

    Args:
        reference: `[N, C]`, each row the probabilities of C labels.
        generated: `[N, C]`, row i being of the item that belongs to row i of the reference.
    Returns:
        float64 `[N]`.
    """
    r, g = _double(reference), _double(generated)
    check(
        r.ndim == 2 and r.shape == g.shape,
        f"reference and generated must be [N, C] of one shape, got {list(r.shape)} and "
        f"{list(g.shape)}",
    )
    for name, p in (("reference", r), ("generated", g)):
        sums = p.sum(dim=1)
        # Rows of a float32 softmax over thousands of labels are off by far less.
        check(
            bool((p >= 0).all() and (sums - 1).abs().le(1e-3).all()),
            f"rows of {name} must be probabilities that sum to 1",
        )
    # xlogy: labels of probability 0 add nothing
    return (torch.special.xlogy(r, r) - torch.special.xlogy(r, g + epsilon)).sum(dim=1)


def cosine_similarities(a: Tensor, b: Tensor) -> Tensor:
    """Cosines between the rows of `[N, D]` and those of `[M, D]`, float64 `[N, M]`.

    A row of zeros has the cosine 0 with everything.
    """
    a, b = _double(a), _double(b)
    check(
        a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1],
        f"a and b must be [N, D] and [M, D], got {list(a.shape)} and {list(b.shape)}",
    )
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def retrieval_ranks(
    similarity: Tensor, rows: Sequence[Hashable], columns: Sequence[Hashable] | None = None
) -> Tensor:
    """Rank of the first right answer to each query, from 0.

    A right answer is any item of the same group (the same caption), so that equal captions never
    count as each other's errors. Items of other groups that are as similar as the best right
    answer rank before it, so that an encoder that gives every item the same vector finds nothing.

    Args:
        similarity: `[N, M]`: queries by answers.
        rows: group of each query, N of them.
        columns: group of each answer, M of them; None for those of the queries.
    Returns:
        int64 `[N]`.
    """
    similarity = _double(similarity)
    columns = rows if columns is None else columns
    check(
        similarity.shape == (len(rows), len(columns)),
        f"similarity must be [{len(rows)}, {len(columns)}], the numbers of rows and columns, got "
        f"{list(similarity.shape)}",
    )
    check(bool(similarity.isfinite().all()), "similarity must be finite")
    numbers = {group: number for number, group in enumerate(dict.fromkeys([*rows, *columns]))}
    row_groups, column_groups = (
        torch.tensor([numbers[group] for group in groups], device=similarity.device)
        for groups in (rows, columns)
    )
    right = row_groups.unsqueeze(1) == column_groups
    check(bool(right.any(dim=1).all()), "every query must have an answer of its group")
    best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    return ((similarity >= best) & ~right).sum(dim=1)


def retrieval(
    similarity: Tensor,
    rows: Sequence[Hashable],
    columns: Sequence[Hashable] | None = None,
    at: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Recall `R@k`: share of queries with a right answer among the first k; `retrieval_ranks`."""
    ranks = retrieval_ranks(similarity, rows, columns)
    check(len(ranks) > 0, "there must be at least 1 query, got 0")
    return {f"R@{k}": float((ranks < k).double().mean()) for k in at}


def bootstrap(
    values: Tensor | Callable[[Tensor], float],
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    size: int | None = None,
    estimate: float | None = None,
) -> tuple[float, float]:
    """Percentile interval from resampling items with replacement (Efron 1979).

    Args:
        values: `[N]`, whose mean is estimated; or a function from indices int64 `[size]` to the
            statistic of these items.
        n: number of resamples.
        seed: of the indices.
        level: of confidence.
        size: number of items, for a function.
        estimate: the statistic of the whole set. With it, the resamples are moved so that their
            mean is there: repeated items push distances between sets up, always.
    Returns:
        Lower and upper end.
    """
    check(n >= 1, f"n must be at least 1, got {n}")
    check(0 < level < 1, f"level must lie in (0, 1), got {level}")
    if isinstance(values, Tensor):
        items = _double(values)
        check(items.ndim == 1 and len(items) > 0, f"values must be [N], got {list(items.shape)}")
        check(bool(items.isfinite().all()), "values must be finite")
        size, function = len(items), lambda index: float(items[index].mean())
    else:
        check(size is not None and size >= 1, f"size must be at least 1, got {size}")
        function = values
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.randint(size, (size,), generator=generator) for _ in range(n))
    found = torch.tensor([function(index) for index in draws], dtype=torch.float64)
    if estimate is not None:
        found += estimate - found.mean()
    tail = (1 - level) / 2
    low, high = found.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def permutation_p(
    observed: float,
    function: Callable[[Tensor], float],
    size: int,
    n: int = 999,
    seed: int = 0,
) -> float:
    """One-sided p-value that permutations do not lower a statistic.

    `(1 + number of permutations that reach the observed value) / (1 + n)` (Phipson and Smyth
    2010, arXiv 1603.05766), so never below `1 / (1 + n)`.

    Args:
        observed: the statistic without permutation.
        function: from a permutation, int64 `[size]`, to the statistic: of captions shuffled by it.
        size: number of items.
        n: number of random permutations.
    """
    check(n >= 1, f"n must be at least 1, got {n}")
    check(size >= 1, f"size must be at least 1, got {size}")
    generator = torch.Generator().manual_seed(seed)
    reached = sum(function(torch.randperm(size, generator=generator)) >= observed for _ in range(n))
    return (1 + int(reached)) / (1 + n)


def _double(x: Tensor) -> Tensor:
    return torch.as_tensor(x).detach().double()


def _sets(x: Tensor, y: Tensor, equal_counts: bool) -> tuple[Tensor, Tensor]:
    x, y = _double(x), _double(y)
    check(
        x.ndim == y.ndim == 2 and x.shape[1] == y.shape[1] and x.shape[1] > 0,
        f"the sets must be [N, D] and [M, D], got {list(x.shape)} and {list(y.shape)}",
    )
    check(
        min(len(x), len(y)) >= 2,
        f"a set must have at least 2 items, got {len(x)} and {len(y)}",
    )
    check(
        len(x) == len(y) or not equal_counts,
        "the sets must have the same number of items, because the distance depends on it, got "
        f"{len(x)} and {len(y)}",
    )
    check(bool(x.isfinite().all() and y.isfinite().all()), "embeddings must be finite")
    return x, y


def _gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[D]`, and R `[min(N, D), D]` with `R^T R` the covariance over N - 1."""
    mean = x.mean(dim=0)
    centred = (x - mean) / (len(x) - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R if len(x) > x.shape[1] else centred


def _root(name: str, cov: Tensor) -> Tensor:
    """R with `R^T R = cov`."""
    tolerance = 1e-8 * float(cov.abs().max())
    check(float((cov - cov.T).abs().max()) <= tolerance, f"{name} must be symmetric")
    values, vectors = torch.linalg.eigh(cov)
    check(
        float(values[0]) >= -len(cov) * tolerance,
        f"{name} must be positive semidefinite, got an eigenvalue of {float(values[0]):g}",
    )
    return values.clamp(min=0).sqrt().unsqueeze(1) * vectors.T


def _frechet(difference: Tensor, a: Tensor, b: Tensor) -> float:
    trace = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float(difference.square().sum() + trace))


def _kernel(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    # By products, which is fast; without the common mean, their rounding is small.
    mean = x.mean(dim=0)
    distances = torch.cdist(x - mean, y - mean, compute_mode="use_mm_for_euclid_dist")
    return (-0.5 * (distances / bandwidth).square()).exp_()
