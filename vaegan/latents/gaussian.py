"""Gaussians with full covariances over latents, shrunk so that few images suffice."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp, ndtri
from sklearn.covariance import ledoit_wolf

from vaegan.latents.counter import uniforms
from vaegan.latents.mixture import Mixture, chosen_component
from vaegan.latents.posterior import Posterior

MIN_IMAGES = 10
"""Fewest images behind a mean: a class, or a component, with fewer has no Gaussian of its own."""
MIN_VARIANCE = 1e-3
"""Added to every direction's variance, as in the diagonal mixture: no Gaussian closes in on a point."""
ROWS = 256  # at a time in `product`: they stay in a core's cache


@dataclass(frozen=True)
class Gaussians:
    """One or more Gaussians with full covariances: a fit after training (Ghosh et al. 2020, arXiv:1903.12436, 4).

    weights (M,), means (M, D), factors (M, D, D): lower triangular, factor @ factor.T is the covariance.
    No mean stands for fewer than `MIN_IMAGES` images unless the whole set has fewer, and no direction's variance is
    below `MIN_VARIANCE`, nor in effect below what the encoder gives single images: theirs is part of the covariance.
    """

    weights: np.ndarray
    means: np.ndarray
    factors: np.ndarray

    @staticmethod
    def fit(images: Posterior, target: np.ndarray) -> "Gaussians":
        """One Gaussian with the moments of the images' aggregate posterior.

        The mean is that of their means. The covariance is, by the law of total variance, that of their means plus the
        mean of their variances; the first is shrunk (Ledoit & Wolf 2004) towards `target`: towards a multiple of the
        identity, in coordinates in which the target is the identity.

        Args:
            target: covariance (D, D) of means that is known better than these images': see `pooled`.
        """
        return Gaussians._joined([(1.0, *_moments(images, target))])

    @staticmethod
    def fit_mixture(images: Posterior, target: np.ndarray) -> "Gaussians":
        """A mixture whose components are those of the diagonal mixture, each with the full covariance of its images.

        EM for full covariances would need far more images than latent dimensions in each component. Here each image
        goes to its likeliest diagonal component, and each component's covariance is shrunk towards that of all of
        these images. Components with fewer than `MIN_IMAGES` images are dissolved.
        """
        z = images.sample()
        scores = Mixture.fit(z).joint_log_densities(z)
        kept = np.arange(scores.shape[1])
        while True:
            component = kept[scores[:, kept].argmax(axis=1)]
            sizes = np.array([(component == number).sum() for number in kept])
            if sizes.min() >= MIN_IMAGES or len(kept) == 1:
                break
            kept = np.delete(kept, sizes.argmin())
        within = _covariance_of_means(images, target)[1]
        groups = [images.take(np.flatnonzero(component == number)) for number in kept]
        return Gaussians._joined([(len(group) / len(images), *_moments(group, within)) for group in groups])

    @staticmethod
    def _joined(parts: list[tuple[float, np.ndarray, np.ndarray]]) -> "Gaussians":
        weights, means, covariances = (np.stack(values) for values in zip(*parts, strict=True))
        factors = np.linalg.cholesky(covariances)
        return Gaussians(*(values.astype(np.float32) for values in (weights, means, factors)))

    def sample(self, seed: np.ndarray | int, index: np.ndarray, truncation: float, stream: int = 0) -> np.ndarray:
        """Latents (N, D), float32, for addresses; `truncation` scales the spread around each component's mean."""
        draws = uniforms(seed, index, self.means.shape[1] + 1, stream)
        component = chosen_component(self.weights, draws[:, 0])
        return self.place(truncation * ndtri(draws[:, 1:]), component).astype(np.float32)

    def place(self, e: np.ndarray, component: np.ndarray | int = 0) -> np.ndarray:
        """mean + factor @ e for standardised latents e (N, D): (N, D), float64; row by row the same in any company."""
        component = np.broadcast_to(component, len(e))
        z = self.means[component].astype(np.float64)
        for number in np.unique(component):
            rows = np.flatnonzero(component == number)
            z[rows] += product(e[rows], self.factors[number])
        return z

    def standardised(self, z: np.ndarray, component: int = 0) -> np.ndarray:
        """What `place` makes z (N, D) of: (N, D), float64."""
        factor = self.factors[component].astype(np.float64)
        return solve_triangular(factor, (z - self.means[component]).T, lower=True).T

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """log p(z) (N,), in nats, of latents (N, D)."""
        terms = []
        for number, weight in enumerate(self.weights):
            e = self.standardised(z, number)
            log_volume = np.log(np.diag(self.factors[number]).astype(np.float64)).sum()
            terms.append(np.log(weight) - 0.5 * (e**2 + np.log(2 * np.pi)).sum(axis=1) - log_volume)
        return logsumexp(np.stack(terms), axis=0)

    def tensors(self) -> dict[str, np.ndarray]:
        """What a model's file holds of it."""
        return {"weights": self.weights, "means": self.means, "factors": self.factors}

    @staticmethod
    def from_tensors(tensors: Mapping[str, np.ndarray]) -> "Gaussians":
        """What `tensors` returned, as it was."""
        return Gaussians(tensors["weights"], tensors["means"], tensors["factors"])


def product(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """x @ weights.T for x (N, I) and weights (O, I): (N, O), float64, each row the same in any company.

    A matrix product of BLAS rounds by how many rows there are. This one adds column by column, always in one order;
    what is multiplied here is small beside the decoder.
    """
    found = np.zeros((len(x), len(weights)))
    columns = np.ascontiguousarray(weights.T, dtype=np.float64)
    for at in range(0, len(x), ROWS):
        block, of_block = x[at : at + ROWS].astype(np.float64), found[at : at + ROWS]
        for values, column in zip(block.T, columns, strict=True):
            of_block += values[:, None] * column
    return found


def pooled(images: Posterior) -> np.ndarray:
    """Covariance (D, D) of posterior means within classes, all classes together; shrunk (Ledoit & Wolf 2004).

    What few images of a class say of the D (D + 1) / 2 numbers of a covariance is mostly chance. The classes share an
    encoder and a decoder, so what all of them say is near to what each would (as in Friedman 1989's discriminants).
    What labels explain of the means is taken out by least squares, which for exclusive classes is the class's mean;
    classes with fewer than `MIN_IMAGES` images don't count.
    """
    mu = images.mu.astype(np.float64)
    labels = images.labels[:, images.labels.sum(axis=0, dtype=int) >= MIN_IMAGES].astype(np.float64)
    known = np.column_stack([np.ones(len(mu)), labels])
    within = mu - known @ np.linalg.lstsq(known, mu)[0]
    return _lifted(ledoit_wolf(within, assume_centered=True)[0])


def _moments(images: Posterior, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, covariance = _covariance_of_means(images, target)
    return mean, _lifted(covariance + np.diag(images.variances.mean(axis=0)))


def _covariance_of_means(images: Posterior, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) of the images' means, and their covariance (D, D) shrunk towards the target."""
    mu = images.mu.astype(np.float64)
    mean = mu.mean(axis=0)
    factor = np.linalg.cholesky(target)
    shrunk = ledoit_wolf(solve_triangular(factor, (mu - mean).T, lower=True).T, assume_centered=True)[0]
    return mean, _lifted(factor @ shrunk @ factor.T)


def _lifted(covariance: np.ndarray) -> np.ndarray:
    """Symmetric, and with `MIN_VARIANCE` in every direction."""
    return (covariance + covariance.T) / 2 + MIN_VARIANCE * np.eye(len(covariance))
