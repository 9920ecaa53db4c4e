"""Which images precision and coverage lack: synthetic ones unlike any real one, real ones that nothing is like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vaegan.metrics.manifold import BALL, DENSITY_BALL
from vaegan.metrics.neighbours import neighbour_distances, squared_distances


@dataclass(frozen=True, eq=False)
class Stretches:
    """How many times as wide the nearest ball would have to be to hold an image; a ball is a real image's.

    The unit is the real images' own distance to their neighbours, so that extractors compare.
    """

    synthetic: np.ndarray
    """(M,): balls to the 3rd neighbour. Above 1 the image is outside: it is what precision lacks."""
    real: np.ndarray
    """(N,): of the image's own ball, to its 5th neighbour, around the nearest synthetic one. From 1 on the image is not
    covered: it is what coverage lacks."""

    def outside(self) -> np.ndarray:
        """Rows of the synthetic images that are like no real one, the farthest first."""
        return _farthest_first(self.synthetic, self.synthetic > 1)

    def uncovered(self) -> np.ndarray:
        """Rows of the real images that no synthetic one is like, the farthest first."""
        return _farthest_first(self.real, self.real >= 1)


def stretches(real: np.ndarray, synthetic: np.ndarray) -> Stretches:
    """Of features (N, D) and (M, D); distances and surfaces as in `manifold_metrics`.

    More than `DENSITY_BALL` rows on the real side.
    """
    centre = real.mean(axis=0, dtype=np.float64)
    x, y = real.astype(np.float64) - centre, synthetic.astype(np.float64) - centre
    balls, own_balls = neighbour_distances(x, (BALL, DENSITY_BALL)).T
    of_synthetic = np.full(len(y), np.inf)
    of_real = np.empty(len(x))
    for rows, distances in squared_distances(x, y):
        of_synthetic = np.minimum(of_synthetic, _ratio(distances, balls[rows, None], at_surface=0.0).min(axis=0))
        of_real[rows] = _ratio(distances.min(axis=1), own_balls[rows], at_surface=np.inf)
    return Stretches(np.sqrt(of_synthetic), np.sqrt(of_real))


def _ratio(distances: np.ndarray, balls: np.ndarray, *, at_surface: float) -> np.ndarray:
    """Squared distance per squared radius; a ball of radius 0, around copies, holds its centre or nothing."""
    empty = np.where(distances == 0, at_surface, np.inf)
    return np.divide(distances, balls, out=empty, where=balls > 0)


def _farthest_first(ratios: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(-ratios[rows], kind="stable")]
