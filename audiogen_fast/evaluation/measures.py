"""From embeddings, posteriors and similarities to figures with their intervals.

Distances between sets depend on the number of clips and on which, so that every row of a table
is measured in the same way: the references are halved at random, one half is the reference, and
a row's clips that answer to the other half are compared with it. For the row of real clips that
is the other half itself. The value is the mean over many halvings and the interval their 2.5 and
97.5 per cent points: a bootstrap of half-samples, which repeats no clip (repeated ones push
distances up) and has the variance of the whole set (Politis, Romano and Wolf 1999, chapter 2).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from audiogen_fast.evaluation import statistics
from audiogen_fast.evaluation.anchors import shuffles

HALVINGS = 60
SHUFFLES = 999
_RESAMPLES = 1000
FEWEST = 4
"""Clips without which there is no distance between sets."""


@dataclass(frozen=True)
class Value:
    """A figure, or the reason why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    """Ends of the interval of 95 %."""
    n: int = 0
    """Clips that it is of; on each side, for a distance."""
    p: float | None = None
    """One-sided probability of a figure as good where captions are shuffled."""
    reason: str = ""

    def __post_init__(self):
        finite = self.value is not None and math.isfinite(self.value)
        if not finite and not self.reason:
            object.__setattr__(self, "reason", f"the result is {self.value}")
        if not finite:
            object.__setattr__(self, "value", None)


def absent(reason: str) -> Value:
    """No figure, and why."""
    return Value(None, reason=reason)


@dataclass
class Embedded:
    """A set of clips as an encoder sees them."""

    vectors: Tensor
    """`[M, D]`."""
    answers: list[int | None]
    """Index of the reference that each answers to."""
    posteriors: Tensor | None = None
    """`[M, C]`."""
    captions: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.vectors)


Distance = Callable[[Tensor, Tensor], float]


