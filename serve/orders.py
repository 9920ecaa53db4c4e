"""A request that has been understood: which images of which model, with their addresses."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np

from serve import formats
from serve.catalog import LoadedModel
from serve.problems import Problem, listed, shown
from vaegan.latents import MAX_SEED
from vaegan.shards import Images


@dataclass(frozen=True)
class Order:
    """`count` consecutive images of one model, labels and seed; valid for that model."""

    model: LoadedModel
    labels: np.ndarray  # multi-hot (K,)
    seed: int
    start: int
    count: int
    latent: str
    truncation: float

    def address(self, index: int) -> str:
        """NAME/VERSION/CLASSES/SEED/INDEX, then what differs from the usual latents as a query."""
        return self.model.sampler.address(self.labels, self.seed, index, self.latent, self.truncation)

    def addresses(self) -> list[str]:
        return [self.address(self.start + i) for i in range(self.count)]

    def sample(self, offset: int, size: int) -> Images:
        """Images offset ... offset + size - 1 of this order."""
        return self.model.sampler.sample(
            np.tile(self.labels, (size, 1)),
            self.seed,
            self.start + offset,
            latent=self.latent,
            truncation=self.truncation,
        )

    def pngs(self, offset: int, size: int) -> list[bytes]:
        """The same as PNG files."""
        pixels = self.sample(offset, size).pixels
        return [formats.png(image, self.address(self.start + offset + i)) for i, image in enumerate(pixels)]

    def headers(self) -> dict[str, str]:
        """What goes with the images wherever their bytes go: that they are synthetic, and the first one's address."""
        return {
            "X-AugRay-Synthetic": "true",
            "X-AugRay-Address": quote(self.address(self.start), safe="/+?=&"),  # headers hold ASCII only
            "X-AugRay-Version": self.model.info.version,
            "X-AugRay-Count": str(self.count),
        }

    def etag(self) -> str:
        """Tells images apart by model and address alone, without making them.

        Weak, since the same address may differ by a grey level between a CPU and a GPU.
        """
        name = f"{self.model.info.tensors_sha256}/{self.address(self.start)}"
        return f'W/"{hashlib.sha256(name.encode()).hexdigest()[:32]}"'


def make_order(
    model: LoadedModel,
    classes: Sequence[str],
    *,
    seed: int,
    start: int = 0,
    count: int = 1,
    latent: str = "prior",
    truncation: float = 1.0,
    status: int = 422,
) -> Order:
    """Check a request against what its model has.

    Raises:
        Problem: `status` for an unknown class; 422 for latents that the model lacks or an index out of range.
    """
    if start + count - 1 > MAX_SEED:
        raise Problem(422, f"the last index is {start + count - 1}, expected at most {MAX_SEED}; start lower")
    if latent not in model.info.latents:
        raise Problem(
            422, f"latent {shown(latent)} is not one that model {model.id} has, expected {listed(model.info.latents)}"
        )
    return Order(model, model.labels(classes, status), seed, start, count, latent, truncation)
