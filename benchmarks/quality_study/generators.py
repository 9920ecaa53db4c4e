"""What the judge asks of a trained model: images of given labels from each of its latent sources, reconstructions."""

import inspect
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cluster.errors import UserError
from vaegan.sampler import Sampler


class Generator(Protocol):
    """A trained model."""

    sources: tuple[str, ...]
    """Of latents."""

    def sample(self, labels: np.ndarray, seed: int, source: str) -> np.ndarray:
        """Images uint8 (N, H, W, C) of the case's labels (N, K)."""

    def reconstruct(self, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Images decoded from their posteriors' means; None without an encoder."""

    def about(self) -> dict[str, Any]:
        """What a record should say of the model."""


class OurGenerator:
    """A model folder of ours.

    Args:
        sampling: a recipe's; what of it isn't `latent` goes to `Sampler.sample` by name.

    Raises:
        UserError: the Sampler doesn't know one of these names.
    """

    def __init__(self, model: Path, sampling: dict[str, Any]) -> None:
        self.sampler = Sampler.from_model(model)
        self.sources = self.sampler.info.latents
        self.options = {name: value for name, value in sampling.items() if name != "latent"}
        known = [p.name for p in inspect.signature(Sampler.__call__).parameters.values() if p.kind is p.KEYWORD_ONLY]
        if unknown := set(self.options) - set(known):
            raise UserError(f"sampling has {', '.join(sorted(unknown))}: the Sampler takes {', '.join(known)}")

    def sample(self, labels: np.ndarray, seed: int, source: str) -> np.ndarray:
        index = np.arange(len(labels), dtype=np.int64)
        return self.sampler(self._known(labels), seed, index, latent=source, **self.options)

    def reconstruct(self, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        if self.sampler.networks.encoder is None:
            return None
        return self.sampler.reconstruct(pixels, self._known(labels))

    def about(self) -> dict[str, Any]:
        info = self.sampler.info
        return {"images_seen": info.images_seen, "chosen": info.chosen, "sources": list(self.sources)}

    def _known(self, labels: np.ndarray) -> np.ndarray:
        """Of the case's labels those that the model takes: all or none."""
        return labels[:, : len(self.sampler.info.classes)]
