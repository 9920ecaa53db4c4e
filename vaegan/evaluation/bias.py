"""What the Fréchet distance owes to the number of images: its values at several N, and the limit they point at."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaegan.evaluation.comparison import Comparison, Rows
from vaegan.metrics.extrapolation import PARTS, FrechetCurve, frechet_curve
from vaegan.metrics.intervals import Subsampling, interval, standard_errors

SUBSAMPLING = Subsampling(replicates=16, max_rows=20_000, most=0.9)
"""A curve needs whole sets, of which half would often be too few; nine tenths serve, for a statistic this smooth."""


def bias(comparison: Comparison) -> dict[str, Any]:
    """An entry of metrics.json: points, limit with interval, and the floor's limit; or why there is none."""
    entry: dict[str, Any] = {
        "extractor": comparison.extractor.stamp,
        "label": comparison.label("frechet_distance"),
        "points": [],
        "infinity": None,
        "floor_infinity": None,
        "why_not": why_not(comparison, comparison.real, comparison.synthetic),
    }
    if entry["why_not"] is None:
        curve = frechet_curve(*_features(comparison.real, comparison.synthetic), seed=comparison.seed)
        entry["points"] = [
            {"num_images": n, "value": value, "std": std}
            for n, value, std in zip(curve.counts, curve.distances, curve.spreads, strict=True)
        ]
        entry["infinity"] = _limit(comparison, curve, comparison.real, comparison.synthetic)
        reference, other = comparison.real_pair(np.random.default_rng(comparison.seed))
        if why_not(comparison, reference, other) is None:
            floor = frechet_curve(*_features(reference, other), seed=comparison.seed)
            entry["floor_infinity"] = _limit(comparison, floor, reference, other)
    return entry


def why_not(comparison: Comparison, real: Rows, synthetic: Rows) -> str | None:
    """Why there can be no curve of these rows, in a sentence; None where there can."""
    count, dim = min(len(real), len(synthetic)), comparison.extractor.dim
    needed = int(np.ceil(PARTS[1] * (dim + 1) / SUBSAMPLING.most))
    if count >= needed:
        return None
    return (
        f"{count} images are too few to extrapolate a distance of {dim} features: its halves need full-rank "
        f"covariances, {needed} images in all; the kernel distance has no such bias"
    )


def _limit(comparison: Comparison, curve: FrechetCurve, real: Rows, synthetic: Rows) -> dict[str, Any]:
    errors = standard_errors(
        lambda a, b: {"infinity": frechet_curve(*_features(real.take(a), synthetic.take(b)), draws=1).infinity},
        real.patients,
        synthetic.patients,
        seed=comparison.seed,
        settings=SUBSAMPLING,
    )
    return {
        "value": curve.infinity,
        "interval": interval(curve.infinity, errors["infinity"]),
        "interval_method": SUBSAMPLING.describe(len(real), len(synthetic)),
        "slope": curve.slope,
        "num_images": curve.counts[0],
    }


def _features(*rows: Rows) -> tuple[np.ndarray, ...]:
    return tuple(each.features.features for each in rows)
