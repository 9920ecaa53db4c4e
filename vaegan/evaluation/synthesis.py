"""A model's images to measure, drawn as an evaluation needs them: of the real images' classes, in their proportions."""

from __future__ import annotations

import numpy as np

from cluster.errors import UserError
from vaegan.metrics.sources import ImageSource, source_of
from vaegan.sampler import Sampler


def synthesize(sampler: Sampler, real: ImageSource, count: int, *, seed: int = 0, latent: str = "prior") -> ImageSource:
    """`count` images of a model at indices 0, 1, … of a seed, with the labels of the labelled real images in turn.

    Raises:
        UserError: the model knows a class that the real images lack, has another size, or no such latent source.
    """
    info = sampler.info
    missing = [name for name in info.classes if name not in real.classes]
    if missing:
        raise UserError(
            f"model {info.address_prefix} knows {', '.join(missing)}, the real images "
            f"{', '.join(real.classes) or 'no class'}: a generator is compared with images of its own classes; "
            "give the dataset it was trained on"
        )
    columns = [real.classes.index(name) for name in info.classes]
    known = np.flatnonzero(real.has_label) if columns else np.arange(len(real))
    if not len(known):
        raise UserError(
            f"{real.name} has no labelled image, and model {info.address_prefix} makes images of classes, in the real "
            "ones' proportions: give labelled images"
        )
    labels = real.labels[known[np.arange(count) % len(known)]][:, columns]
    images = sampler.sample(labels, seed, latent=latent)
    return source_of(images, f"{count} samples of {info.address_prefix}, {latent}, seed {seed}", info.classes)
