"""A normalising flow over latents, given labels."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vaegan.latents.counter import normals
from vaegan.latents.gaussian import Gaussians
from vaegan.latents.perceptron import Perceptron, forward, frozen, initial, train
from vaegan.latents.perclass import PerClass, below
from vaegan.latents.posterior import FIT_SEED, Posterior

COUPLINGS = 6
MIN_IMAGES = 50
"""Fewer images make a flow without couplings: their Gaussian."""
MAX_LOG_SCALE = 1.0
"""One coupling stretches or narrows a dimension by e at most."""
LABEL_DROPOUT = 0.1
"""How often an image's labels are left out of a fit: no label then means any image, also for classes without any."""


@dataclass(frozen=True)
class Flow:
    """RealNVP (Dinh et al. 2017, arXiv:1605.08803, Eq. 7 and 8) on latents standardised by their class's Gaussian.

    A coupling keeps the dimensions of its mask and scales and shifts the others by what a network makes of those kept
    and of the labels. Masks come in pairs that complement one another. The networks begin at the identity, where the
    flow is the Gaussian, and a fit ends when images held out would be less likely: where there are few images, that is
    what stays of it.

    masks (L, D): 1 where a dimension is kept.
    """

    base: PerClass[Gaussians]
    masks: np.ndarray
    networks: tuple[Perceptron, ...]

    @staticmethod
    def fit(images: Posterior, base: PerClass[Gaussians]) -> "Flow":
        """Fit to posteriors by maximum likelihood, new samples of them in every step."""
        generator = torch.Generator().manual_seed(FIT_SEED)
        data = _Standardised(images, base)
        dim, num_labels = images.mu.shape[1], images.labels.shape[1]
        masks = _masks(dim)[: COUPLINGS if len(images) >= MIN_IMAGES else 0]
        networks = [initial(dim, num_labels, 2 * dim, generator) for _ in masks]
        kept = torch.from_numpy(masks).float()

        def negative_log_likelihood(rows: np.ndarray, noise: torch.Generator) -> Tensor:
            u, labels = data.sample(rows, noise)
            log_scales = torch.zeros(len(u))
            for mask, network in zip(kept, networks, strict=True):
                log_scale, shift = forward(network, torch.cat([u * mask, labels], dim=1)).chunk(2, dim=1)
                log_scale = (1 - mask) * MAX_LOG_SCALE * torch.tanh(log_scale)
                u = (u - (1 - mask) * shift) * torch.exp(-log_scale)
                log_scales = log_scales + log_scale.sum(dim=1)
            return (0.5 * u.square().sum(dim=1) + log_scales).mean()

        if networks:
            train(networks, len(images), negative_log_likelihood)
        return Flow(base, masks, tuple(frozen(network) for network in networks))

    def sample(
        self, labels: np.ndarray, seed: np.ndarray | int, index: np.ndarray, truncation: float, stream: int = 0
    ) -> np.ndarray:
        """Latents (N, D), float32, for labels (N, K) and addresses (N,); `truncation` scales the normals."""
        u = truncation * normals(seed, index, self.masks.shape[1], stream)
        for mask, network in zip(self.masks[::-1], self.networks[::-1], strict=True):
            log_scale, shift = self._coupling(mask, network, u, labels)
            u = u * np.exp(log_scale) + shift
        return self.base.by_part(labels, lambda part, rows: part.place(u[rows])).astype(np.float32)

    def log_density(self, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """log p(z | labels) (N,), in nats."""
        u = self.base.by_part(labels, lambda part, rows: part.standardised(z[rows]))
        found = self.base.log_density(z, labels) + 0.5 * (u**2).sum(axis=1)  # less the normal density that it ends in
        for mask, network in zip(self.masks, self.networks, strict=True):
            log_scale, shift = self._coupling(mask, network, u, labels)
            u = (u - shift) * np.exp(-log_scale)
            found -= log_scale.sum(axis=1)
        return found - 0.5 * (u**2).sum(axis=1)

    @staticmethod
    def _coupling(mask: np.ndarray, network: Perceptron, u: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        log_scale, shift = np.split(network(np.concatenate([u * mask, labels], axis=1)), 2, axis=1)
        return (1 - mask) * MAX_LOG_SCALE * np.tanh(log_scale), (1 - mask) * shift

    def tensors(self) -> dict[str, np.ndarray]:
        """What a model's file holds of it."""
        found = {f"base.{name}": value for name, value in self.base.tensors().items()} | {"masks": self.masks}
        for i, network in enumerate(self.networks):
            found |= {f"networks.{i}.{name}": value for name, value in network.tensors().items()}
        return found

    @staticmethod
    def from_tensors(tensors: Mapping[str, np.ndarray]) -> "Flow":
        """What `tensors` returned, as it was."""
        base = PerClass.from_tensors(below(tensors, "base."), Gaussians.from_tensors)
        masks = tensors["masks"]
        networks = (Perceptron.from_tensors(below(tensors, f"networks.{i}.")) for i in range(len(masks)))
        return Flow(base, masks, tuple(networks))


def _masks(dim: int) -> np.ndarray:
    """(L, D), uint8: random halves, each followed by the other half."""
    rng = np.random.default_rng(FIT_SEED)
    halves = [(rng.permutation(dim) < dim // 2).astype(np.uint8) for _ in range(COUPLINGS // 2)]
    return np.stack([mask for half in halves for mask in (half, 1 - half)])


class _Standardised:
    """Posteriors of which samples come as e, where mean + factor @ e is z, of the Gaussian that serves their labels."""

    def __init__(self, images: Posterior, base: PerClass[Gaussians]) -> None:
        numbers = sorted(base.parts)  # -1, all images, comes first
        means = np.concatenate([base.parts[number].means for number in numbers])
        inverses = np.linalg.inv(np.concatenate([base.parts[number].factors for number in numbers]).astype(np.float64))
        self.part = torch.from_numpy(np.searchsorted(numbers, base.part_of(images.labels)))
        self.labels = torch.from_numpy(images.labels.astype(np.float32))
        self.mu, self.std = torch.from_numpy(images.mu), torch.from_numpy(images.log_var).mul(0.5).exp()
        self.means, self.inverses = torch.from_numpy(means), torch.from_numpy(inverses.astype(np.float32))

    def sample(self, rows: np.ndarray, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """One sample (N, D) of each of these images, and their labels (N, K), left out now and then."""
        at = torch.from_numpy(rows)
        kept = torch.rand(len(at), generator=noise) >= LABEL_DROPOUT
        z = self.mu[at] + self.std[at] * torch.randn(len(at), self.mu.shape[1], generator=noise)
        part = torch.where(kept, self.part[at], 0)
        e = torch.empty_like(z)
        for number in part.unique():
            of_part = part == number
            e[of_part] = (z[of_part] - self.means[number]) @ self.inverses[number].T
        return e, self.labels[at] * kept[:, None]
