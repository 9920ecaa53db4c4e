"""How sure a classifier is of each image, how evenly the classes occur. With the FID network: the Inception Score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import rel_entr


@dataclass(frozen=True)
class ClassifierScore:
    """The mean over splits and what it was taken over."""

    value: float
    std: float
    """Standard deviation over the splits (ddof 0, as torch-fidelity)."""
    splits: int


def inception_score(probabilities: np.ndarray, *, splits: int = 10, seed: int = 2020) -> ClassifierScore:
    """exp(E KL(p(y|x) || p(y))), the mean over splits (Salimans et al. 2016). Between 1 and the number of classes.

    p(y) is the mean over the split, so the number grows with the images per split: compare only equal counts and
    splits. Rows are shuffled first, with torch-fidelity's generator and seed, since datasets are often sorted by class.

    Args:
        probabilities: (N, K), each row a distribution over K exclusive classes (a softmax, not sigmoids), N >= splits.
    """
    num_rows = len(probabilities)
    if num_rows < splits:
        raise ValueError(f"{num_rows} rows can't be cut into {splits} splits")
    p = probabilities.astype(np.float64)
    p = p[np.random.RandomState(seed).permutation(num_rows)]
    p /= p.sum(axis=1, keepdims=True)  # float32 sums miss 1 by 1e-7
    parts = (p[i * num_rows // splits : (i + 1) * num_rows // splits] for i in range(splits))
    scores = np.array([_score(part) for part in parts])
    return ClassifierScore(float(scores.mean()), float(scores.std()), splits)


def _score(p: np.ndarray) -> float:
    """exp of the mean Kullback-Leibler divergence (nats) of the rows from their mean; 0 log 0 is 0."""
    return float(np.exp(rel_entr(p, p.mean(axis=0)).sum(axis=1).mean()))
