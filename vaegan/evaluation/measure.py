"""Two sets of images, and any number of extractors, to the content of metrics.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cluster.errors import UserError
from cluster.provenance import provenance
from vaegan.evaluation.comparison import Comparison
from vaegan.metrics.extractor import Extractor
from vaegan.metrics.intervals import DEFAULT, Subsampling
from vaegan.shards import Images

FORMAT_VERSION = 1
MIN_IMAGES = 24
"""On either side: half of a half must still hold more than five neighbours."""
MIN_HELD_OUT = 100
"""A held-out split below it says less than two halves of the reference do."""

Progress = Callable[[str], None]


def evaluate_images(
    real: Images,
    synthetic: Images,
    extractors: Sequence[Extractor],
    *,
    held_out: Images | None = None,
    seed: int = 2020,
    subsampling: Subsampling = DEFAULT,
    batch_size: int = 32,
    inputs: dict[str, str] | None = None,
    progress: Progress = lambda _line: None,
) -> dict[str, Any]:
    """The content of metrics.json: all metrics of `METRICS` under each extractor.

    Args:
        real: the reference. held_out: real images the generator has not seen, for the floor; None, or fewer than
            `MIN_HELD_OUT`, takes two halves of the reference.
        inputs: name of each thing read, to its sha256, for the provenance.

    Raises:
        UserError: too few images, or images of two different shapes.
    """
    started_s = time.time()
    _check(real, synthetic, held_out)
    unseen = None if held_out is None or len(held_out) < MIN_HELD_OUT else held_out
    numbers = []
    for extractor in extractors:
        progress(f"{extractor.name}: features of {len(real)} real and {len(synthetic)} synthetic images")
        comparison = Comparison(
            extractor,
            extractor.features(real.pixels, batch_size),
            extractor.features(synthetic.pixels, batch_size),
            None if unseen is None else extractor.features(unseen.pixels, batch_size),
            _floor_words(held_out, unseen),
            patients(real),
            seed,
            subsampling,
        )
        progress(f"{extractor.name}: metrics")
        numbers += comparison.numbers()
    return {
        "format": FORMAT_VERSION,
        "numbers": numbers,
        "provenance": provenance(seed=seed, started_s=started_s, inputs=inputs or {}),
    }


def patients(images: Images) -> np.ndarray:
    """The unit each row belongs to, for drawing: its patient; the row itself where patients are unknown or too few."""
    ids = np.array([patient or f"\0{row}" for row, patient in enumerate(images.patient_id)], dtype=str)
    return ids if len(np.unique(ids)) >= MIN_IMAGES else np.arange(len(images)).astype(str)


def _check(real: Images, synthetic: Images, held_out: Images | None) -> None:
    for name, images in {"real": real, "synthetic": synthetic}.items():
        if len(images) < MIN_IMAGES:
            raise UserError(
                f"{len(images)} {name} images: no metric means anything below {MIN_IMAGES}; sample or import more"
            )
    for name, others in {"synthetic": synthetic, "held-out": held_out}.items():
        if others is not None and others.pixels.shape[1:] != real.pixels.shape[1:]:
            raise UserError(
                f"the real images are {_shape(real)} and the {name} ones {_shape(others)} (height x width x channels): "
                "a difference in size would be measured as a difference in quality; prepare both alike"
            )


def _shape(images: Images) -> str:
    return "x".join(map(str, images.pixels.shape[1:]))


def _floor_words(offered: Images | None, used: Images | None) -> str:
    if used is not None:
        return "held-out real images against the whole reference"
    halves = "two halves of the reference that share no patient"
    return halves if offered is None else f"{halves} (the {len(offered)} held-out images are fewer than {MIN_HELD_OUT})"
