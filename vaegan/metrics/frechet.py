"""Fréchet distance between Gaussians fitted to two sets of features. With the FID Inception network it is the FID."""

from __future__ import annotations

from typing import Literal

import numpy as np

from vaegan.metrics.moments import Moments, ledoit_wolf_intensity

Covariance = Literal["sample", "ledoit-wolf"]


def frechet_distance(mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of N(mean_1, cov_1) and N(mean_2, cov_2), in squared feature units.

    |mean_1 - mean_2|^2 + tr(cov_1) + tr(cov_2) - 2 tr((cov_1 cov_2)^(1/2))
    (Dowson & Landau 1982; Heusel et al. 2017, Eq. 6). Float64, never complex, never negative: see `trace_sqrt_product`.

    It is biased upwards by the finite number of rows behind the moments, roughly in proportion to 1/N: compare only
    numbers of equal N.

    Args:
        mean_1, mean_2: (D,). cov_1, cov_2: (D, D), symmetric and positive semi-definite; singular is allowed.
    """
    shift = np.asarray(mean_1, np.float64) - np.asarray(mean_2, np.float64)
    cov_1, cov_2 = np.asarray(cov_1, np.float64), np.asarray(cov_2, np.float64)
    distance = shift @ shift + np.trace(cov_1) + np.trace(cov_2) - 2 * trace_sqrt_product(cov_1, cov_2)
    return max(float(distance), 0.0)  # rounding leaves something like -1e-12 where the two are equal


def trace_sqrt_product(cov_1: np.ndarray, cov_2: np.ndarray) -> float:
    """tr((cov_1 cov_2)^(1/2)), from eigenvalues of a symmetric matrix.

    cov_1 cov_2 isn't symmetric, and a general square root of it turns complex as soon as one covariance is singular.
    With cov_1 = L L^T, its eigenvalues are those of L^T cov_2 L, which is symmetric and positive semi-definite: real
    numbers, of which rounding alone makes some slightly negative. Those are zero.
    """
    factor = _factor(cov_1)
    eigenvalues = np.linalg.eigvalsh(factor.T @ cov_2 @ factor)
    return float(np.sqrt(np.clip(eigenvalues, 0.0, None)).sum())


def frechet_distance_of_features(
    real: np.ndarray, synthetic: np.ndarray, *, covariance: Covariance = "sample"
) -> float:
    """Fréchet distance of features (N, D) and (M, D); `frechet_distance` says what the number is.

    Args:
        covariance: "sample" divides by N - 1; "ledoit-wolf" shrinks each of the two by an intensity of its own.
            See `needs_shrinkage` for when.
    """
    parameters = [_gaussian(features, covariance) for features in (real, synthetic)]
    return frechet_distance(*parameters[0], *parameters[1])


def needs_shrinkage(num_rows: int, dim: int) -> bool:
    """Whether a sample covariance of that many rows can't have full rank: N rows span at most N - 1 directions."""
    return num_rows < dim + 1


def _gaussian(features: np.ndarray, covariance: Covariance) -> tuple[np.ndarray, np.ndarray]:
    moments = Moments.of(features)
    if covariance == "sample":
        return moments.mean, moments.covariance
    return moments.mean, moments.shrunk_covariance(ledoit_wolf_intensity(features))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """L with L L^T = covariance: Cholesky, a tenth of the work of eigenvectors, which a singular one may yet need."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        eigenvalues, eigenvectors = np.linalg.eigh(covariance)
        return eigenvectors * np.sqrt(np.clip(eigenvalues, 0.0, None))
