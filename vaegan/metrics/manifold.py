"""Precision, recall, density and coverage: how two clouds of features overlap, judged by nearest-neighbour balls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vaegan.metrics.neighbours import neighbour_distances, squared_distances

BALL, DENSITY_BALL = 3, 5
"""k of precision and recall, as torch-fidelity has it, and of density and coverage, as Naeem et al. choose."""


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
    real: np.ndarray, synthetic: np.ndarray, *, ball_neighbour: int = BALL, density_neighbour: int = DENSITY_BALL
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
