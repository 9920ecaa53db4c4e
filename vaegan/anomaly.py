"""How unlike its training images a model finds a real image: what its networks say of the image and its reconstruction.

The terms here are those that `vaegan.attacks` uses for membership inference: who serves the one serves the other.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cluster.errors import UserError
from vaegan.losses import kl_divergence, reconstruction
from vaegan.networks import FEW_ROWS, Networks
from vaegan.sampler import Sampler
from vaegan.tensors import to_tensor

Score = Callable[[Networks, Tensor, Tensor], Iterable[tuple[str, Tensor]]]
"""(networks, images (N, C, H, W) in [-1, 1], labels (N, K)) to names and values (N,)."""


def anomaly(sampler: Sampler, pixels: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Anomaly scores of real images and their parts, (N,) each, float64, in nats; higher is less like training images.

    `features`: L_like, the error of the reconstruction from the posterior's mean in Dis_l's maps, scaled as in training
        by default, mean over the layers (absent for a plain VAE, which has no discriminator).
    `pixels`: half the squared pixel error in [-1, 1] of the same reconstruction, summed.
    `kl`: the KL divergence from the posterior to the prior.
    `score`: features + kl, the VAE-GAN's own objective; pixels + kl for a plain VAE.

    An image's numbers depend on it and its labels alone, to the bit, not on what is scored with it.

    Args:
        pixels: uint8 (N, H, W, C) at the model's size, N at least 1.
        labels: multi-hot (N, K) over the model's classes (any where it is unconditional).

    Raises:
        UserError: the model has no encoder.
    """
    info = sampler.info
    if sampler.networks.encoder is None:
        raise UserError(
            f"model {info.address_prefix} is a {info.kind} and has no encoder, so it can't score an image; "
            "use a vaegan or a vae"
        )
    shapes = (len(pixels), info.size, info.size, info.channels), (len(pixels), len(info.classes))
    if (pixels.shape, labels.shape) != shapes:
        raise ValueError(f"images of shape {pixels.shape}, labels of {labels.shape}: expected {shapes[0]}, {shapes[1]}")
    return score_in_passes(sampler, pixels, labels, _anomaly, FEW_ROWS)  # a lone image pays for 16, not for CHUNK


def _anomaly(networks: Networks, x: Tensor, labels: Tensor) -> Iterable[tuple[str, Tensor]]:
    found = read(networks, x, labels)
    like = found.pixels if found.features is None else found.features
    yield "score", like.double() + found.kl.double()
    if found.features is not None:
        yield "features", found.features
    yield "kl", found.kl
    yield "pixels", found.pixels


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a model's networks say of each image, and of its reconstruction from the posterior's mean."""

    mu: Tensor  # (N, D)
    log_var: Tensor  # (N, D)
    pixels: Tensor  # (N,) half the squared pixel error, summed, in nats
    kl: Tensor  # (N,) KL divergence from the posterior to the prior, in nats
    logits: Tensor | None  # (N,) the discriminator's, of the images; None without one
    features: Tensor | None  # (N,) L_like in Dis_l's maps, in nats; None without a discriminator


def read(networks: Networks, x: Tensor, labels: Tensor) -> Reading:
    """Read images x (N, C, H, W) in [-1, 1] with the conditioning labels (N, K); the model has an encoder."""
    assert networks.encoder is not None
    mu, log_var = networks.encoder(x, labels)
    x_recon = networks.decoder(mu, labels)
    logits = errors = None
    if networks.discriminator is not None:
        logits, features = networks.discriminator(x, labels)
        _, features_recon = networks.discriminator(x_recon, labels)
        layers = zip(features_recon, features, strict=True)
        errors = torch.stack([each_error(a, b, num_pixels=x[0].numel()) for a, b in layers]).mean(dim=0)
    divergence = torch.stack([kl_divergence(*rows) for rows in zip(mu.split(1), log_var.split(1), strict=True)])
    return Reading(mu=mu, log_var=log_var, pixels=each_error(x_recon, x), kl=divergence, logits=logits, features=errors)


def each_error(recon: Tensor, target: Tensor, num_pixels: int | None = None) -> Tensor:
    """`losses.reconstruction` of each row: (N,), in nats per image."""
    count = num_pixels or target[0].numel()
    return torch.stack([reconstruction(a, b, count) for a, b in zip(recon.split(1), target.split(1), strict=True)])


@torch.inference_mode()
def score_in_passes(
    sampler: Sampler, pixels: np.ndarray, labels: np.ndarray, score: Score, pass_rows: int
) -> dict[str, np.ndarray]:
    """What `score` gives for images (N, H, W, C) and labels (N, K): name to (N,), float64.

    Every forward pass has `pass_rows` rows, so that rounding too is the same whatever an image is scored with.
    """
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(pixels), pass_rows):
        rows = np.arange(start, min(start + pass_rows, len(pixels)))
        padded = np.resize(rows, pass_rows)
        x = to_tensor(pixels[padded]).to(sampler.device)
        condition = sampler.networks.condition(torch.from_numpy(labels[padded].astype(np.float32)).to(sampler.device))
        for name, values in score(sampler.networks, x, condition):
            found.setdefault(name, []).append(values[: len(rows)].double().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}
