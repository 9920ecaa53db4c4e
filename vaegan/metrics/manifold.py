"""Precision, recall, density and coverage: how two clouds of features overlap, judged by nearest-neighbour balls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_BLOCK_ENTRIES = 4_000_000  # of a distance matrix held at a time: 32 MB
_SAME_POINT = 1e-12
"""Squared distances below this share of the squared norms are rounding, not distance: duplicates are at 0 exactly."""


@dataclass(frozen=True)
class Manifold:
    """Four shares of overlap. Precision, recall and coverage lie in [0, 1]; density may exceed 1."""

    precision: float
    """Share of synthetic images inside any real image's ball: does each look real?"""
    recall: float
    """Share of real images inside any synthetic image's ball: does the variety of the real ones occur?"""
    density: float
    """How many real balls hold a synthetic image, divided by k, on average: precision that outliers can't inflate."""
    coverage: float
    """Share of real images whose ball holds a synthetic one: recall measured with the real balls alone."""


def manifold_metrics(
    real: np.ndarray, synthetic: np.ndarray, *, ball_neighbour: int = 3, density_neighbour: int = 5
) -> Manifold:
    """Improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A ball around a feature reaches to its k-th nearest neighbour in its own set, itself not counted. Euclidean
    distances, float64, in blocks: memory grows with N + M, not N x M.

    Precision and recall count a point on the surface as inside (<=, as torch-fidelity); density and coverage don't (<,
    as prdc). All four depend on both counts: a smaller set has larger balls.

    Args:
        real, synthetic: (N, D) and (M, D), more rows than the larger k on each side.
        ball_neighbour: k of precision and recall (torch-fidelity's 3).
        density_neighbour: k of density and coverage (5, as Naeem et al. choose).
    """
    needed = max(ball_neighbour, density_neighbour) + 1
    if min(len(real), len(synthetic)) < needed:
        raise ValueError(f"{len(real)} real and {len(synthetic)} synthetic rows: {needed} of each are needed")
    centre = real.mean(axis=0, dtype=np.float64)  # distances stay, rounding shrinks with the norms
    x, y = real.astype(np.float64) - centre, synthetic.astype(np.float64) - centre
    balls_x, density_balls_x = neighbour_distances(x, (ball_neighbour, density_neighbour)).T
    (balls_y,) = neighbour_distances(y, (ball_neighbour,)).T

    synthetic_inside = np.zeros(len(y), bool)
    real_inside = np.zeros(len(x), bool)
    covered = np.zeros(len(x), bool)
    memberships = 0
    for rows, distances in squared_distances(x, y):
        synthetic_inside |= (distances <= balls_x[rows, None]).any(axis=0)
        real_inside[rows] = (distances <= balls_y).any(axis=1)
        inside = distances < density_balls_x[rows, None]
        memberships += int(inside.sum())
        covered[rows] = inside.any(axis=1)
    return Manifold(
        precision=float(synthetic_inside.mean()),
        recall=float(real_inside.mean()),
        density=memberships / (density_neighbour * len(y)),
        coverage=float(covered.mean()),
    )


def neighbour_distances(features: np.ndarray, neighbours: tuple[int, ...]) -> np.ndarray:
    """Squared distances to the k-th nearest other row, for each k: (N, D) -> (N, len(neighbours))."""
    result = np.empty((len(features), len(neighbours)))
    ranks = list(neighbours)  # rank 0 is the row itself, at distance 0
    for rows, distances in squared_distances(features, features):
        result[rows] = np.partition(distances, ranks, axis=1)[:, ranks]
    return result


def squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared Euclidean distances of all pairs, block by block: yields rows of x and their (rows, len(y)) distances."""
    norms_x, norms_y = (x * x).sum(axis=1), (y * y).sum(axis=1)
    step = max(1, _BLOCK_ENTRIES // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        norms = norms_x[rows, None] + norms_y
        distances = norms - 2 * (x[rows] @ y.T)
        distances[distances < _SAME_POINT * norms] = 0.0
        yield rows, distances
