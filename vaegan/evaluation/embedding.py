"""Feature rows as points on paper: the two main directions of the real images, and t-SNE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.manifold import TSNE

PERPLEXITY = 30.0
ITERATIONS = 500
"""The first 250 pull groups apart; as many again settle 3,000 rows, in a quarter of a minute on one core."""
_START_SPREAD = 1e-4  # of t-SNE's first positions, as van der Maaten's implementation draws them


@dataclass(frozen=True, eq=False)
class Embedding:
    """P feature rows of one extractor in two dimensions, set by set."""

    extractor: str
    sets: np.ndarray
    """str (P,): "real", "synthetic" or "held-out"."""
    classes: np.ndarray
    """str (P,): the class, in words."""
    pca: np.ndarray
    """float64 (P, 2), in units of the features."""
    explained: tuple[float, float]
    """Share of the real rows' variance along either direction."""
    tsne: np.ndarray
    """float64 (P, 2); its units mean nothing."""


def embed(
    extractor: str, features: Mapping[str, np.ndarray], classes: Mapping[str, np.ndarray], seed: int
) -> Embedding:
    """Both maps of some rows.

    Args:
        features: (n, D) of each set by its name, "real" among them.
        classes: str (n,) of each set.
        seed: of t-SNE.
    """
    rows = np.concatenate(list(features.values())).astype(np.float64)
    pca, explained = principal_components(features["real"], rows)
    return Embedding(
        extractor=extractor,
        sets=np.repeat(list(features), [len(part) for part in features.values()]),
        classes=np.concatenate([classes[name] for name in features]),
        pca=pca,
        explained=explained,
        tsne=t_sne(rows, pca, seed),
    )


def principal_components(real: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Rows (P, D) along the two directions in which the real rows (N, D) vary most, as (P, 2); and their shares.

    Fitted on the real rows alone, so that the synthetic ones can't turn the axes. A direction's sign is chosen so that
    its largest entry is positive: an SVD leaves it open.
    """
    centre = real.mean(axis=0, dtype=np.float64)
    _, scales, directions = np.linalg.svd(real.astype(np.float64) - centre, full_matrices=False)
    axes = np.zeros((2, real.shape[1]))  # a single feature has no second direction
    axes[: len(directions[:2])] = directions[:2]
    largest = np.abs(axes).argmax(axis=1)
    axes *= np.where(axes[[0, 1], largest] < 0, -1.0, 1.0)[:, None]
    shares = np.pad(scales**2, (0, 2))[:2] / max(float((scales**2).sum()), np.finfo(float).tiny)
    return (rows - centre) @ axes.T, (float(shares[0]), float(shares[1]))


def t_sne(rows: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE (van der Maaten & Hinton 2008) of rows (P, D) from their principal components (P, 2), as (P, 2)."""
    spread = max(float(start[:, 0].std()), np.finfo(np.float32).tiny)
    first = (start / spread * _START_SPREAD).astype(np.float32)
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    solver = TSNE(perplexity=perplexity, init=first, random_state=seed, max_iter=ITERATIONS, n_jobs=1)
    return solver.fit_transform(rows.astype(np.float32)).astype(np.float64)
