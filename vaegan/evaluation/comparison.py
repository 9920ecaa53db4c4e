"""Real and synthetic features under one extractor, to the numbers that metrics.json holds of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaegan.metrics.extractor import Extractor, Features
from vaegan.metrics.frechet import Covariance, frechet_distance_of_features, needs_shrinkage
from vaegan.metrics.inception_score import inception_score
from vaegan.metrics.intervals import Subsampling, disjoint_halves, interval, standard_errors
from vaegan.metrics.kernel import kernel_distance
from vaegan.metrics.manifold import manifold_metrics

FLOOR_REPEATS = 5
SCORE_SPLITS = 10
IMAGES_PER_SCORE_SPLIT = 100
"""Fewer than that per split, and one split takes all: a score of a few images mostly tells how few they are."""


@dataclass(frozen=True)
class Metric:
    """How a number is called and read."""

    words: str
    published_name: str | None
    """Its name with the FID network; other extractors' numbers never have it."""
    better: str
    lowest: float = -math.inf
    highest: float = math.inf


METRICS = {
    "frechet_distance": Metric("Fréchet distance", "FID", "lower", lowest=0),
    "kernel_distance": Metric("Kernel distance", "KID", "lower"),
    "classifier_score": Metric("Classifier score", "Inception Score", "higher", lowest=1),
    "precision": Metric("Precision", None, "higher", 0, 1),
    "recall": Metric("Recall", None, "higher", 0, 1),
    "density": Metric("Density", None, "higher", lowest=0),
    "coverage": Metric("Coverage", None, "higher", 0, 1),
}


@dataclass(frozen=True)
class Comparison:
    """Real and synthetic features under one extractor."""

    extractor: Extractor
    real: Features
    synthetic: Features
    held_out: Features | None
    """Real images for the floor; None takes two halves of the reference."""
    floor_words: str
    patients: np.ndarray
    """(N,): the unit that each real image belongs to."""
    seed: int
    subsampling: Subsampling

    def numbers(self) -> list[dict[str, Any]]:
        """One entry of metrics.json per metric, in the order of `METRICS`."""
        values = self.metrics(self.real, self.synthetic)
        errors = standard_errors(
            lambda a, b: self.metrics(self.real.take(a), self.synthetic.take(b)),
            self.patients,
            np.arange(len(self.synthetic)),
            seed=self.seed,
            settings=self.subsampling,
        )
        floor, at_floor_n, about_floor = self.floor()
        counts = len(self.real), len(self.synthetic)
        return [
            {
                "metric": name,
                "label": self.label(name),
                "value": values[name],
                "interval": interval(values[name], errors[name], metric.lowest, metric.highest),
                "interval_method": self.subsampling.describe(*counts),
                "better": metric.better,
                "floor": floor[name],
                "value_at_floor_n": at_floor_n[name],
                "floor_detail": about_floor,
                "extractor": self.extractor.stamp,
                "settings": self.settings(name),
                "num_real": counts[0],
                "num_synthetic": counts[1],
                "warning": self.warning(name),
            }
            for name, metric in METRICS.items()
            if name in values
        ]

    @property
    def covariance(self) -> Covariance:
        """One estimator for the number, its interval and its floor, chosen by the number's own counts."""
        fewest = min(len(self.real), len(self.synthetic))
        return "ledoit-wolf" if needs_shrinkage(fewest, self.extractor.dim) else "sample"

    def metrics(self, real: Features, synthetic: Features) -> dict[str, float]:
        """All metrics of some rows. The classifier score is of the synthetic ones alone."""
        x, y = real.features, synthetic.features
        values = {
            "frechet_distance": frechet_distance_of_features(x, y, covariance=self.covariance),
            "kernel_distance": kernel_distance(x, y, seed=self.seed).value,
            **vars(manifold_metrics(x, y)),
        }
        if synthetic.probabilities is not None:
            splits = self.score_splits(len(synthetic))
            values["classifier_score"] = inception_score(synthetic.probabilities, splits=splits, seed=self.seed).value
        return values

    @staticmethod
    def score_splits(num_synthetic: int) -> int:
        return SCORE_SPLITS if num_synthetic >= SCORE_SPLITS * IMAGES_PER_SCORE_SPLIT else 1

    def floor(self) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
        """What other real images score in the synthetic ones' place, and the synthetic ones at the same counts.

        Returns:
            the two by metric, means over the repeats; and how they were computed.
        """
        rng = np.random.default_rng(self.seed)
        real_scores, synthetic_scores = [], []
        for _ in range(FLOOR_REPEATS):
            reference, other = self._real_pair(rng)
            same_count = rng.choice(len(self.synthetic), len(other), replace=False)
            real_scores.append(self.metrics(reference, other))
            synthetic_scores.append(self.metrics(reference, self.synthetic.take(np.sort(same_count))))
            if self.held_out is not None and len(other) == len(self.held_out) == len(self.synthetic):
                break  # nothing was drawn: a repeat would be the same
        about = {
            "against": self.floor_words,
            "num_reference": len(reference),
            "num_other": len(other),
            "repeats": len(real_scores),
        }
        return _means(real_scores), _means(synthetic_scores), about

    def _real_pair(self, rng: np.random.Generator) -> tuple[Features, Features]:
        """A reference and other real images, these as many as the synthetic ones or as many as there are."""
        if self.held_out is not None:
            reference, other = self.real, self.held_out
        else:
            first, second = disjoint_halves(rng, self.patients)
            reference, other = self.real.take(first), self.real.take(second)
        count = min(len(other), len(self.synthetic))
        return reference, other.take(np.sort(rng.choice(len(other), count, replace=False)))

    def label(self, name: str) -> str:
        metric = METRICS[name]
        shrunk = name == "frechet_distance" and self.covariance == "ledoit-wolf"
        if self.extractor.is_fid_network and metric.published_name and not shrunk:
            return metric.published_name
        return f"{metric.words}{' (Ledoit-Wolf covariance)' if shrunk else ''}, {self.extractor.name}"

    def settings(self, name: str) -> str:
        """What else moves the number, in words."""
        if name == "frechet_distance":
            return f"{self.covariance} covariance, divided by N - 1"
        if name == "kernel_distance":
            size = min(1000, len(self.real), len(self.synthetic))
            whole = size == len(self.real) == len(self.synthetic)
            subsets = "the whole sets" if whole else f"100 subsets of {size}"
            return f"cubic polynomial kernel, unbiased, {subsets}"
        if name == "classifier_score":
            splits = self.score_splits(len(self.synthetic))
            return f"{splits} {'split' if splits == 1 else 'splits'}"
        return "k = 3, surface inside" if name in ("precision", "recall") else "k = 5, surface outside"

    def warning(self, name: str) -> str | None:
        found = []
        if name == "frechet_distance" and self.covariance == "ledoit-wolf":
            fewest = min(len(self.real), len(self.synthetic))
            found.append(
                f"{fewest} images are fewer than {self.extractor.dim} features + 1, so a sample covariance is singular "
                "and this is the distance of shrunk ones, comparable with its floor only: trust the kernel distance"
            )
        if self.extractor.trained_on_reference and self.held_out is None:
            found.append(
                "the extractor was trained on the reference and the floor has no image it hasn't seen, so the floor is "
                "too good: give held-out real images"
            )
        return "; ".join(found) or None


def _means(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
