"""The area under a ROC curve with its standard error where scores come in clusters, such as films of one patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class Area:
    """An estimate of P(a positive's score exceeds a negative's), ties half."""

    auc: float
    standard_error: float
    """0 where scores part perfectly or each side has one cluster: then it says nothing."""


def area(
    positives: np.ndarray,
    negatives: np.ndarray,
    positive_groups: np.ndarray | None = None,
    negative_groups: np.ndarray | None = None,
) -> Area:
    """AUC and its standard error by the structural components of DeLong et al. 1988, summed over clusters.

    Obuchowski 1997: rows of a cluster are correlated, clusters are not; a cluster may hold positives and negatives.
    With one row a cluster it is DeLong's.

    Args:
        positives, negatives: scores (P,) and (N,), at least one each.
        positive_groups, negative_groups: the cluster of each; None takes every row for its own.
    """
    num_positive, num_negative = len(positives), len(negatives)
    ranks = rankdata(np.concatenate([positives, negatives]))
    wins = ranks[:num_positive] - rankdata(positives)  # negatives below each positive, ties half
    losses = num_positive - (ranks[num_positive:] - rankdata(negatives))  # positives above each negative
    auc = wins.sum() / (num_positive * num_negative)
    if positive_groups is None:
        positive_groups = np.array([f"\0positive {row}" for row in range(num_positive)])
    if negative_groups is None:
        negative_groups = np.array([f"\0negative {row}" for row in range(num_negative)])
    groups = np.concatenate([positive_groups.astype(str), negative_groups.astype(str)])
    _, cluster = np.unique(groups, return_inverse=True)
    of_positives, of_negatives = cluster[:num_positive], cluster[num_positive:]
    num_clusters = cluster.max() + 1
    excess_positives = np.bincount(of_positives, wins / num_negative - auc, num_clusters) / num_positive
    excess_negatives = np.bincount(of_negatives, losses / num_positive - auc, num_clusters) / num_negative
    positive_clusters, negative_clusters = len(np.unique(of_positives)), len(np.unique(of_negatives))
    variance = (
        _unbiased(positive_clusters) * (excess_positives**2).sum()
        + _unbiased(negative_clusters) * (excess_negatives**2).sum()
        + 2 * _unbiased(num_clusters) * (excess_positives * excess_negatives).sum()
    )
    return Area(float(auc), float(np.sqrt(max(variance, 0.0))))


def _unbiased(clusters: int) -> float:
    return clusters / (clusters - 1) if clusters > 1 else 0.0
