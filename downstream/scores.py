"""How good probabilities are: seven scores, per class and as their mean over classes.

Every class is judged one against the rest, whether classes exclude one another or not, so that one definition serves
two exclusive classes, several, and many labels at once. Two exclusive classes are one question asked twice: only the
second (index 1, the *positive* class) is judged, and its scores are also the means. Prepared folders sort their
classes by name; `NORMAL` comes before `PNEUMONIA`, as is usual; where it doesn't, name the folders accordingly.

What needs a threshold (balanced accuracy, F1, sensitivity at 90 % specificity) takes it from the validation split and
applies it to the test split as it is. A class of which the test split has no positive or no negative image has no
score: it is None, and the means leave it out. The same holds for a thresholded score if validation lacks the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss, f1_score, roc_auc_score

METRICS = ("auroc", "auprc", "balanced_accuracy", "f1", "sensitivity_at_90_specificity", "brier", "ece")
LOWER_IS_BETTER = frozenset({"brier", "ece"})
MIN_SPECIFICITY = 0.9
ECE_BINS = 10


def judged_classes(num_classes: int, task: str) -> list[int]:
    """Indices of the classes that are scored: all, or only the second of two exclusive ones."""
    return [1] if task == "multiclass" and num_classes == 2 else list(range(num_classes))


def score(
    test_labels: np.ndarray,
    test_probabilities: np.ndarray,
    val_labels: np.ndarray,
    val_probabilities: np.ndarray,
    *,
    task: str,
    classes: Sequence[str],
) -> dict[str, Any]:
    """All scores of one fitted classifier.

    Args:
        *_labels: (N, K) multi-hot. *_probabilities: (N, K) in [0, 1].

    Returns:
        Each of METRICS as the mean over the judged classes that have it (None if none has), and `per_class`: class
        name to a dictionary of the same, its thresholds and its number of positive test images.
    """
    per_class = {
        classes[k]: score_class(test_labels[:, k], test_probabilities[:, k], val_labels[:, k], val_probabilities[:, k])
        for k in judged_classes(len(classes), task)
    }
    return {metric: _mean(per_class, metric) for metric in METRICS} | {"per_class": per_class}


def score_class(y: np.ndarray, p: np.ndarray, val_y: np.ndarray, val_p: np.ndarray) -> dict[str, float | int | None]:
    """Scores of one class against the rest: y in {0, 1}, p in [0, 1], each (N,); see the module for what is None."""
    result: dict[str, float | int | None] = dict.fromkeys(METRICS)
    result["num_positive"] = int(y.sum())
    if not 0 < y.sum() < len(y):
        return result
    result |= {
        "auroc": float(roc_auc_score(y, p)),
        "auprc": float(average_precision_score(y, p)),
        "brier": float(brier_score_loss(y, p)),
        "ece": expected_calibration_error(y, p),
    }
    if not 0 < val_y.sum() < len(val_y):
        return result
    accuracy_at, f1_at, specific_at = thresholds(val_y, val_p)
    negatives = y == 0
    return result | {
        "balanced_accuracy": float(balanced_accuracy_score(y, p >= accuracy_at)),
        "f1": float(f1_score(y, p >= f1_at)),
        "sensitivity_at_90_specificity": float((p[y == 1] >= specific_at).mean()),
        "specificity_reached": float((p[negatives] < specific_at).mean()),
        "threshold_balanced_accuracy": accuracy_at,
        "threshold_f1": f1_at,
        "threshold_90_specificity": specific_at,
    }


def thresholds(y: np.ndarray, p: np.ndarray) -> tuple[float, float, float]:
    """Where to cut (an image is positive if p >= threshold): for balanced accuracy, for F1, for 90 % specificity.

    The candidates lie half-way between neighbouring probabilities of this (validation) split, so that none of its
    images sits on the edge. The third is the lowest that leaves a specificity of at least 90 %.
    """
    values = np.unique(p.astype(np.float64))
    cuts = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2, [np.nextafter(values[-1], np.inf)]])
    sorted_positives, sorted_negatives = np.sort(p[y == 1]), np.sort(p[y == 0])
    found = len(sorted_positives) - np.searchsorted(sorted_positives, cuts, side="left")  # true positives
    false_alarms = len(sorted_negatives) - np.searchsorted(sorted_negatives, cuts, side="left")
    sensitivity, specificity = found / len(sorted_positives), 1 - false_alarms / len(sorted_negatives)
    f1 = 2 * found / np.maximum(1, found + false_alarms + len(sorted_positives))
    enough = np.flatnonzero(specificity >= MIN_SPECIFICITY)[0]
    return float(cuts[np.argmax(sensitivity + specificity)]), float(cuts[np.argmax(f1)]), float(cuts[enough])


def expected_calibration_error(y: np.ndarray, p: np.ndarray, bins: int = ECE_BINS) -> float:
    """Mean over images of |share of positives - mean probability| in the image's bin; equal-width bins on [0, 1].

    Guo et al. 2017, Eq. 3, for the probability of one class. Biased upwards where bins hold few images: compare
    equal N only.
    """
    bin_of = np.minimum((p * bins).astype(int), bins - 1)
    gap = np.bincount(bin_of, weights=y - p.astype(np.float64), minlength=bins)
    return float(np.abs(gap).sum() / len(y))


def _mean(per_class: Mapping[str, Mapping[str, Any]], metric: str) -> float | None:
    values = [scores[metric] for scores in per_class.values() if scores[metric] is not None]
    return float(np.mean(values)) if values else None
