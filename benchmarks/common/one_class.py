"""What a model of normal films is compared with: scores of unlikeness that are fitted on the same normal films."""

from dataclasses import dataclass

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

VARIANCE_SHARES = (0.5, 0.8, 0.9, 0.95, 0.99)
"""Of the training films' variance, by which numbers of components are chosen; no labelled film has a say."""
CHOSEN_SHARE = 0.95
"""Of the baseline that a model is judged against, fixed before anything was measured."""
NEIGHBOURS = 5


def flat(pixels: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, C) as rows (N, H W C), float32 in [-1, 1], as networks see them."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 127.5 - 1


@dataclass(frozen=True)
class Baselines:
    """Fitted on normal films alone. Scores are higher for films that are less like them."""

    pca: PCA
    """With as many components as the films allow."""
    mean: np.ndarray
    coordinates: np.ndarray
    """Of the films themselves, (N, components)."""

    @staticmethod
    def fit(pixels: np.ndarray) -> "Baselines":
        """Of films uint8 (N, H, W, C)."""
        x = flat(pixels)
        pca = PCA(min(len(x) - 1, x.shape[1]), svd_solver="covariance_eigh" if len(x) > x.shape[1] else "full").fit(x)
        return Baselines(pca, x.mean(axis=0), pca.transform(x))

    def components_for(self, share: float) -> int:
        """How many components hold this share of the films' variance."""
        return int(np.searchsorted(np.cumsum(self.pca.explained_variance_ratio_), share) + 1)

    def scores(self, pixels: np.ndarray, latent_dim: int) -> dict[str, np.ndarray]:
        """Name to scores (N,), float64.

        Args:
            latent_dim: a number of components besides those of `VARIANCE_SHARES`: the model's own.
        """
        x = flat(pixels)
        coordinates = self.pca.transform(x)
        found = {"mean film, pixel error": np.square(x - self.mean).sum(axis=1)}
        total = found["mean film, pixel error"]
        counts = {latent_dim: "as many as z"} | {self.components_for(s): f"{s:.0%}" for s in VARIANCE_SHARES}
        for count, why in sorted(counts.items()):
            inside = np.square(coordinates[:, :count]).sum(axis=1)
            found[f"PCA, pixel error, {count} components ({why})"] = total - inside
        chosen = self.components_for(CHOSEN_SHARE)
        found |= self._in_space(coordinates, chosen)
        return {name: values.astype(np.float64) for name, values in found.items()}

    @property
    def judged(self) -> str:
        """Name of the score that a model is judged against."""
        return f"PCA, pixel error, {self.components_for(CHOSEN_SHARE)} components ({CHOSEN_SHARE:.0%})"

    def _in_space(self, coordinates: np.ndarray, count: int) -> dict[str, np.ndarray]:
        """Distances among the first `count` coordinates."""
        spread = np.square(coordinates[:, :count]) / self.pca.explained_variance_[:count]
        return {
            f"PCA, Mahalanobis distance, {count} components": spread.sum(axis=1),
            f"PCA, {NEIGHBOURS} nearest neighbours, {count} components": neighbour_distance(
                self.coordinates[:, :count], coordinates[:, :count]
            ),
        }


def neighbour_distance(fitted: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Distance of each query (M, D) to the NEIGHBOURS-th nearest of `fitted` (N, D): (M,)."""
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(fitted)), algorithm="brute").fit(fitted)
    return nearest.kneighbors(queries)[0][:, -1].astype(np.float64)


def mahalanobis(fitted: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance of queries (M, D) to rows (N, D), their covariance shrunk (Ledoit & Wolf 2004)."""
    return LedoitWolf().fit(fitted).mahalanobis(queries)
