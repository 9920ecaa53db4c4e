"""A request that has been understood: which images of which model, with their addresses."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np

from serve.catalog import LoadedModel
from serve.formats import Answer
from serve.problems import Problem, listed, shown
from vaegan.latents import MAX_SEED
from vaegan.sampler import Sampler
from vaegan.shards import Images

PLACES = 6
"""Decimal places of a fraction of a way, in addresses; the images between two such fractions can't be told apart."""


@dataclass(frozen=True)
class Way:
    """Images on the way to another address of the same classes, instead of consecutive ones."""

    seed: int
    index: int
    at: tuple[float, ...]
    """Fractions of the way, 0 to 1, one for each image."""


@dataclass(frozen=True)
class Order:
    """`count` consecutive images of one model, labels and seed, or those on a way; valid for that model."""

    model: LoadedModel
    labels: np.ndarray  # multi-hot (K,)
    seed: int
    start: int
    count: int
    latent: str
    truncation: float
    way: Way | None = None

    @property
    def sampler(self) -> Sampler:
        return self.model.sampler

    @property
    def model_id(self) -> str:
        return self.model.id

    def address(self, position: int) -> str:
        """NAME/VERSION/CLASSES/SEED/INDEX, then what differs from the usual latents as a query."""
        if self.way is None:
            return self.sampler.address(self.labels, self.seed, self.start + position, self.latent, self.truncation)
        return self.sampler.address(
            self.labels,
            self.seed,
            self.start,
            self.latent,
            self.truncation,
            to=(self.way.seed, self.way.index),
            at=self.way.at[position],
        )

    def latents(self, offset: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """z (N, D) and labels (N, K) of images offset ... offset + size - 1 of this order."""
        labels = np.tile(self.labels, (size, 1))
        if self.way is None:
            index = self._index(offset, size)
            return self.sampler.latents(labels, self.seed, index, self.latent, self.truncation), labels
        at = np.array(self.way.at[offset : offset + size])
        to = (self.way.seed, self.way.index)
        z = self.sampler.latents_between(self.labels, self.seed, self.start, to, at, self.latent, self.truncation)
        return z, labels

    def rows(self, offset: int, pixels: np.ndarray) -> Images:
        """Pixels (N, H, W, C) from position `offset` on as rows of a dataset."""
        size = len(pixels)
        addresses = [self.address(offset + i) for i in range(size)]
        labels = np.tile(self.labels, (size, 1))
        return self.sampler.rows(pixels, labels, addresses, self.seed, self._index(offset, size))

    def _index(self, offset: int, size: int) -> np.ndarray:
        if self.way is not None:
            return np.full(size, self.start, dtype=np.int64)
        return self.start + offset + np.arange(size, dtype=np.int64)  # in this order: the last index may be the largest

    def answer(self) -> Answer:
        """What the writers of formats need to know."""
        return Answer(self.model.info, self.count, self.address, self.rows)

    def headers(self, privacy: str) -> dict[str, str]:
        """What goes with the images wherever their bytes go: that they are synthetic, and the first one's address."""
        return {
            "X-AugRay-Synthetic": "true",
            "X-AugRay-Address": header_text(self.address(0)),
            "X-AugRay-Version": self.model.info.version,
            "X-AugRay-Count": str(self.count),
            "X-AugRay-Privacy": privacy,
        }

    def etag(self) -> str:
        """Tells images apart by model and address alone, without making them.

        Weak, since the same address may differ by a grey level between a CPU and a GPU.
        """
        name = f"{self.model.info.tensors_sha256}/{self.address(0)}"
        return f'W/"{hashlib.sha256(name.encode()).hexdigest()[:32]}"'


def header_text(address: str) -> str:
    """An address as a header has it: ASCII only."""
    return quote(address, safe="/+?=&")


def make_order(
    model: LoadedModel,
    classes: Sequence[str],
    *,
    seed: int,
    start: int = 0,
    count: int = 1,
    latent: str = "prior",
    truncation: float = 1.0,
    way: Way | None = None,
    status: int = 422,
) -> Order:
    """Check a request against what its model has.

    Raises:
        Problem: `status` for an unknown class; 422 for latents that the model lacks or an index out of range.
    """
    last = start if way else start + count - 1
    if last > MAX_SEED:
        raise Problem(422, f"the last index is {last}, expected at most {MAX_SEED}; start lower")
    if latent not in model.info.latents:
        raise Problem(
            422, f"latent {shown(latent)} is not one that model {model.id} has, expected {listed(model.info.latents)}"
        )
    return Order(model, model.labels(classes, status), seed, start, count, latent, truncation, way)


def fractions(steps: int) -> tuple[float, ...]:
    """`steps` fractions of a way at equal distances, from 0 to 1."""
    return tuple(round(float(value), PLACES) for value in np.linspace(0, 1, steps))
