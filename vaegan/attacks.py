"""What a model's own networks say of a real image: scores for white-box membership inference.

Whoever holds the weights, or an endpoint that encodes and reconstructs, can compute these. Each score is higher for
images the model treats like its training images; `vaegan.metrics.privacy` asks how well it tells them from others.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vaegan.images import to_tensor
from vaegan.latents import prior
from vaegan.losses import kl_divergence, reconstruction
from vaegan.networks import Networks
from vaegan.sampler import CHUNK, Sampler
from vaegan.shards import Images

DRAWS = 4
SEED = 3_000_017


@torch.inference_mode()
def attack_scores(sampler: Sampler, images: Images, *, draws: int = DRAWS, seed: int = SEED) -> dict[str, np.ndarray]:
    """Name of each attack that the model's networks allow, to its scores (N,), float64.

    `discriminator`: the logit (LOGAN, Hayes et al. 2019): it has seen members called real.
    `reconstruction`: minus half the squared pixel error in [-1, 1] from the posterior's mean, summed, in nats
        (Hilprecht et al. 2019).
    `elbo`: minus half the squared pixel error, mean over `draws` of z, less the KL divergence, in nats (unit variance).
    `features`: minus L_like, the error in Dis_l's maps from the posterior's mean, scaled as in training.

    An image's scores depend on it, its labels and the seed alone: every image gets the same noise, and every forward
    pass has `CHUNK` rows, so that rounding too is the same whatever is scored with it.

    Args:
        images: real images with labels over the model's classes (any where it is unconditional).
    """
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(images), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(images)))
        padded = np.resize(rows, CHUNK)
        x = to_tensor(images.pixels[padded]).to(sampler.device)
        labels = torch.from_numpy(images.labels[padded].astype(np.float32)).to(sampler.device)
        scores = _scores(sampler.networks, x, sampler.networks.condition(labels), draws, seed)
        for name, values in scores:
            found.setdefault(name, []).append(values[: len(rows)].double().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _scores(networks: Networks, x: Tensor, labels: Tensor, draws: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Attack name and scores (N,) of images x (N, C, H, W) in [-1, 1], for one batch."""
    features = None
    if networks.discriminator is not None:
        logits, features = networks.discriminator(x, labels)
        yield "discriminator", logits
    if networks.encoder is None:
        return
    mu, log_var = networks.encoder(x, labels)
    x_recon = networks.decoder(mu, labels)
    yield "reconstruction", -_each(x_recon, x)
    noise = prior(seed, np.arange(draws), mu.shape[1])
    errors = [
        _each(networks.decoder(mu + (0.5 * log_var).exp() * torch.from_numpy(row).to(mu), labels), x) for row in noise
    ]
    divergence = torch.stack([kl_divergence(*rows) for rows in zip(mu.split(1), log_var.split(1), strict=True)])
    yield "elbo", -(torch.stack(errors).mean(dim=0) + divergence)
    if networks.discriminator is not None and features is not None:
        _, features_recon = networks.discriminator(x_recon, labels)
        yield "features", -_each(features_recon, features, num_pixels=x[0].numel())


def _each(recon: Tensor, target: Tensor, num_pixels: int | None = None) -> Tensor:
    """`losses.reconstruction` of each row: (N,), in nats per image."""
    count = num_pixels or target[0].numel()
    return torch.stack([reconstruction(a, b, count) for a, b in zip(recon.split(1), target.split(1), strict=True)])
