"""A diagonal Gaussian mixture over latents."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, ndtri
from sklearn.mixture import GaussianMixture

from vaegan.latents.counter import uniforms
from vaegan.latents.posterior import FIT_SEED

IMAGES_PER_COMPONENT = 50
MAX_COMPONENTS = 10


@dataclass(frozen=True)
class Mixture:
    """A diagonal Gaussian mixture over latents: the aggregate posterior, which the prior only approximates.

    weights (M,), means (M, D), stds (M, D).
    """

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray

    @staticmethod
    def fit(z: np.ndarray, seed: int = FIT_SEED) -> "Mixture":
        """Fit to posterior samples (N, D): a component for every 50, at most 10, so that none stands for few people."""
        components = min(MAX_COMPONENTS, max(1, len(z) // IMAGES_PER_COMPONENT))
        model = GaussianMixture(components, covariance_type="diag", reg_covar=1e-3, random_state=seed, max_iter=200)
        model.fit(z.astype(np.float64))
        parts = (model.weights_, model.means_, np.sqrt(model.covariances_))
        return Mixture(*(part.astype(np.float32) for part in parts))

    def sample(self, seed: np.ndarray | int, index: np.ndarray, truncation: float, stream: int = 0) -> np.ndarray:
        """Latents (N, D), float32, for addresses; `truncation` scales the spread around each component's mean."""
        dim = self.means.shape[1]
        draws = uniforms(seed, index, dim + 1, stream)
        component = chosen_component(self.weights, draws[:, 0])
        z = ndtri(draws[:, 1:]).astype(np.float32)
        return self.means[component] + np.float32(truncation) * self.stds[component] * z

    def joint_log_densities(self, z: np.ndarray) -> np.ndarray:
        """log p(component, z) (N, M), in nats, of latents (N, D)."""
        means, stds = self.means.astype(np.float64), self.stds.astype(np.float64)
        e = (z[:, None] - means) / stds
        return np.log(self.weights) - (0.5 * e**2 + np.log(stds) + 0.5 * np.log(2 * np.pi)).sum(axis=2)

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """log p(z) (N,), in nats, of latents (N, D)."""
        return logsumexp(self.joint_log_densities(z), axis=1)

    def tensors(self) -> dict[str, np.ndarray]:
        """What a model's file holds of it."""
        return {"weights": self.weights, "means": self.means, "stds": self.stds}

    @staticmethod
    def from_tensors(tensors: Mapping[str, np.ndarray]) -> "Mixture":
        """What `tensors` returned, as it was."""
        return Mixture(tensors["weights"], tensors["means"], tensors["stds"])


def chosen_component(weights: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Which component (N,) uniforms (N,) choose from weights (M,)."""
    cumulative = np.cumsum(weights / weights.sum())
    return np.minimum(np.searchsorted(cumulative, draw), len(cumulative) - 1)
