"""Can a classifier tell real from synthetic? The area under its ROC curve, .5 where it can't."""

from __future__ import annotations

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from vaegan.metrics.auc import Area, area

FOLDS = 5


def two_sample_auc(
    real: np.ndarray,
    synthetic: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    synthetic_groups: np.ndarray | None = None,
    seed: int = 0,
    folds: int = FOLDS,
) -> Area:
    """Classifier two-sample test (Lopez-Paz & Oquab 2017): cross-validated AUC of a linear discriminant.

    The discriminant shrinks its covariance as Ledoit & Wolf do, so it has nothing to tune and works with fewer rows
    than features. Linear on a deep network's features: what it can't see may still be there; what it sees is there.
    The AUC is each fold's own, then the mean: scores of different folds have different offsets, and ranking them
    together comes out below .5 where there is no difference. Folds share training rows, so the mean's variance is
    more than that of independent folds; the standard error has Nadeau & Bengio's correction (2003), which fits where
    there is no difference and is too wide where it is plain.

    Args:
        real, synthetic: (N, D) and (M, D), at least `folds` of each.
        groups, synthetic_groups: (N,), (M,): patient of each row; None where every row is on its own. A patient's rows
            share a fold, so that none is recognised by its other films.
    """
    if min(len(real), len(synthetic)) < folds:
        raise ValueError(f"{len(real)} real and {len(synthetic)} synthetic rows: {folds} folds need one each at least")
    rng = np.random.default_rng(seed)
    x = np.concatenate([real, synthetic]).astype(np.float64)
    is_synthetic = np.arange(len(x)) >= len(real)
    groups = np.arange(len(real)) if groups is None else groups
    synthetic_groups = np.arange(len(synthetic)) if synthetic_groups is None else synthetic_groups
    patients = np.concatenate([_numbers(groups), -1 - _numbers(synthetic_groups)])
    fold = np.concatenate([_folds(groups, folds, rng), _folds(synthetic_groups, folds, rng)])
    areas = []
    for number in range(folds):
        out = fold == number
        classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5])
        classifier.fit(x[~out], is_synthetic[~out])
        scores = classifier.decision_function(x)
        sides = (out & is_synthetic, out & ~is_synthetic)
        areas.append(area(*(scores[side] for side in sides), *(patients[side] for side in sides)))
    independent = sum(each.standard_error**2 for each in areas) / folds**2
    error = np.sqrt(independent * (1 + folds / (folds - 1)))
    return Area(float(np.mean([each.auc for each in areas])), float(error))


def _folds(groups: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Fold of each row, (N,): groups in random order, each to the fold that has the fewest rows so far."""
    group_of_row = _numbers(groups)
    sizes = np.bincount(group_of_row)
    fold_of_group = np.empty(len(sizes), int)
    counts = np.zeros(folds, int)
    for group in rng.permutation(len(sizes)):
        fold_of_group[group] = counts.argmin()
        counts[counts.argmin()] += sizes[group]
    return fold_of_group[group_of_row]


def _numbers(groups: np.ndarray) -> np.ndarray:
    """Groups numbered as they first occur, (N,): what they are called must not decide on their fold."""
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    return first.argsort().argsort()[number]
