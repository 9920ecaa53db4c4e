"""Seed and index to z: latents from a counter, so that image 5,000,000 of a seed costs no more than image 0."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from sklearn.mixture import GaussianMixture

from cluster.errors import UserError

MAX_SEED = 2**63 - 1  # what a Parquet int64 column and a JSON number in most languages can hold
_WORDS = 4  # 64-bit words in one counter step of Philox 4x64


def uniforms(seed: np.ndarray | int, index: np.ndarray, count: int) -> np.ndarray:
    """`count` uniforms in (0, 1) for each (seed, index): (N, count), float64.

    Philox 4x64-10 (Salmon et al. 2011) keyed by the seed, its counter at index x ceil(count / 4): a pure function of
    the address, whatever else is drawn with it. Runs of consecutive indices cost one call.

    Raises:
        UserError: a seed or index outside 0 to 2^63 - 1.
    """
    index = np.asarray(index, dtype=np.int64)
    seeds = np.broadcast_to(np.asarray(seed, dtype=np.int64), index.shape)
    if len(index) and (index.min() < 0 or seeds.min() < 0):
        raise UserError(f"seed {seeds.min()}, index {index.min()}: expected both from 0 to {MAX_SEED}")
    steps = -(-count // _WORDS)
    found = np.empty((len(index), count))
    breaks = np.flatnonzero((np.diff(index) != 1) | (np.diff(seeds) != 0)) + 1
    for rows in np.split(np.arange(len(index)), breaks):
        if not len(rows):
            continue
        bits = np.random.Philox(key=int(seeds[rows[0]]))
        bits.advance(int(index[rows[0]]) * steps)
        words = bits.random_raw(len(rows) * steps * _WORDS).reshape(len(rows), -1)[:, :count]
        found[rows] = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # never 0 or 1: ndtri is finite
    return found


def prior(seed: np.ndarray | int, index: np.ndarray, dim: int) -> np.ndarray:
    """Standard normal latents (N, dim), float32, by inversion: one uniform makes one normal."""
    return ndtri(uniforms(seed, index, dim)).astype(np.float32)


def interpolate(a: np.ndarray, b: np.ndarray, at: np.ndarray, *, spherical: bool) -> np.ndarray:
    """Latents (N, D), float32, on the way from a to b, row by row; exactly a where `at` is 0 and b where it is 1.

    Spherical (Shoemake 1985) keeps the norm between that of a and b: high-dimensional normal latents lie near a sphere,
    and the straight way would cut through its inside, where the decoder was never asked (White 2016). It is an arc
    around 0, so it means nothing for latents that are centred elsewhere. Where two rows point the same way, opposite
    ways or nowhere, they have no arc, or no particular one, and the way is straight.

    Args:
        a, b: latents, (N, D) each.
        at: fractions (N,), from 0 to 1.
    """
    start, end, fraction = (np.asarray(values, dtype=np.float64) for values in (a, b, at))
    weights = np.stack([1 - fraction, fraction])  # (2, N)
    if spherical:
        norms = np.sqrt((start**2).sum(axis=1) * (end**2).sum(axis=1))
        cosine = np.divide((start * end).sum(axis=1), norms, out=np.ones_like(norms), where=norms > 0)
        angle = np.arccos(np.clip(cosine, -1, 1))
        sine = np.sin(angle)
        weights = np.divide(np.sin(weights * angle), sine, out=weights, where=sine > 1e-6)
    found = (weights[0, :, None] * start + weights[1, :, None] * end).astype(np.float32)
    return np.where((fraction == 0)[:, None], a, np.where((fraction == 1)[:, None], b, found)).astype(np.float32)


@dataclass(frozen=True)
class Mixture:
    """A diagonal Gaussian mixture over latents: the aggregate posterior, which the prior only approximates.

    weights (M,), means (M, D), stds (M, D).
    """

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray

    @staticmethod
    def fit(z: np.ndarray, seed: int) -> "Mixture":
        """Fit to posterior samples (N, D): a component for every 50, at most 10, so that none stands for few people."""
        components = min(10, max(1, len(z) // 50))
        model = GaussianMixture(components, covariance_type="diag", reg_covar=1e-3, random_state=seed, max_iter=200)
        model.fit(z.astype(np.float64))
        parts = (model.weights_, model.means_, np.sqrt(model.covariances_))
        return Mixture(*(part.astype(np.float32) for part in parts))

    def sample(self, seed: np.ndarray | int, index: np.ndarray, truncation: float) -> np.ndarray:
        """Latents (N, D), float32, for addresses; `truncation` scales the spread around each component's mean."""
        dim = self.means.shape[1]
        draws = uniforms(seed, index, dim + 1)
        cumulative = np.cumsum(self.weights / self.weights.sum())
        component = np.minimum(np.searchsorted(cumulative, draws[:, 0]), len(cumulative) - 1)
        z = ndtri(draws[:, 1:]).astype(np.float32)
        return self.means[component] + np.float32(truncation) * self.stds[component] * z
