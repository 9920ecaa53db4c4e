"""How far a metric would move with other images: intervals from subsets without repetition.

Why not the usual bootstrap. Drawing N rows with replacement repeats 37 % of them. A row's copy is a neighbour at
distance 0, so precision, recall and coverage break; k(x, x) enters the off-diagonal of the kernel distance; the Fréchet
distance, biased upwards by about c/N, gets that bias a second time, and its percentile interval need not even hold the
number itself.

Instead a share f of the *units* (patients for real images) of both sets is drawn without replacement, again and again.
By the finite-population correction the mean of such a subset varies around the whole's as (1 - f)/f times the whole's
around the population's. At f = 1/2 the factor is 1, for linear statistics and for quadratic ones alike (half-samples:
McCarthy 1969; the delete-d jackknife: Shao & Wu 1989). So the standard deviation over subsets, times sqrt(f / (1 - f)),
is the number's standard error. The subsets' higher bias shifts their mean, not their spread; the interval is centred on
the number.

It thus says how far the number *at this N* would move. What a finite N does to its level is told by the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959964
Statistic = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
"""Row numbers of the real and of the synthetic set to the metrics of these rows."""


@dataclass(frozen=True)
class Subsampling:
    """Cheap settings: the interval's width is itself known to about 11 % (1/sqrt(2 (replicates - 1)))."""

    replicates: int = 40
    max_rows: int = 1500
    """Of a subset, on either side. Above twice that many images f falls below 1/2: degenerate statistics (kernel
    distance of equal distributions) then get intervals that are too wide, never too narrow."""
    min_rows: int = 12
    """Of a subset, on the smaller side: enough for the neighbours that precision and density ask for."""
    most: float = 0.5
    """f where neither of these decides. Smooth statistics that need many rows may take more."""

    def share(self, num_real: int, num_synthetic: int) -> float:
        """f, one for both sets, since one factor has to turn the subsets' spread into the whole's."""
        wanted = max(self.max_rows / max(num_real, num_synthetic), self.min_rows / min(num_real, num_synthetic))
        return min(self.most, wanted)

    def describe(self, num_real: int, num_synthetic: int) -> str:
        share = self.share(num_real, num_synthetic)
        return (
            f"value +- 1.96 standard errors from {self.replicates} subsets without repetition of {share:.3g} of the "
            "patients (real) and images (synthetic)"
        )


DEFAULT = Subsampling()


def standard_errors(
    statistic: Statistic,
    groups_real: np.ndarray,
    groups_synthetic: np.ndarray,
    *,
    seed: int,
    settings: Subsampling = DEFAULT,
) -> dict[str, float]:
    """Standard error of every metric that `statistic` returns, by subsampling.

    Args:
        groups_real, groups_synthetic: (N,), (M,): the unit each row belongs to, such as its patient. Rows of a unit
            stay together, so that five films of one child don't count as five children.
    """
    rng = np.random.default_rng(seed)
    share = settings.share(len(groups_real), len(groups_synthetic))
    replicates = [
        statistic(draw_units(rng, groups_real, share), draw_units(rng, groups_synthetic, share))
        for _ in range(settings.replicates)
    ]
    scale = np.sqrt(share / (1 - share))
    return {name: scale * float(np.std([r[name] for r in replicates], ddof=1)) for name in replicates[0]}


def interval(value: float, standard_error: float, lowest: float = -np.inf, highest: float = np.inf) -> list[float]:
    """[low, high], 95 %, cut at what the metric can reach."""
    half_width = Z_95 * standard_error
    return [float(max(lowest, value - half_width)), float(min(highest, value + half_width))]


def draw_units(rng: np.random.Generator, groups: np.ndarray, share: float) -> np.ndarray:
    """Rows, in order, of a random share of the units (at least one), drawn without replacement."""
    units, unit_of_row = np.unique(groups, return_inverse=True)
    chosen = np.zeros(len(units), bool)
    chosen[rng.choice(len(units), max(1, round(share * len(units))), replace=False)] = True
    return np.flatnonzero(chosen[unit_of_row])


def draw_rows(count: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Row numbers of `count` rows, in order: all, or `most` of them drawn without replacement."""
    return np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))


def disjoint_halves(rng: np.random.Generator, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of rows of about equal size that share no unit; together, all rows."""
    units, unit_of_row = np.unique(groups, return_inverse=True)
    sizes = np.bincount(unit_of_row)
    in_first = np.zeros(len(units), bool)
    counts = [0, 0]
    for unit in rng.permutation(len(units)):  # each next unit goes where fewer rows are
        first = counts[0] <= counts[1]
        in_first[unit] = first
        counts[0 if first else 1] += sizes[unit]
    return np.flatnonzero(in_first[unit_of_row]), np.flatnonzero(~in_first[unit_of_row])
