"""What latent sources are fitted to: the posteriors of training images."""

from dataclasses import dataclass

import numpy as np

from vaegan.latents.counter import prior

FIT_SEED = 0
"""Of every draw that a fit makes, so that a model exported twice is the same model."""


@dataclass(frozen=True)
class Posterior:
    """q(z|x) of N images: means and log variances (N, D), labels multi-hot (N, K), and each image's number (N,)."""

    mu: np.ndarray
    log_var: np.ndarray
    labels: np.ndarray
    number: np.ndarray
    """Row of the image in its split: the index of its draw."""

    @staticmethod
    def of(mu: np.ndarray, log_var: np.ndarray, labels: np.ndarray, number: np.ndarray | None = None) -> "Posterior":
        """The posteriors of a split's images, all of them and in order where no `number` says which they are."""
        return Posterior(mu, log_var, labels, np.arange(len(mu)) if number is None else number)

    def __len__(self) -> int:
        return len(self.mu)

    @property
    def variances(self) -> np.ndarray:
        """(N, D), float64."""
        return np.exp(self.log_var.astype(np.float64))

    def take(self, rows: np.ndarray) -> "Posterior":
        """Only these images."""
        return Posterior(self.mu[rows], self.log_var[rows], self.labels[rows], self.number[rows])

    def sample(self) -> np.ndarray:
        """One z (N, D), float32, of each image; an image's own draw does not depend on the others."""
        return self.mu + np.exp(0.5 * self.log_var) * prior(FIT_SEED, self.number, self.mu.shape[1])
