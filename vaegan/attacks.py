"""What a model's own networks say of a real image: scores for white-box membership inference.

Whoever holds the weights, or an endpoint that encodes and reconstructs, can compute these. Each score is higher for
images the model treats like its training images; `vaegan.metrics.privacy` asks how well it tells them from others.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vaegan.anomaly import each_error, read, score_in_passes
from vaegan.latents import prior
from vaegan.networks import Networks
from vaegan.sampler import CHUNK, Sampler
from vaegan.shards import Images

DRAWS = 4
SEED = 3_000_017


def attack_scores(sampler: Sampler, images: Images, *, draws: int = DRAWS, seed: int = SEED) -> dict[str, np.ndarray]:
    """Name of each attack that the model's networks allow, to its scores (N,), float64.

    `discriminator`: the logit (LOGAN, Hayes et al. 2019): it has seen members called real.
    `reconstruction`: minus half the squared pixel error in [-1, 1] from the posterior's mean, summed, in nats
        (Hilprecht et al. 2019).
    `elbo`: minus half the squared pixel error, mean over `draws` of z, less the KL divergence, in nats (unit variance).
    `features`: minus L_like, the error in Dis_l's maps from the posterior's mean: see `vaegan.anomaly.anomaly`.

    An image's scores depend on it, its labels and the seed alone: every image gets the same noise, and every forward
    pass has `CHUNK` rows, so that rounding too is the same whatever is scored with it.

    Args:
        images: real images with labels over the model's classes (any where it is unconditional).
    """
    score = partial(_scores, draws=draws, seed=seed)
    return score_in_passes(sampler, images.pixels, images.labels, score, CHUNK)


def _scores(networks: Networks, x: Tensor, labels: Tensor, *, draws: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Attack name and scores (N,) of images x (N, C, H, W) in [-1, 1], for one batch."""
    if networks.encoder is None:
        assert networks.discriminator is not None
        yield "discriminator", networks.discriminator(x, labels)[0]
        return
    found = read(networks, x, labels)
    if found.logits is not None:
        yield "discriminator", found.logits
    yield "reconstruction", -found.pixels
    stds = (0.5 * found.log_var).exp()
    noise = torch.from_numpy(prior(seed, np.arange(draws), found.mu.shape[1])).to(found.mu)
    errors = [each_error(networks.decoder(found.mu + stds * row, labels), x) for row in noise]
    yield "elbo", -(torch.stack(errors).mean(dim=0) + found.kl)
    if found.features is not None:
        yield "features", -found.features
