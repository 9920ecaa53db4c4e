"""An order of rows in memory in which every class comes equally often: arithmetic, nothing is kept between steps.

The rows are put into groups, one for each class. The order is endless: each place belongs to the next group in turn,
and a group gives its rows in a permutation from (seed, group, round), then in another one. At every place, therefore,
groups have been seen equally often within one, and so has each row of a group: a class of 20 images among 1,000 comes
as often as the others, each of its images many times, and none by luck more often than another. Batches are equal runs
of this order, and a batch's rows are permuted by (seed, step).
"""

import numpy as np

OF_GROUP, OF_BATCH = 1, 2  # last words of generators' keys, so that no two permutations share one


def rarest_label(labels: np.ndarray) -> np.ndarray:
    """The group of each row: the rarest of its classes, or -1, a group too, where it has none.

    Args:
        labels: multi-hot (N, K), K at least 1.

    Returns:
        Class indices, int64 (N,).
    """
    counts = labels.sum(axis=0, dtype=np.int64)
    found = np.where(labels > 0, counts, np.iinfo(np.int64).max).argmin(axis=1)
    return np.where(labels.any(axis=1), found, -1)


class BalancedOrder:
    """Which rows each batch has.

    Args:
        labels: multi-hot (N, K). With several labels to a row it is the groups of `rarest_label` that come equally
            often, not the labels themselves: one that goes along with rarer ones comes more often.
    """

    def __init__(self, labels: np.ndarray, *, seed: int, batch_size: int) -> None:
        group = rarest_label(labels)
        self.groups = [np.flatnonzero(group == each) for each in np.unique(group)]
        self.seed, self.batch_size = seed, batch_size
        self._permuted: dict[int, tuple[int, np.ndarray]] = {}  # by group: the last round asked for, and its rows

    def batch(self, step: int) -> np.ndarray:
        """Rows of the whole batch of a step, all workers together, (batch_size,)."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        turns, groups = np.divmod(places, len(self.groups))
        rows = np.empty(self.batch_size, dtype=np.int64)
        for number, group in enumerate(self.groups):
            mine = np.flatnonzero(groups == number)
            rounds, within = np.divmod(turns[mine], len(group))
            for round_ in np.unique(rounds):
                now = rounds == round_
                rows[mine[now]] = self._round(number, int(round_))[within[now]]
        return np.random.default_rng([self.seed, step, 0, OF_BATCH]).permutation(rows)

    def _round(self, number: int, round_: int) -> np.ndarray:
        """A group's rows in the order of its n-th pass over them."""
        last = self._permuted.get(number)
        if last is None or last[0] != round_:
            rng = np.random.default_rng([self.seed, number, round_, OF_GROUP])
            last = self._permuted[number] = (round_, rng.permutation(self.groups[number]))
        return last[1]
