"""The Fréchet distance's bias: its value at several numbers of images, and what it tends to with ever more of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vaegan.metrics.frechet import frechet_distance
from vaegan.metrics.moments import Moments

MAX_PARTS = 4


@dataclass(frozen=True)
class FrechetCurve:
    """Distances at N, N/2, N/3, … images of either set, and the straight line in 1/N through them."""

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
    """Into how many parts (at most 4) a set can be cut so that a part's covariance still has full rank; 0 if none."""
    return min(MAX_PARTS, num_images // (dim + 1))


def frechet_curve(
    real: np.ndarray, synthetic: np.ndarray, *, seed: int = 0, draws: int = 4, max_rows: int = 20_000
) -> FrechetCurve:
    """Fréchet distances of ever smaller parts, extrapolated to infinitely many images of both.

    A Fréchet distance is biased upwards by about c/N, with c of its own for every generator, so that two generators
    can change places when N does (Chong & Forsyth 2020, whose FID-infinity this is). They vary the synthetic count
    against one real set of 50,000. Here the real set is the small one and its bias as large, so both counts vary: the
    line's end estimates the distance of the two populations.

    Sets are cut into k disjoint parts, k = 1 to 4, so that every image counts once at each N; least squares over
    means at 1/N = 1/n, 2/n, 3/n, 4/n.

    Args:
        real, synthetic: (N, D), (M, D); `num_parts(min(N, M), D)` at least 2.
        draws: random orders, averaged.
        max_rows: of either set, more are not used: the line needs no more.

    Raises:
        ValueError: too few rows for two parts.
    """
    count = min(len(real), len(synthetic), max_rows)
    parts = num_parts(count, real.shape[1])
    if parts < 2:
        raise ValueError(f"{count} rows of {real.shape[1]} features can't be halved: {2 * (real.shape[1] + 1)} needed")
    rng = np.random.default_rng(seed)
    distances: list[list[float]] = [[] for _ in range(parts)]
    for _ in range(draws):
        x, y = (rows[rng.permutation(len(rows))[:count]] for rows in (real, synthetic))
        for k in range(1, parts + 1):
            distances[k - 1] += [_distance(a, b) for a, b in zip(_cut(x, k), _cut(y, k), strict=True)]
        if count == len(real) == len(synthetic):
            distances[0] = distances[0][:1]  # the whole sets: every draw is the same
    means = np.array([np.mean(values) for values in distances])
    slope, infinity = np.polyfit(np.arange(1, parts + 1) / count, means, 1)
    return FrechetCurve(
        counts=tuple(count // k for k in range(1, parts + 1)),
        distances=tuple(map(float, means)),
        spreads=tuple(float(np.std(values)) for values in distances),
        infinity=float(infinity),
        slope=float(slope),
    )


def _cut(rows: np.ndarray, parts: int) -> list[np.ndarray]:
    size = len(rows) // parts
    return [rows[k * size : (k + 1) * size] for k in range(parts)]


def _distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    x, y = Moments.of(real), Moments.of(synthetic)
    return frechet_distance(x.mean, x.covariance, y.mean, y.covariance)
