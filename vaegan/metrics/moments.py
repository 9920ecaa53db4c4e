"""Count, mean and scatter of feature rows, in float64, mergeable across shards and workers; shrunk covariances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.covariance import ledoit_wolf_shrinkage

_ROWS_AT_A_TIME = 4096  # a float64 copy of that many rows, not of all


@dataclass(frozen=True)
class Moments:
    """What a Gaussian fit needs to know of N feature rows. Numbers of rows add up, so parts merge to the whole."""

    count: int
    mean: np.ndarray
    """(D,) float64."""
    scatter: np.ndarray
    """(D, D) float64: the sum (not the mean) of outer products of the rows minus their mean."""

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Moments of features (N, D), N >= 1, of any float type."""
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"features are an array (N, D) with N >= 1, not one of shape {features.shape}")
        starts = range(0, len(features), _ROWS_AT_A_TIME)
        parts = [cls._of_block(features[i : i + _ROWS_AT_A_TIME].astype(np.float64)) for i in starts]
        total = parts[0]
        for part in parts[1:]:
            total = total.merge(part)
        return total

    @classmethod
    def _of_block(cls, block: np.ndarray) -> Moments:
        mean = block.mean(axis=0)
        centred = block - mean
        return cls(len(block), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together (Chan, Golub & LeVeque 1983): no cancellation, in any order."""
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = np.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased sample covariance (D, D): divided by N - 1, as every published FID does (`np.cov`)."""
        if self.count < 2:
            raise ValueError("one row has no covariance; at least 2 are needed")
        return self.scatter / (self.count - 1)

    def shrunk_covariance(self, intensity: float) -> np.ndarray:
        """(1 - intensity) S + intensity tr(S)/D I for the sample covariance S: positive definite if 0 < intensity <= 1.

        The total variance stays; eigenvalues are pulled towards their mean, so the rank is full with any N.
        """
        covariance = self.covariance
        dim = len(covariance)
        return (1 - intensity) * covariance + intensity * np.trace(covariance) / dim * np.eye(dim)


def ledoit_wolf_intensity(features: np.ndarray) -> float:
    """The shrinkage in [0, 1] that minimises the expected squared error of the shrunk covariance (Ledoit & Wolf 2004).

    Args:
        features: (N, D), N >= 2.
    """
    return float(ledoit_wolf_shrinkage(features.astype(np.float64)))
