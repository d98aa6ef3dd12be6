"""Figures, their intervals and p-values, from vectors whose answer is known."""

import numpy as np
import pytest
import torch

from audiogen_fast.evaluation.measures import (
    FEWEST,
    HALVINGS,
    Assigned,
    Embedded,
    Value,
    absent,
    consistencies,
    divergences,
    half_distances,
    half_size,
    whole_distance,
)
from audiogen_fast.evaluation.statistics import frechet_distance, kernel_distance


def normal(n, dim, seed, shift=0.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + shift


def row(vectors, answers=None):
    return Embedded(vectors, list(range(len(vectors))) if answers is None else answers)


def test_kad_of_two_halves_is_near_0_and_of_a_shift_is_not():
    x = normal(120, 6, 0)
    same = half_distances(kernel_distance, x, row(x), 60, 0)
    moved = half_distances(kernel_distance, x, row(x + 1.0), 60, 0)
    assert same.low < 0 < same.high and abs(same.value) < 0.5
    assert moved.low > 10 * abs(same.value) and moved.n == 60


def test_the_interval_of_half_samples_covers_the_truth():
    """|m1 - m2|^2 of two sets from one normal distribution is 2 / n times the dimension."""
    covered = 0

    def gap(x, y):
        return float((x.mean(0) - y.mean(0)).sum())

    for seed in range(60):
        x = normal(64, 1, seed)
        value = half_distances(gap, x, row(x), 32, seed)
        covered += value.low <= 0.0 <= value.high
    assert covered >= 50  # the spread is that of two sets of 32
    widths = []
    for seed in range(20):
        x = normal(64, 1, 100 + seed)
        value = half_distances(gap, x, row(x), 32, seed)
        widths.append(value.high - value.low)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(2 / 32), rel=0.15)


def test_a_row_is_compared_with_the_references_it_was_not_made_for():
    """A copy of the references scores as the references themselves do, not 0."""
    x = normal(40, 5, 1)
    own = half_distances(frechet_distance, x, row(x), 20, 0)
    copied = half_distances(frechet_distance, x, row(x.clone()), 20, 0)
    assert own == copied and own.value > 0.5
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    shuffled = half_distances(frechet_distance, x, row(x[order], order.tolist()), 20, 0)
    assert shuffled.value == pytest.approx(own.value, rel=1e-9)


def test_half_distances_see_exactly_the_other_half():
    seen = []

    def keep(x, y):
        seen.append((set(x[:, 0].tolist()), set(y[:, 0].tolist())))
        return 0.0

    x = torch.arange(11.0).unsqueeze(1)
    half_distances(keep, x, row(x), 5, 0)
    assert len(seen) == HALVINGS and len({tuple(sorted(a)) for a, _ in seen}) > 20
    for a, b in seen:
        assert len(a) == len(b) == 5 and not a & b
    seen.clear()
    # 4 clips answer to the last reference, the others to none: all can stand for the other half
    half_distances(keep, x, row(x[:8], [10] * 4 + [None] * 4), 5, 0)
    assert all(len(b) == 5 for _, b in seen)


def test_counts_are_the_largest_that_all_rows_have():
    assert half_size(21, [row(normal(21, 2, 0)), row(normal(7, 2, 0))]) == 7
    assert half_size(21, [row(normal(21, 2, 0)), row(normal(17, 2, 0))]) == 10
    few = half_distances(frechet_distance, normal(6, 2, 0), row(normal(6, 2, 0)), 3, 0)
    assert few.value is None and f"needs {FEWEST}" in few.reason
    large, small = normal(50, 2, 0), normal(20, 2, 1)
    value = whole_distance(frechet_distance, large, small, 20, 0)
    assert value.n == 20 and value.low <= value.value <= value.high


