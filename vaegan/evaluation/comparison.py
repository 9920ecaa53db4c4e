"""Real and synthetic features under one extractor, to the numbers that metrics.json holds of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from vaegan.metrics.auc import Area
from vaegan.metrics.extractor import Extractor, Features
from vaegan.metrics.frechet import Covariance, frechet_distance_of_features, needs_shrinkage
from vaegan.metrics.inception_score import inception_score
from vaegan.metrics.intervals import Subsampling, disjoint_halves, draw_rows, interval, standard_errors
from vaegan.metrics.kernel import kernel_distance
from vaegan.metrics.manifold import manifold_metrics
from vaegan.metrics.two_sample import FOLDS, two_sample_auc

FLOOR_REPEATS = 5
SCORE_SPLITS = 10
IMAGES_PER_SCORE_SPLIT = 100
"""Fewer than that per split, and one split takes all: a score of a few images mostly tells how few they are."""
MAX_NEIGHBOUR_ROWS = 20_000
"""Of either set, for what compares all pairs: the time grows with the square."""
MAX_CLASSIFIER_ROWS = 5_000
"""Of either set, for the two-sample classifier: more rows sharpen it no further on these features."""

Better = Literal["lower", "higher", "as real"]


@dataclass(frozen=True)
class Metric:
    """How a number is called and read."""

    words: str
    published_name: str | None
    """Its name with the FID network; other extractors' numbers never have it."""
    better: Better
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
    "c2st_auc": Metric("Real-or-synthetic AUC", None, "lower", 0, 1),
}


@dataclass(frozen=True)
class Rows:
    """Features of one set and the patient of each."""

    features: Features
    patients: np.ndarray
    """(N,): the unit that each image belongs to."""

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: np.ndarray) -> Rows:
        return Rows(self.features.take(rows), self.patients[rows])

    def at_most(self, count: int, rng: np.random.Generator) -> Rows:
        """All rows in order, or that many drawn from them."""
        return self if len(self) <= count else self.take(draw_rows(len(self), count, rng))


@dataclass(frozen=True)
class Comparison:
    """Real and synthetic features under one extractor."""

    extractor: Extractor
    real: Rows
    synthetic: Rows
    held_out: Rows | None
    """Real images for the floor; None takes two halves of the reference."""
    floor_words: str
    seed: int
    subsampling: Subsampling

    def numbers(self) -> list[dict[str, Any]]:
        """One entry of metrics.json per metric, in the order of `METRICS`."""
        counts = len(self.real), len(self.synthetic)
        auc = self.auc(self.real, self.synthetic)
        values = self.metrics(self.real, self.synthetic) | {"c2st_auc": auc.auc}
        errors = standard_errors(
            lambda a, b: self.metrics(self.real.take(a), self.synthetic.take(b)),
            self.real.patients,
            self.synthetic.patients,
            seed=self.seed,
            settings=self.subsampling,
        ) | {"c2st_auc": auc.standard_error}
        floor, at_floor_n, about_floor = self.floor
        return [
            {
                "metric": name,
                "label": self.label(name),
                "value": values[name],
                "interval": interval(values[name], errors[name], metric.lowest, metric.highest),
                "interval_method": self.interval_method(name),
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

    def metrics(self, real: Rows, synthetic: Rows) -> dict[str, float]:
        """The metrics of some rows, but for the AUC. The classifier score is of the synthetic ones alone."""
        x, y = real.features.features, synthetic.features.features
        rng = np.random.default_rng(self.seed)
        near_x, near_y = (rows.at_most(MAX_NEIGHBOUR_ROWS, rng).features.features for rows in (real, synthetic))
        values = {
            "frechet_distance": frechet_distance_of_features(x, y, covariance=self.covariance),
            "kernel_distance": kernel_distance(x, y, seed=self.seed).value,
            **vars(manifold_metrics(near_x, near_y)),
        }
        probabilities = synthetic.features.probabilities
        if probabilities is not None:
            splits = self.score_splits(len(synthetic))
            values["classifier_score"] = inception_score(probabilities, splits=splits, seed=self.seed).value
        return values

    def auc(self, real: Rows, synthetic: Rows) -> Area:
        """The two-sample classifier's, apart from the others: its standard error comes with it, a refit costs most."""
        rng = np.random.default_rng(self.seed)
        x, y = (rows.at_most(MAX_CLASSIFIER_ROWS, rng) for rows in (real, synthetic))
        return two_sample_auc(
            x.features.features, y.features.features, groups=x.patients, synthetic_groups=y.patients, seed=self.seed
        )

    @staticmethod
    def score_splits(num_synthetic: int) -> int:
        return SCORE_SPLITS if num_synthetic >= SCORE_SPLITS * IMAGES_PER_SCORE_SPLIT else 1

    @cached_property
    def floor(self) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
        """What other real images score in the synthetic ones' place, and the synthetic ones at the same counts.

        Returns:
            the two by metric, means over the repeats; and how they were computed.
        """
        rng = np.random.default_rng(self.seed)
        real_scores: list[dict[str, float]] = []
        synthetic_scores: list[dict[str, float]] = []
        for _ in range(FLOOR_REPEATS):
            reference, other = self.real_pair(rng)
            same_count = self.synthetic.at_most(len(other), rng)
            for scores, rows in ((real_scores, other), (synthetic_scores, same_count)):
                scores.append(self.metrics(reference, rows) | {"c2st_auc": self.auc(reference, rows).auc})
            if self.held_out is not None and len(other) == len(self.held_out) == len(self.synthetic):
                break  # nothing was drawn: a repeat would be the same
        about = {
            "against": self.floor_words,
            "num_reference": len(reference),
            "num_other": len(other),
            "repeats": len(real_scores),
        }
        return _means(real_scores), _means(synthetic_scores), about

    def real_pair(self, rng: np.random.Generator) -> tuple[Rows, Rows]:
        """A reference and other real images, these as many as the synthetic ones or as many as there are."""
        if self.held_out is not None:
            reference, other = self.real, self.held_out
        else:
            first, second = disjoint_halves(rng, self.real.patients)
            reference, other = self.real.take(first), self.real.take(second)
        return reference, other.at_most(len(self.synthetic), rng)

    def label(self, name: str) -> str:
        metric = METRICS[name]
        shrunk = name == "frechet_distance" and self.covariance == "ledoit-wolf"
        if self.extractor.is_fid_network and metric.published_name and not shrunk:
            return metric.published_name
        return f"{metric.words}{' (Ledoit-Wolf covariance)' if shrunk else ''}, {self.extractor.name}"

    def interval_method(self, name: str) -> str:
        """How the interval was made, in words."""
        if name == "c2st_auc":
            return "value +- 1.96 standard errors: DeLong's over patients, with Nadeau & Bengio's correction for folds"
        return self.subsampling.describe(len(self.real), len(self.synthetic))

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
        if name == "c2st_auc":
            drawn = self._drawn(MAX_CLASSIFIER_ROWS)
            return (
                f"linear discriminant, Ledoit-Wolf covariance, {FOLDS} folds by patient, mean of the folds' AUC{drawn}"
            )
        ball = "k = 3, surface inside" if name in ("precision", "recall") else "k = 5, surface outside"
        return ball + self._drawn(MAX_NEIGHBOUR_ROWS)

    def _drawn(self, most: int) -> str:
        return (
            f", of at most {most} images drawn from each set" if max(len(self.real), len(self.synthetic)) > most else ""
        )

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
