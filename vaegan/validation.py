"""How good a checkpoint is on the validation split: what chooses the best one, and ends a run that stands still."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vaegan.latents import prior
from vaegan.metrics.sliced_wasserstein import sliced_wasserstein
from vaegan.networks import Networks
from vaegan.reading import TrainingImages, marked_labels, num_unlabelled
from vaegan.tensors import to_labels, to_pixels, to_tensor

SEED = 2_000_003
BATCH = 64  # images through a network at a time


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How checkpoints are compared on the validation split."""

    metric: Literal["sliced_wasserstein", "reconstruction", "none"] = "sliced_wasserstein"
    """What the best checkpoint is lowest in: the distance of samples from validation images (sliced Wasserstein, Karras
    et al. 2018), or the mean squared pixel error of their reconstructions; `none` keeps the last one."""
    max_images: int = 256
    """Validation images to look at, evenly spaced over the split; 0 takes all."""
    patience: int = 0
    """Checkpoints in a row without a better value after which a run stops early; 0 never does."""

    def __post_init__(self) -> None:
        if self.max_images < 0 or self.patience < 0:
            raise ValueError("validation.max_images and validation.patience: expected 0 or more")
        if self.patience and self.metric == "none":
            raise ValueError("validation.patience needs a validation.metric other than none")


class Validation:
    """A fixed set of validation images and latents, so that values differ by the weights alone."""

    def __init__(self, config: ValidationConfig, images: TrainingImages, *, labelled_only: bool = False) -> None:
        """Choose the images; only among those with a label, where networks need one and have none to infer it."""
        rows = np.flatnonzero(images.has_label) if labelled_only and num_unlabelled(images) else np.arange(len(images))
        count = min(config.max_images or len(rows), len(rows))
        self.metric = config.metric
        self.images = images.take(rows[np.linspace(0, len(rows) - 1, count).round().astype(int)])
        self.labels = marked_labels(self.images)

    @torch.inference_mode()
    def value(self, networks: Networks, decoder: torch.nn.Module) -> float:
        """The metric, lower is better; `decoder` is the one that samples are drawn from."""
        device = next(decoder.parameters()).device
        parts = []
        for start in range(0, len(self.images), BATCH):
            rows = np.arange(start, min(start + BATCH, len(self.images)))
            labels = networks.condition(to_labels(self.labels[rows], device))
            if labels.isnan().any():
                labels = networks.complete(to_tensor(self.images.pixels[rows], device), labels)
            parts.append(to_pixels(decoder(self._latents(networks, rows, labels, device), labels)))
        made = np.concatenate(parts)
        if self.metric == "reconstruction":
            return float(np.square((made - self.images.pixels.astype(np.float64)) / 127.5).mean())
        return sliced_wasserstein(self.images.pixels, made)

    def _latents(self, networks: Networks, rows: np.ndarray, labels: Tensor, device: torch.device) -> Tensor:
        if self.metric == "reconstruction":
            assert networks.encoder is not None  # TrainConfig refuses this metric for a gan
            mu, _ = networks.encoder(to_tensor(self.images.pixels[rows], device), labels)
            return mu
        return torch.from_numpy(prior(SEED, rows, networks.config.latent_dim)).to(device)
