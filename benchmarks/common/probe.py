"""Logistic regression on frozen features with few labelled films."""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

STRENGTHS = np.logspace(-2, 5, 8)
"""Inverse strengths of the L2 penalty to choose among, for features whose mean squared norm is 1."""
FOLDS = 5
PER_CLASS = 2  # patients that a labelled set has of each class, or nothing can be cross-validated


def scaled(unlabelled: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Features (N, D) and others, less the first one's mean and over its root mean squared norm; float64.

    One number for all dimensions: dividing each by its own spread would blow up those that say nothing.
    """
    mean = unlabelled.mean(axis=0, dtype=np.float64)
    norm = np.sqrt(np.square(unlabelled - mean).sum(axis=1).mean())
    return [(values - mean) / norm for values in (unlabelled, *others)]


def labelled_set(positive: np.ndarray, patients: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of `count` films at random, drawn again until each class has films of `PER_CLASS` patients."""
    while True:
        rows = rng.choice(len(positive), count, replace=False)
        if min(len(set(patients[rows][positive[rows] == side])) for side in (False, True)) >= PER_CLASS:
            return rows


def probe(features: np.ndarray, positive: np.ndarray, patients: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Log odds (M,) of held-out features (M, D) by a logistic regression on labelled ones (N, D).

    The penalty is the one with the best log loss in cross-validation among the labelled films, patients kept together.
    Where there are more dimensions than films, the films' own span replaces them, which changes no solution of a
    penalised regression and saves most of its time.
    """
    if features.shape[1] > len(features):
        basis = np.linalg.svd(features, full_matrices=False)[2]
        features, held_out = features @ basis.T, held_out @ basis.T
    folds = _folds(positive, patients)
    losses = np.zeros(len(STRENGTHS))
    for fit, check in folds:
        losses += [_log_loss(odds, positive[check]) for odds in _path(features[fit], positive[fit], features[check])]
    best = int(losses.argmin())
    return _path(features, positive, held_out, STRENGTHS[: best + 1])[-1]


def _folds(positive: np.ndarray, patients: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit and rows to check, with both classes in each part that is fitted."""
    rarest = min(len(set(patients[positive == side])) for side in (False, True))
    splitter = StratifiedGroupKFold(min(FOLDS, rarest), shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a class has fewer films than there are folds
        folds = list(splitter.split(positive, positive, patients))
    return [(fit, check) for fit, check in folds if len(set(positive[fit])) == 2 and len(check)]


def _path(
    features: np.ndarray, positive: np.ndarray, others: np.ndarray, strengths: Sequence[float] | np.ndarray = STRENGTHS
) -> list[np.ndarray]:
    """Log odds of others (M,) for each strength of the penalty; each fit starts from the one before."""
    model = LogisticRegression(warm_start=True, max_iter=500)
    found = []
    for strength in strengths:
        model.C = strength
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of nearly no penalty, which is one choice of many
            model.fit(features, positive)
        found.append(model.decision_function(others))
    return found


def _log_loss(odds: np.ndarray, positive: np.ndarray) -> float:
    return float(np.logaddexp(0, np.where(positive, -odds, odds)).sum())
