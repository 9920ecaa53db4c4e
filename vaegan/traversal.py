"""Which latent dimensions a model uses, and what moving along one of them does to an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cluster.errors import UserError
from vaegan.images import grid
from vaegan.losses import kl_divergence_per_dimension
from vaegan.sampler import Sampler

ACTIVE_VARIANCE = 0.01
"""Of the posterior means over images; above it a dimension is an active unit (Burda et al. 2016, section 4.2)."""
ACTIVE_NATS = 0.1
"""Of KL divergence; above it a dimension tells the decoder something even where its means hardly differ."""
NEUTRAL = 128


@dataclass(frozen=True)
class LatentUse:
    """How much each latent dimension says of images, (D,) each, float64.

    kl: mean KL divergence of the posterior from N(0, 1), in nats. variance: of the posterior means over images.
    """

    kl: np.ndarray
    variance: np.ndarray

    @property
    def active(self) -> np.ndarray:
        """Active units, bool (D,): Burda et al. 2016."""
        return self.variance > ACTIVE_VARIANCE

    @property
    def informative(self) -> np.ndarray:
        """Dimensions above `ACTIVE_NATS`, bool (D,)."""
        return self.kl > ACTIVE_NATS

    @property
    def order(self) -> np.ndarray:
        """Dimensions by KL divergence, most first, (D,)."""
        return np.argsort(-self.kl, kind="stable")


def latent_use(mu: np.ndarray, log_var: np.ndarray) -> LatentUse:
    """The use of each dimension, from the posteriors of images: means and log variances, (N, D) each."""
    posterior = [torch.from_numpy(values.astype(np.float64)) for values in (mu, log_var)]
    return LatentUse(kl=kl_divergence_per_dimension(*posterior).numpy(), variance=mu.astype(np.float64).var(axis=0))


def typical(mu: np.ndarray) -> int:
    """Which of the posterior means (N, D) is nearest to their mean."""
    return int(np.square(mu - mu.mean(axis=0)).sum(axis=1).argmin())


def along(z: np.ndarray, dimensions: Sequence[int] | np.ndarray, values: np.ndarray) -> np.ndarray:
    """Latents (M, V, D), float32: z (D,) with each of M dimensions in turn set to each of V values."""
    moved = np.tile(z.astype(np.float32), (len(dimensions), len(values), 1))
    for row, dimension in enumerate(dimensions):
        moved[row, :, dimension] = values
    return moved


def traverse(
    sampler: Sampler, z: np.ndarray, labels: np.ndarray, dimensions: Sequence[int] | np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Images of `along`, uint8 (M, V, H, W, C), all with the labels (K,) over the model's classes."""
    moved = along(z, dimensions, values)
    pixels = sampler.decode(moved.reshape(-1, len(z)), np.tile(labels, (moved.shape[0] * moved.shape[1], 1)))
    return pixels.reshape(*moved.shape[:2], *pixels.shape[1:])


def changes(images: np.ndarray) -> tuple[np.ndarray, int]:
    """How each image (M, V, H, W, C) differs from the one in the middle of its row, and the largest change there is.

    Mid-grey is no change and white or black that largest one, in grey levels, the same in all rows: a row that looks
    empty is a dimension that does little.
    """
    change = images.astype(np.int16) - images[:, images.shape[1] // 2, None]
    largest = int(np.abs(change).max())
    return np.round(NEUTRAL + (NEUTRAL - 1) * (change / max(largest, 1))).astype(np.uint8), largest


def sheet(images: np.ndarray) -> np.ndarray:
    """Images (M, V, H, W, C) as one picture (H', W', C): a row for each dimension, its changes in the row below."""
    rows = np.stack([images, changes(images)[0]], axis=1)
    return grid(rows.reshape(-1, *images.shape[2:]), columns=images.shape[1])


def conditioning(model_classes: Sequence[str], labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Labels (N, K) over a dataset's classes as labels over a model's, by name; (N, 0) for an unconditional model.

    Raises:
        UserError: the dataset lacks one of the model's classes.
    """
    if missing := [name for name in model_classes if name not in classes]:
        raise UserError(
            f"the model is conditional on {', '.join(model_classes)}, and the dataset has no {', '.join(missing)} "
            f"(it has {', '.join(classes) or 'no classes'}): give a dataset with the model's classes"
        )
    return labels[:, [list(classes).index(name) for name in model_classes]]