def half_size(references: int, rows: Sequence[Embedded]) -> int:
    """The number of clips on each side that all rows can have."""
    return min([references // 2, *(len(row) for row in rows)])


def half_distances(
    distance: Distance, reference: Tensor, row: Embedded, size: int, seed: int
) -> Value:
    """A distance between a row and the references it was not made for; see the module.

    Args:
        distance: of reference `[size, D]` and row `[size, D]`.
        reference: `[N, D]`.
        size: clips on each side, at most half of the references.
        seed: of the halvings, the same for all rows.
    """
    if size < FEWEST:
        return absent(f"needs {FEWEST} clips on each side, there are {size}")
    rng = np.random.default_rng([seed, 0xD1])
    found = []
    for _ in range(HALVINGS):
        order = rng.permutation(len(reference))
        place = np.empty(len(reference))
        place[order] = np.arange(len(reference))
        ties = rng.random(len(row))
        # Last in the order first: those are in the other half. What answers to no reference is
        # as good as the other half; what answers to this one only fills up.
        position = [
            len(reference) / 2 if answer is None else place[answer] for answer in row.answers
        ]
        chosen = np.lexsort((ties, -np.array(position)))[:size]
        found.append(distance(reference[order[:size]], row.vectors[chosen]))
    low, high = np.quantile(found, [0.025, 0.975])
    return Value(float(np.mean(found)), float(low), float(high), size)


def whole_distance(
    distance: Distance, reference: Tensor, row: Tensor, size: int, seed: int
) -> Value:
    """A distance between all references and a row, `size` of each drawn where there are more."""
    if size < FEWEST:
        return absent(f"needs {FEWEST} clips on each side, there are {size}")
    rng = np.random.default_rng([seed, 0xA1])
    x, y = (side[np.sort(rng.permutation(len(side))[:size])] for side in (reference, row))
    value = distance(x, y)
    other = torch.Generator().manual_seed(seed)

    def again(index: Tensor) -> float:
        return distance(x[index], y[torch.randint(size, (size,), generator=other)])

    low, high = statistics.bootstrap(again, 100, seed, size=size, estimate=value)
    return Value(value, max(low, 0.0), high, size)


@dataclass
class Assigned:
    """A measure of clips with any of several captions, and of each with its own.

    Args:
        matrix: `[M, U]`, the measure of clip i with caption (or reference) u.
        own: index `[M]` of each clip's own.
        groups: caption of each clip: what a shuffle must not leave in place.
        sign: 1 where more is better, -1 where less is.
    """

    matrix: Tensor
    own: Tensor
    groups: Sequence[str]
    sign: int

    @property
    def items(self) -> Tensor:
        """The measure of each clip, `[M]`."""
        return self.matrix.gather(1, self.own.unsqueeze(1)).squeeze(1)

    def value(self, seed: int) -> Value:
        """Mean over the clips, its bootstrap interval, and p against shuffled captions."""
        if len(self.own) == 0:
            return absent("no clip with a caption that can be compared")
        low, high = statistics.bootstrap(self.items, _RESAMPLES, seed)
        null = self.null(seed)
        mean = float(self.items.mean())
        p = None
        if null is not None:
            # As good up to rounding counts as as good.
            reached = int((self.sign * null >= self.sign * mean - 1e-12).sum())
            p = (1 + reached) / (1 + len(null))
        return Value(mean, low, high, len(self.own), p)

    def shuffled(self, seed: int) -> Value:
        """The mean over shuffles, and the interval of 95 % of them."""
        null = self.null(seed)
        if null is None:
            return absent("needs clips of at least 2 captions")
        low, high = np.quantile(null, [0.025, 0.975])
        return Value(float(null.mean()), float(low), float(high), len(self.own))

    def null(self, seed: int) -> np.ndarray | None:
        """The mean with the captions of `SHUFFLES` shuffles, each."""
        if len(set(self.groups)) < 2:
            return None
        orders = torch.from_numpy(shuffles(tuple(self.groups), SHUFFLES, seed))
        rows = torch.arange(len(self.own))
        return np.array([float(self.matrix[rows, self.own[order]].mean()) for order in orders])


def divergences(reference: Tensor, row: Tensor, own: Sequence[int], groups) -> Assigned:
    """KL divergence of the label posteriors of each clip from those of each reference.

    Args:
        reference, row: posteriors `[N, C]` and `[M, C]`.
        own: index of the reference of each clip.
        groups: its caption.
    """
    columns = [
        statistics.kl_divergence(reference[j : j + 1].expand_as(row), row)
        for j in range(len(reference))
    ]
    matrix = torch.stack(columns, dim=1) if len(row) else torch.zeros(0, len(reference))
    return Assigned(matrix, torch.tensor(own, dtype=torch.long), groups, -1)


def consistencies(
    sounds: Tensor,
    texts: Tensor,
    own: Sequence[int],
    groups: Sequence[str],
    rivals: Tensor,
    rival_captions: Sequence[int],
    selves: Sequence[int] | None = None,
    at: Sequence[int] = (1, 5, 10),
) -> dict[str, Assigned]:
    """Cosine between sound and caption, and whether each is found by the other.

    A sound is found when it is among the k nearest to the caption of all: itself and the rivals of
    other captions. Rivals that are as near come first. All rows have the same rivals, real clips,
    so that a system whose sounds are all alike, or all bad, gains nothing by it. A caption is found
    when it is among the k nearest to the sound of all captions; those that are as near come first.

    Args:
        sounds: `[M, D]`.
        texts: `[U, D]` of all different captions.
        own: index `[M]` of each sound's caption.
        groups: what a shuffle keeps apart.
        rivals: `[N, D]` of the sounds to find it among.
        rival_captions: index `[N]` of their captions; -1 is none of the texts.
        selves: index `[M]` of each sound among the rivals, where it is one of them.
    Returns:
        `score`, and `R@k` and `caption_R@k` for each k.
    """
    similarity = statistics.cosine_similarities(sounds, texts)
    near = statistics.cosine_similarities(rivals, texts)
    rival_captions = torch.tensor(rival_captions)
    rank, text_rank = torch.empty_like(similarity), torch.empty_like(similarity)
    for u in range(len(texts)):
        before = near[:, u] >= similarity[:, u : u + 1]  # [M, N]
        before &= rival_captions != u
        if selves is not None:
            before[torch.arange(len(sounds)), torch.tensor(selves)] = False
        rank[:, u] = before.sum(dim=1)
        text_rank[:, u] = (similarity >= similarity[:, u : u + 1]).sum(dim=1) - 1  # itself
    index = torch.tensor(own, dtype=torch.long)
    found = {"score": Assigned(similarity, index, groups, 1)}
    for name, ranks in (("R", rank), ("caption_R", text_rank)):
        found |= {f"{name}@{k}": Assigned((ranks < k).double(), index, groups, 1) for k in at}
    return found
