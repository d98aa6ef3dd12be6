"""Which recording a sample comes from: drawn by weight and duration, or each in turn.

Every draw is a function of a key, never of what was drawn before, so that a run can resume in the
middle of an epoch, with any number of workers.
"""

import numpy as np

from audiogen_fast.errors import check

ITEM, ORDER, MIXING = 0, 1, 2
"""First part of a key: what is drawn."""


def generator(*key: int) -> np.random.Generator:
    """A generator that depends on the numbers, each at least 0, and on nothing else."""
    return np.random.default_rng(key)


class FileSampler:
    """Draws recordings.

    Args:
        durations: seconds, `[n]`.
        weights: `[n]`.
        by_duration, by_weight: probabilities in proportion to the one, the other or their
            product; all are equally likely without both.
        permutation: instead, each recording once before any comes again, in an order that is
            new each time.
        seed: of that order.
    Raises:
        InvalidInputError: no recording can be drawn.
    """

    def __init__(
        self,
        durations: np.ndarray,
        weights: np.ndarray,
        by_duration: bool,
        by_weight: bool,
        permutation: bool,
        seed: int,
    ):
        self.files, self.permutation, self.seed = len(durations), permutation, seed
        scores = np.ones(self.files)
        if by_weight:
            scores = scores * weights
        if by_duration:
            scores = scores * durations
        total = scores.sum()
        check(
            self.files > 0 and total > 0,
            f"the weights and durations of {self.files} recordings must not be all 0",
        )
        self.cumulative = np.cumsum(scores) if by_weight or by_duration else None
        self._orders: dict[int, np.ndarray] = {}

    def draw(self, rng: np.random.Generator, position: int) -> int:
        """The index of a recording.

        Args:
            rng: of this sample.
            position: number of this sample over all epochs, for a permutation.
        """
        if self.permutation:
            turn, place = divmod(position, self.files)
            return int(self._order(turn)[place])
        if self.cumulative is None:
            return int(rng.integers(self.files))
        # right: a recording of score 0 has an empty interval, which no number falls into
        place = np.searchsorted(self.cumulative, rng.random() * self.cumulative[-1], side="right")
        return int(min(place, self.files - 1))

    def _order(self, turn: int) -> np.ndarray:
        if turn not in self._orders:
            if len(self._orders) > 1:  # a batch may span two turns
                del self._orders[min(self._orders)]
            self._orders[turn] = generator(ORDER, self.seed, turn).permutation(self.files)
        return self._orders[turn]
