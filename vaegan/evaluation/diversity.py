"""How varied a set is by its pixels: mean MS-SSIM of its pairs, beside the real images' own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vaegan.metrics.intervals import interval
from vaegan.metrics.ms_ssim import draw_pairs, pair_similarities, scale_weights
from vaegan.metrics.sources import ImageSource

MAX_PAIRS = 500
"""Of either set: a standard error of a fiftieth of the pairs' spread and better."""
MIN_PAIRS = 8


@dataclass(frozen=True)
class Similarities:
    """Pairs of one set and how alike each is."""

    pairs: np.ndarray
    """Row numbers (P, 2)."""
    values: np.ndarray
    """MS-SSIM (P,)."""


def similarities(source: ImageSource, patients: np.ndarray, seed: int) -> Similarities:
    """MS-SSIM of random pairs of a set: of one class, of two patients, no image twice, none without a label."""
    known = np.flatnonzero(source.has_label)
    pairs = known[draw_pairs(source.labels[known], patients[known], MAX_PAIRS, seed)]
    return Similarities(pairs, pair_similarities(source.pixels, pairs))


def diversity(real: Similarities, synthetic: Similarities, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """The entry of metrics.json, in a list; no entry where a class has too few images for pairs.

    Args:
        shape: (H, W, C) of the images.
    """
    if min(len(real.values), len(synthetic.values)) < MIN_PAIRS:
        return []
    height, width, channels = shape
    value, floor = float(synthetic.values.mean()), float(real.values.mean())
    error = float(synthetic.values.std(ddof=1) / np.sqrt(len(synthetic.values)))
    scales = len(scale_weights(min(height, width)))
    return [
        {
            "metric": "ms_ssim",
            "label": "MS-SSIM of pairs, pixels",
            "value": value,
            "interval": interval(value, error, 0, 1),
            "interval_method": "value +- 1.96 standard errors of independent pairs",
            "better": "as real",
            "floor": floor,
            "value_at_floor_n": value,
            "floor_detail": {
                "against": "the real images' own pairs",
                "num_reference": len(real.values),
                "num_other": len(synthetic.values),
                "repeats": 1,
            },
            "extractor": {
                "name": "pixels",
                "layer": "none",
                "weights_sha256": "none",
                "resize": f"none ({height}x{width} as stored)",
                "dim": height * width * channels,
            },
            "settings": f"{scales} scales, pairs within a class and of two patients, {len(synthetic.values)} of them",
            "num_real": 2 * len(real.values),
            "num_synthetic": 2 * len(synthetic.values),
            "warning": None,
        }
    ]
