"""`Sampler`: the address (model, version, labels, seed, index) to an image."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cluster.errors import UserError
from vaegan import latents
from vaegan.checkpoint import ModelInfo, read_model
from vaegan.latents import LatentSource
from vaegan.networks import FEW_ROWS, Encoder, Networks
from vaegan.shards import Images
from vaegan.tensors import to_pixels, to_tensor

CHUNK = 64  # images decoded at a time: enough to keep a core busy, little enough to stay in its cache
MAX_CANDIDATES = 64


class Sampler:
    """Draws images from one model. The same address gives the same image, whatever is drawn with it."""

    def __init__(
        self,
        networks: Networks,
        sources: Mapping[str, LatentSource],
        info: ModelInfo,
        device: str | torch.device = "cpu",
    ) -> None:
        self.networks = networks.to(device).to(memory_format=torch.channels_last)
        self.sources, self.info, self.device = sources, info, torch.device(device)

    @classmethod
    def from_model(cls, model: Path, device: str | torch.device = "cpu") -> "Sampler":
        """Load a model folder.

        Raises:
            UserError: it isn't one, or it is damaged.
        """
        return cls(*read_model(model), device=device)

    def with_sources(self, sources: Mapping[str, LatentSource]) -> "Sampler":
        """The same model with these sources of latents beside the prior, such as `latents.fit_latents` makes."""
        return Sampler(self.networks, sources, replace(self.info, latents=("prior", *sources)), self.device)

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
        candidates: int = 1,
        to: tuple[int, int] | None = None,
        at: float | None = None,
    ) -> str:
        """The address of one image as a string: NAME/VERSION/CLASSES/SEED/INDEX, classes joined by "+", or "none".

        Whatever else makes another image follows as a query: another latent source than the prior, a truncation, the
        number of candidates that it was chosen from, and for an image on the way to another address the (seed, index)
        that it leads `to` and `at` which fraction it is.
        """
        names = "+".join(name for name, on in zip(self.info.classes, labels, strict=True) if on)
        query = [f"latent={latent}"] if latent != "prior" else []
        query += [f"truncation={float(truncation)!r}"] if truncation != 1 else []
        query += [f"candidates={candidates}"] if candidates != 1 else []
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
        candidate: int = 0,
    ) -> np.ndarray:
        """z (N, D), float32, of addresses.

        Args:
            latent: "prior", or one of the sources fitted to encoded training images: see `vaegan.latents`.
            truncation: scales the spread around the centre; 1 is the model's own distribution, less is more typical.
            candidate: the address's own latents are its candidate 0; the others are drawn independently of it.
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
        stream = 2 * candidate  # odd streams decide between candidates
        if latent == "prior":
            return latents.prior(seed, index, self.info.networks.latent_dim, stream) * np.float32(truncation)
        return self.sources[latent].sample(labels, seed, index, truncation, stream)

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

    def __call__(
        self,
        labels: np.ndarray,
        seed: np.ndarray | int,
        index: np.ndarray,
        *,
        latent: str = "prior",
        truncation: float = 1.0,
        candidates: int = 1,
    ) -> np.ndarray:
        """Images of addresses: uint8 (N, H, W, C).

        Args:
            labels: multi-hot (N, K); K = 0 for an unconditional model.
            seed, index: whole numbers from 0 to 2^63 - 1; index is (N,), seed may be one for all.
            candidates: how many images each is chosen from, see `choose`; all are decoded and, if several, judged.

        Raises:
            UserError: a seed, index, latent source, truncation or number of candidates out of range, or several
                candidates and no discriminator.
        """
        if labels.shape != (len(index), len(self.info.classes)):
            raise ValueError(f"labels of shape {labels.shape}: expected {(len(index), len(self.info.classes))}")
        index = np.asarray(index)
        self.check_candidates(candidates)
        if candidates > 1:
            return self.choose(labels, seed, index, latent, truncation, candidates)
        return self.decode(self.latents(labels, seed, index, latent, truncation), labels)

    def check_candidates(self, candidates: int) -> None:
        """Raise a `UserError` where a number of candidates is out of range or more than this model can judge."""
        if not 1 <= candidates <= MAX_CANDIDATES:
            raise UserError(f"candidates {candidates}: expected 1 to {MAX_CANDIDATES}, 1 to take images as they come")
        if candidates > 1 and self.networks.discriminator is None:
            raise UserError(
                f"model {self.info.address_prefix} is a {self.info.kind} and has no discriminator to choose between "
                "candidates: leave candidates out"
            )

    def choose(
        self,
        labels: np.ndarray,
        seed: np.ndarray | int,
        index: np.ndarray,
        latent: str,
        truncation: float,
        candidates: int,
    ) -> np.ndarray:
        """One image of several candidates for each address, by the discriminator: uint8 (N, H, W, C).

        The Metropolis-Hastings chain of Turner et al. 2019 (arXiv:1811.11357, Algorithm 1): it stands at candidate 0,
        which is the image without candidates, and goes to each next one with probability min(1, exp(l' - l)), where l
        and l' are the logits of the two images as they would be handed out. If the logit is the log ratio of the
        densities of real and generated images, its limit is the distribution of real images; always to take the best
        would draw a few favourites again and again. It needs no threshold, so it works for every class, latent source
        and truncation of models that were not made for it.

        Candidate j's latents come from the address's stream 2 j of random numbers, the decision about it from stream
        2 j + 1 (see `latents.uniforms`). On another device a logit differs in its last digits; an image whose decision
        hangs on them is then another candidate.
        """
        images = self.decode(self.latents(labels, seed, index, latent, truncation), labels)
        logits = self.judge(images, labels)
        for candidate in range(1, candidates):
            others = self.decode(self.latents(labels, seed, index, latent, truncation, candidate), labels)
            theirs = self.judge(others, labels)
            draw = latents.uniforms(seed, index, 1, stream=2 * candidate + 1)[:, 0]
            gone = np.log(draw) < theirs - logits
            images[gone], logits[gone] = others[gone], theirs[gone]
        return images

    @torch.inference_mode()
    def judge(self, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The discriminator's logits (N,), float64, of images uint8 (N, H, W, C): more is more like a real one.

        Raises:
            UserError: the model has no discriminator.
        """
        discriminator = self.networks.discriminator
        if discriminator is None:
            raise UserError(f"model {self.info.address_prefix} is a {self.info.kind} and has no discriminator")
        found = np.empty(len(pixels))
        for at in range(0, len(pixels), CHUNK):
            rows = _padded(len(pixels[at : at + CHUNK])) + at
            logits, _ = discriminator(to_tensor(pixels[rows]).to(self.device), self._tensor(labels[rows]))
            found[at : at + CHUNK] = logits.cpu().numpy()[: len(found[at : at + CHUNK])]
        return found

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
        rows = _padded(len(pixels))
        mu, log_var = encoder(to_tensor(pixels[rows]).to(self.device), self._tensor(labels[rows]))
        return mu[: len(pixels)], log_var[: len(pixels)]

    @torch.inference_mode()
    def predicted_labels(self, pixels: np.ndarray) -> np.ndarray:
        """What the encoder's label head takes images uint8 (N, H, W, C) for: multi-hot uint8 (N, K).

        The likeliest class, or all that are likelier than not where an image may have several.

        Raises:
            UserError: the model has no label head.
        """
        encoder = self.networks.encoder
        if encoder is None or encoder.label_head is None:
            raise UserError(f"model {self.info.address_prefix} has no label head: train one with model.label_head")
        found = np.empty((len(pixels), len(self.info.classes)), dtype=np.uint8)
        for at in range(0, len(pixels), CHUNK):
            rows = _padded(len(pixels[at : at + CHUNK])) + at
            labels = encoder.predict(to_tensor(pixels[rows]).to(self.device))
            found[at : at + CHUNK] = labels.cpu().numpy()[: len(found[at : at + CHUNK])]
        return found

    def reconstruct(self, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Images decoded again from the means of their posteriors, uint8 (N, H, W, C)."""
        return self.decode(self.encode(pixels, labels)[0], labels)

    def sample(
        self,
        labels: np.ndarray,
        seed: int,
        start: int = 0,
        *,
        latent: str = "prior",
        truncation: float = 1.0,
        candidates: int = 1,
    ) -> Images:
        """Images at indices start, start + 1, … of a seed, as rows of a dataset with their addresses."""
        index = np.arange(start, start + len(labels), dtype=np.int64)
        pixels = self(labels, seed, index, latent=latent, truncation=truncation, candidates=candidates)
        address = [
            self.address(row, seed, int(i), latent, truncation, candidates=candidates)
            for row, i in zip(labels, index, strict=True)
        ]
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

        At 0 and 1 they are the two addresses' own images. Latents of the prior move along an arc, those of the other
        sources straight: these are not centred at 0. The columns seed and index are those of the start.

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


def _padded(count: int) -> np.ndarray:
    """Rows of a batch, over again where they are few."""
    return np.resize(np.arange(count), max(count, FEW_ROWS))
