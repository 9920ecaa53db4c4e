"""Names and sentences of the report: numbers in, words out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# passed on under these names: the report's other files ask this one for every word
from vaegan.webpage.words import counted as counted
from vaegan.webpage.words import duration as duration
from vaegan.webpage.words import joined as joined
from vaegan.webpage.words import magnitude as magnitude
from vaegan.webpage.words import moment as moment
from vaegan.webpage.words import number as number
from vaegan.webpage.words import percent as percent

ARMS: dict[str, tuple[str, str]] = {
    "real": ("Real only", "the real training images as they are"),
    "class_weights": ("Class weights", "the real images, a rare class weighing as much as a common one in the loss"),
    "duplicate_real": (
        "Duplicate real",
        "the real images and as many repeats of them as the synthetic arm has synthetic images, with the same labels: "
        "nothing but the newness of the pixels sets the two apart",
    ),
    "classical": ("Classical augmentation", "the real images, each changed at random whenever it is shown"),
    "synthetic": ("Real + synthetic", "the real images and the generator's images"),
    "classical_synthetic": (
        "Classical + synthetic",
        "the real and the generator's images, each changed at random whenever it is shown",
    ),
    "synthetic_only": (
        "Synthetic only",
        "the generator's images and no real one; tested on real images like every arm (train synthetic, test real)",
    ),
}
"""Name and definition of each arm."""

METRICS: dict[str, tuple[str, str]] = {
    "auroc": ("AUROC", "area under the receiver operating characteristic; 0.5 is guessing, 1 is perfect"),
    "auprc": ("AUPRC", "area under the precision-recall curve (average precision); guessing gives the class's share"),
    "balanced_accuracy": ("Balanced accuracy", "mean of the classes' sensitivities at the chosen threshold"),
    "f1": ("F1", "harmonic mean of precision and sensitivity at the chosen threshold"),
    "sensitivity_at_90_specificity": ("Sens. at 90 % spec.", "sensitivity where the specificity is 90 %"),
    "brier": ("Brier", "mean squared error of the probabilities; lower is better"),
    "ece": ("ECE", "expected calibration error of the probabilities; lower is better"),
}
"""Name and explanation of each score, in the order of the tables."""

LOWER_IS_BETTER = frozenset({"brier", "ece"})

CLASSIFIERS = {
    "small_cnn": "Small CNN",
    "resnet18": "ResNet-18",
    "logistic": "Logistic regression on features",
    "logistic_regression": "Logistic regression on features",
}

HEADLINES = {
    "helps": "Synthetic images help",
    "no evidence": "No evidence that synthetic images help",
    "harms": "Synthetic images harm",
}

FEW_SEEDS, FEW_GENERATORS, FEW_PATIENTS, FEW_POSITIVES, COARSE = 5, 3, 100, 20, 0.05
"""Below these counts (and above this detectable effect, in AUROC) the page adds a caution."""


def arm_name(arm: str) -> str:
    return ARMS[arm][0] if arm in ARMS else arm.replace("_", " ")


def arm_definition(arm: str) -> str:
    return ARMS[arm][1] if arm in ARMS else "described in the documentation of downstream.arms"


def metric_name(metric: str) -> str:
    return METRICS[metric][0] if metric in METRICS else metric.replace("_", " ")


def classifier_name(classifier: str) -> str:
    return CLASSIFIERS.get(classifier, classifier)


def signed(value: float | None, digits: int = 3) -> str:
    """A gain, always with its sign: "+0.031", "−0.004"."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def interval(ends: Sequence[float] | None, digits: int = 3) -> str:
    """ "−0.004 to +0.052"; a dash where there is no interval."""
    return "–" if ends is None else f"{signed(ends[0], digits)} to {signed(ends[1], digits)}"


def plain_sentence(directions: dict[str, str], gains: dict[str, dict[str, Any]], metric: str, images: str) -> str:
    """What the primary comparison means, for a reader who knows the patients and not the statistics.

    Args:
        directions: "better", "unclear" or "worse" against each baseline, `real` and `duplicate_real`.
        gains: the gain dictionaries (value, minimum_detectable_effect) for the same two.
        metric: its name. images: how many real training images there were, in words.
    """
    real, repeats = directions["real"], directions["duplicate_real"]
    by = {against: signed(gain["value"]) for against, gain in gains.items()}
    start = f"With {images}, a classifier that was also given the generator's images"
    if real == repeats == "better":
        return (
            f"{start} did better on test patients than one given the real images alone ({by['real']} {metric}) and "
            f"than one given as many repeats of them ({by['duplicate_real']}), by more than the luck of seeds and "
            f"patients explains."
        )
    if real == repeats == "worse":
        return (
            f"{start} did worse on test patients than one given the real images alone ({by['real']} {metric}) and than "
            f"one given as many repeats of them ({by['duplicate_real']}): don't train one like it on these images."
        )
    if real == repeats == "unclear":
        return (
            f"{start} did neither clearly better nor clearly worse on test patients than one given the real images "
            f"alone ({by['real']} {metric}) or as many repeats of them ({by['duplicate_real']}): no reason to use the "
            f"generator's images here, and no proof that they can't help, since a true gain below about "
            f"{number(max(gain['minimum_detectable_effect'] for gain in gains.values()))} would mostly go unseen."
        )
    return (
        f"{start} did {COMPARED[real]} one given the real images alone ({by['real']} {metric}) {_but(real, repeats)} "
        f"{COMPARED[repeats]} one given as many repeats of them ({by['duplicate_real']}): {MIXED[real, repeats]}."
    )


COMPARED = {"better": "better than", "worse": "worse than", "unclear": "neither clearly better nor worse than"}

MIXED = {
    ("better", "unclear"): "what helped may be the number of rows, not what the generator draws; repeats cost nothing",
    ("better", "worse"): "repeating the real images is cheaper and did more",
    ("unclear", "better"): "no reason yet to prefer it to the real images alone",
    ("unclear", "worse"): "nothing is gained over the real images alone, and repeating them did more",
    ("worse", "better"): "more rows harmed, repeated ones still more; keep the real images as they are",
    ("worse", "unclear"): "more rows of either kind did not help; keep the real images as they are",
}
"""What to make of a primary comparison whose two halves disagree; the verdict is then "no evidence"."""


def _but(real: str, repeats: str) -> str:
    return "but" if "better" in (real, repeats) else "and"


def pairs_sentence(gain: float, metric: str) -> str | None:
    """An AUROC gain as ranked pairs, which is what AUROC counts; None for other metrics."""
    if metric != "auroc":
        return None
    more = "more" if gain >= 0 else "fewer"
    return (
        f"{signed(gain)} AUROC over the real images alone means: of 1,000 pairs of one image with a finding and one "
        f"without, {abs(1000 * gain):.0f} {more} are put in the right order."
    )
