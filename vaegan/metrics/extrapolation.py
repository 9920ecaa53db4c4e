"""The Fréchet distance's bias: its value at several numbers of images, and what it tends to with ever more of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from vaegan.metrics.frechet import frechet_distance
from vaegan.metrics.moments import Moments

PARTS = (1, 2, 4)
"""Each a divisor of the next, so that a part's moments are those of its halves merged."""


@dataclass(frozen=True)
class FrechetCurve:
    """Distances at N, N/2 and N/4 images of either set, and the straight line in 1/N through them."""

    counts: tuple[int, ...]
    """Images of either set, the most first."""
    distances: tuple[float, ...]
    """At each count, mean over disjoint parts (and draws)."""
    spreads: tuple[float, ...]
    """Standard deviation over these (ddof 0)."""
    infinity: float
    """The line's value at 1/N = 0. Not cut at 0: an unbiased estimate of a distance of 0 is negative half the time."""
    slope: float
    """Distance x images: the bias at N images is about slope / N."""


def num_parts(num_images: int, dim: int) -> int:
    """Into how many parts (4, 2, 1) a set can be cut so that a part's covariance still has full rank; 0 if none."""
    return max((parts for parts in PARTS if num_images // parts > dim), default=0)


def frechet_curve(
    real: np.ndarray, synthetic: np.ndarray, *, seed: int = 0, draws: int = 4, max_rows: int = 20_000
) -> FrechetCurve:
    """Fréchet distances of ever smaller parts, extrapolated to infinitely many images of both.

    A Fréchet distance is biased upwards by about c/N, with c of its own for every generator, so that two generators
    can change places when N does (Chong & Forsyth 2020, whose FID-infinity this is). They vary the synthetic count
    against one real set of 50,000. Here the real set is the small one and its bias as large, so both counts vary: the
    line's end estimates the distance of the two populations.

    Sets are cut into k disjoint parts, k = 1, 2, 4, so that every image counts once at each N; least squares over the
    means at 1/N = 1/n, 2/n, 4/n.

    Args:
        real, synthetic: (N, D), (M, D); `num_parts(min(N, M), D)` at least 2.
        draws: random orders, averaged.
        max_rows: of either set; more are not used, since the line needs no more.

    Raises:
        ValueError: too few rows for two parts.
    """
    count = min(len(real), len(synthetic), max_rows)
    most = num_parts(count, real.shape[1])
    if most < 2:
        raise ValueError(f"{count} rows of {real.shape[1]} features can't be halved: {2 * (real.shape[1] + 1)} needed")
    rng = np.random.default_rng(seed)
    parts = [k for k in PARTS if k <= most]
    distances: dict[int, list[float]] = {k: [] for k in parts}
    for _ in range(draws):
        x, y = (_moments_of_parts(rows[rng.permutation(len(rows))[:count]], most) for rows in (real, synthetic))
        for k in parts:
            if k > 1 or not distances[1] or count < max(len(real), len(synthetic)):  # the whole sets stay the same
                distances[k] += [_distance(a, b) for a, b in zip(_merged(x, k), _merged(y, k), strict=True)]
    means = np.array([np.mean(values) for values in distances.values()])
    slope, infinity = np.polyfit(np.array(parts) / count, means, 1)
    return FrechetCurve(
        counts=tuple(count // k for k in parts),
        distances=tuple(map(float, means)),
        spreads=tuple(float(np.std(values)) for values in distances.values()),
        infinity=float(infinity),
        slope=float(slope),
    )


def _moments_of_parts(rows: np.ndarray, parts: int) -> list[Moments]:
    return [Moments.of(part) for part in np.array_split(rows, parts)]


def _merged(moments: list[Moments], parts: int) -> list[Moments]:
    """Neighbouring moments merged until `parts` are left."""
    size = len(moments) // parts
    return [reduce(Moments.merge, moments[k * size : (k + 1) * size]) for k in range(parts)]


def _distance(x: Moments, y: Moments) -> float:
    return frechet_distance(x.mean, x.covariance, y.mean, y.covariance)