def test_shuffled_captions_are_worse_with_a_small_p():
    texts = torch.nn.functional.normalize(normal(30, 16, 3), dim=1)
    sounds = texts + 0.1 * normal(30, 16, 4)
    rivals = texts + 0.5 * normal(30, 16, 5)
    own = list(range(30))
    groups = [str(i) for i in own]
    found = consistencies(sounds, texts, own, groups, rivals, own)
    for key, assigned in found.items():
        good, other = assigned.value(0), assigned.shuffled(0)
        assert good.p == pytest.approx(1 / 1000) and good.value > other.high, key
        assert good.low <= good.value <= good.high
    chance = found["R@10"].shuffled(0).value
    assert chance == pytest.approx(10 / 30, abs=0.07)  # a place among 29 rivals
    noise = consistencies(normal(30, 16, 9), texts, own, groups, rivals, own)["score"].value(0)
    assert noise.p > 0.01


def test_ranks_are_among_rivals_of_other_captions():
    texts = torch.eye(3)
    near, middle, far = [1.0, 0.0, 0.2], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]
    rivals = torch.tensor([near, middle, near, near, middle, far])
    captions = [0, 0, 1, 2, 2, -1]
    sounds = torch.tensor([near, middle, far, [0.9, 0.0, 0.1]])
    found = consistencies(sounds, texts, [0, 0, 0, 0], ["a"] * 4, rivals, captions, at=(1, 2, 3, 4))
    # as near come first: 2 for the first sound; also the middle one for the second; all for the
    # third; of the fourth, which is nearer than any, none
    ranks = [4 - sum(float(found[f"R@{k}"].items[i]) for k in (1, 2, 3, 4)) for i in range(4)]
    assert ranks == [2, 3, 4, 0]
    itself = consistencies(
        rivals[:2], texts, [1, 1], ["a", "b"], rivals, captions, selves=[0, 1], at=(1,)
    )
    # for the second caption: the first sound has rivals before it, the second only its like
    assert itself["R@1"].matrix[:, 1].tolist() == [0.0, 0.0]
    alone = consistencies(rivals[:1], texts, [0], ["a"], rivals[:1], [2], selves=[0], at=(1,))
    assert alone["R@1"].items.tolist() == [1.0]
    other = consistencies(rivals[:1], texts, [0], ["a"], rivals[:1], [2], at=(1,))
    assert other["R@1"].items.tolist() == [0.0]


def test_captions_are_ranked_among_all_captions():
    texts = torch.eye(4)
    sounds = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    found = consistencies(sounds, texts, [0, 0, 2], ["a"] * 3, sounds, [0, 0, 2], at=(1, 2, 3, 4))
    ranks = [
        4 - sum(float(found[f"caption_R@{k}"].items[i]) for k in (1, 2, 3, 4)) for i in range(3)
    ]
    # the second sound is nearer to another caption; to the third all are as near, which is no find
    assert ranks == [0, 1, 3]
    chance = [found[f"caption_R@{k}"].matrix.mean().item() for k in (1, 4)]
    assert chance == pytest.approx([2 / 12, 1.0])


def test_divergence_of_equal_posteriors_is_0_and_lower_is_better():
    p = torch.softmax(4 * normal(25, 10, 5), dim=1)
    groups = [str(i) for i in range(25)]
    own = divergences(p, p, list(range(25)), groups)
    assert abs(own.value(0).value) < 1e-4
    assert own.value(0).p == pytest.approx(1 / 1000)
    assert own.shuffled(0).low > own.value(0).value
    wrong = divergences(p, p, [*range(1, 25), 0], groups)
    assert wrong.value(0).value > 0.5 and wrong.value(0).p > 0.01


def test_one_caption_cannot_be_shuffled():
    assigned = Assigned(torch.ones(3, 1), torch.zeros(3, dtype=torch.long), ["a"] * 3, 1)
    assert assigned.value(0).p is None and assigned.shuffled(0).value is None
    none = Assigned(torch.ones(0, 1), torch.zeros(0, dtype=torch.long), [], 1)
    assert none.value(0).reason


def test_what_is_not_finite_is_no_value():
    for value in (float("nan"), float("inf"), None):
        found = Value(value)
        assert found.value is None and found.reason
    assert absent("why") == Value(None, reason="why")
    assert Value(0.0).value == 0.0
