"""`Sampler`: the address (model, version, labels, seed, index) to an image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cluster.errors import UserError
from vaegan import latents
from vaegan.checkpoint import ModelInfo, read_model
from vaegan.latents import Mixture
from vaegan.networks import FEW_ROWS, Encoder, Networks
from vaegan.shards import Images
from vaegan.tensors import to_pixels, to_tensor

CHUNK = 64  # images decoded at a time: enough to keep a core busy, little enough to stay in its cache


class Sampler:
    """Draws images from one model. The same address gives the same image, whatever is drawn with it."""

    def __init__(
        self, networks: Networks, mixtures: dict[int, Mixture], info: ModelInfo, device: str | torch.device = "cpu"
    ) -> None:
        self.networks = networks.to(device).to(memory_format=torch.channels_last)
        self.mixtures, self.info, self.device = mixtures, info, torch.device(device)

    @classmethod
    def from_model(cls, model: Path, device: str | torch.device = "cpu") -> "Sampler":
        """Load a model folder.

        Raises:
            UserError: it isn't one, or it is damaged.
        """
        return cls(*read_model(model), device=device)

    def labels_of(self, classes: Sequence[str], count: int = 1) -> np.ndarray:
        """Multi-hot labels (count, K) with the named classes on.

        Raises:
            UserError: a class that the model doesn't know, or not one class where exactly one is meant.
        """
        known = self.info.classes
        unknown = [name for name in classes if name not in known]
        if unknown:
            there = f"it knows {', '.join(known)}" if known else "it is unconditional and knows none"
            raise UserError(f"no class {', '.join(map(repr, unknown))} in model {self.info.address_prefix}: {there}")
        if known and self.info.task == "multiclass" and len(classes) != 1:
            raise UserError(
                f"{len(classes)} classes asked of model {self.info.address_prefix}: "
                f"expected exactly one of {', '.join(known)}"
            )
        return np.tile(np.array([name in classes for name in known], dtype=np.uint8), (count, 1))

    def address(
        self,
        labels: np.ndarray,
        seed: int,
        index: int,
        latent: str = "prior",
        truncation: float = 1.0,
        *,
        to: tuple[int, int] | None = None,
        at: float | None = None,
    ) -> str:
        """The address of one image as a string: NAME/VERSION/CLASSES/SEED/INDEX, classes joined by "+", or "none".

        Whatever else makes another image follows as a query: another latent source than the prior, a truncation, and
        for an image on the way to another address the (seed, index) that it leads `to` and `at` which fraction it is.
        """
        names = "+".join(name for name, on in zip(self.info.classes, labels, strict=True) if on)
        query = [f"latent={latent}"] if latent != "prior" else []
        query += [f"truncation={float(truncation)!r}"] if truncation != 1 else []
        assert (to is None) == (at is None), (to, at)
        if to is not None and at is not None:
            query += [f"to={to[0]}/{to[1]}", f"at={float(at) + 0.0!r}"]  # + 0.0: -0 is the same place as 0
        suffix = "?" + "&".join(query) if query else ""
        return f"{self.info.address_prefix}/{names or 'none'}/{seed}/{index}{suffix}"

    def latents(
        self,
        labels: np.ndarray,
        seed: np.ndarray | int,
        index: np.ndarray,
        latent: str = "prior",
        truncation: float = 1.0,
    ) -> np.ndarray:
        """z (N, D), float32, of addresses.

        Args:
            latent: "prior", or "mixture": from the Gaussian mixture of the row's class over encoded training images.
            truncation: scales the spread around the centre; 1 is the model's own distribution, less is more typical.
        """
        if latent not in self.info.latents:
            raise UserError(
                f"no latent source {latent!r} in model {self.info.address_prefix}: "
                f"it has {', '.join(self.info.latents)}"
            )
        if not 0 <= truncation <= 2:
            raise UserError(
                f"truncation {truncation} is out of range: expected 0 to 2, 1 for the model's own distribution"
            )
        if latent == "prior":
            return latents.prior(seed, index, self.info.networks.latent_dim) * np.float32(truncation)
        seeds = np.broadcast_to(np.asarray(seed, dtype=np.int64), np.shape(index))
        component = self._mixture_of(labels)
        z = np.empty((len(index), self.info.networks.latent_dim), dtype=np.float32)
        for number in np.unique(component):
            rows = np.flatnonzero(component == number)
            z[rows] = self.mixtures[int(number)].sample(seeds[rows], np.asarray(index)[rows], truncation)
        return z

    def latents_between(
        self,
        labels: np.ndarray,
        seed: int,
        index: int,
        to: tuple[int, int],
        at: np.ndarray,
        latent: str = "prior",
        truncation: float = 1.0,
    ) -> np.ndarray:
        """z (N, D), float32, at fractions `at` (N,) of the way between two addresses; see `interpolate`."""
        at = np.asarray(at, dtype=np.float64)
        outside = at[~((at >= 0) & (at <= 1))]
        if len(outside):
            raise UserError(f"a point at {outside[0]} of the way between two images: expected a fraction from 0 to 1")
        ends = self.latents(
            np.tile(labels, (2, 1)), np.array([seed, to[0]]), np.array([index, to[1]]), latent, truncation
        )
        start, end = (np.tile(row, (len(at), 1)) for row in ends)
        return latents.interpolate(start, end, at, spherical=latent == "prior")

    def _mixture_of(self, labels: np.ndarray) -> np.ndarray:
        """Which mixture serves each row: its class's if it has one class with a mixture, else that of all images."""
        if not labels.shape[1]:
            return np.full(len(labels), -1)
        single = np.where(labels.sum(axis=1) == 1, labels.argmax(axis=1), -1)
        return np.where(np.isin(single, list(self.mixtures)), single, -1)

    def __call__(
        self,
        labels: np.ndarray,
        seed: np.ndarray | int,
        index: np.ndarray,
        *,
        latent: str = "prior",
        truncation: float = 1.0,
    ) -> np.ndarray:
        """Images of addresses: uint8 (N, H, W, C).

        Args:
            labels: multi-hot (N, K); K = 0 for an unconditional model.
            seed, index: whole numbers from 0 to 2^63 - 1; index is (N,), seed may be one for all.

        Raises:
            UserError: a seed, index, latent source or truncation out of range.
        """
        if labels.shape != (len(index), len(self.info.classes)):
            raise ValueError(f"labels of shape {labels.shape}: expected {(len(index), len(self.info.classes))}")
        z = self.latents(labels, seed, np.asarray(index), latent, truncation)
        return self.decode(z, labels)

    @torch.inference_mode()
    def decode(self, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Latents (N, D) and labels (N, K) to images, uint8 (N, H, W, C)."""
        found = np.empty((len(z), self.info.size, self.info.size, self.info.channels), dtype=np.uint8)
        for at in range(0, len(z), CHUNK):
            rows = slice(at, at + CHUNK)
            found[rows] = to_pixels(self.networks.decoder(self._tensor(z[rows]), self._tensor(labels[rows])))
        return found

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and log variances of q(z|x), each (N, D), of images uint8 (N, H, W, C).

        Raises:
            UserError: the model has no encoder.
        """
        if self.networks.encoder is None:
            raise UserError(f"model {self.info.address_prefix} is a {self.info.kind} and has no encoder")
        parts = [
            self._posterior(self.networks.encoder, pixels[at : at + CHUNK], labels[at : at + CHUNK])
            for at in range(0, len(pixels), CHUNK)
        ]
        mu, log_var = (torch.cat(values).cpu().numpy() for values in zip(*parts, strict=True))
        return mu, log_var

    def _posterior(self, encoder: Encoder, pixels: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and log variance of a batch; few rows are padded, so that their bytes don't depend on how many.

        The decoder does so itself; why it is needed stands in `Decoder._project`.
        """
        rows = np.resize(np.arange(len(pixels)), max(len(pixels), FEW_ROWS))
        mu, log_var = encoder(to_tensor(pixels[rows]).to(self.device), self._tensor(labels[rows]))
        return mu[: len(pixels)], log_var[: len(pixels)]

    def reconstruct(self, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Images decoded again from the means of their posteriors, uint8 (N, H, W, C)."""
        return self.decode(self.encode(pixels, labels)[0], labels)

    def sample(
        self, labels: np.ndarray, seed: int, start: int = 0, *, latent: str = "prior", truncation: float = 1.0
    ) -> Images:
        """Images at indices start, start + 1, … of a seed, as rows of a dataset with their addresses."""
        index = np.arange(start, start + len(labels), dtype=np.int64)
        pixels = self(labels, seed, index, latent=latent, truncation=truncation)
        address = [self.address(row, seed, int(i), latent, truncation) for row, i in zip(labels, index, strict=True)]
        return self.rows(pixels, labels, address, seed, index)

    def interpolate(
        self,
        labels: np.ndarray,
        seed: int,
        index: int,
        to: tuple[int, int],
        at: np.ndarray,
        *,
        latent: str = "prior",
        truncation: float = 1.0,
    ) -> Images:
        """Images on the way from (seed, index) to another (seed, index) of the same labels, rows like `sample`'s.

        At 0 and 1 they are the two addresses' own images. Latents of the prior move along an arc, those of the mixture
        straight: its components are not centred at 0. The columns seed and index are those of the start.

        Args:
            labels: multi-hot (K,).
            at: fractions of the way (N,), from 0 to 1.

        Raises:
            UserError: a fraction, seed, index, latent source or truncation out of range.
        """
        at = np.asarray(at, dtype=np.float64)
        rows = np.tile(labels, (len(at), 1))
        pixels = self.decode(self.latents_between(labels, seed, index, to, at, latent, truncation), rows)
        address = [self.address(labels, seed, index, latent, truncation, to=to, at=float(value)) for value in at]
        return self.rows(pixels, rows, address, seed, np.full(len(at), index, dtype=np.int64))

    def rows(
        self, pixels: np.ndarray, labels: np.ndarray, address: Sequence[str], seed: int, index: np.ndarray
    ) -> Images:
        """Images of one seed as rows of a dataset: pixels (N, H, W, C), labels (N, K), address and index (N,)."""
        column = lambda value: np.array([value] * len(labels), dtype=object)  # noqa: E731
        return Images(
            pixels,
            labels.astype(np.uint8),
            patient_id=np.array(address, dtype=object),  # every synthetic image is its own patient: nobody's
            image_id=np.array(address, dtype=object),
            source=column("synthetic"),
            model=column(self.info.address_prefix),
            seed=np.full(len(labels), seed, dtype=np.int64),
            index=index,
        )

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.device)
