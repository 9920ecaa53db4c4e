"""Distances between two sets of feature rows, block by block: memory grows with N + M, not N x M."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_BLOCK_ENTRIES = 4_000_000  # of a distance matrix held at a time: 32 MB
_SAME_POINT = 1e-12
"""Squared distances below this share of the squared norms are rounding, not distance: duplicates are at 0 exactly."""
_SPARE = 8  # candidates beyond k that float32 proposes, so that its rounding rarely decides
_COLUMNS = 65_536  # of y at a time in `nearest`


def squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared Euclidean distances of all pairs, block by block: yields rows of x and their (rows, len(y)) distances."""
    norms_x, norms_y = (x * x).sum(axis=1), (y * y).sum(axis=1)
    step = max(1, _BLOCK_ENTRIES // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        norms = norms_x[rows, None] + norms_y
        distances = norms - 2 * (x[rows] @ y.T)
        distances[distances < _SAME_POINT * norms] = 0.0
        yield rows, distances


def neighbour_distances(features: np.ndarray, neighbours: tuple[int, ...]) -> np.ndarray:
    """Squared distances to the k-th nearest other row, for each k: (N, D) -> (N, len(neighbours))."""
    result = np.empty((len(features), len(neighbours)))
    ranks = list(neighbours)  # rank 0 is the row itself, at distance 0
    for rows, distances in squared_distances(features, features):
        result[rows] = np.partition(distances, ranks, axis=1)[:, ranks]
    return result


@dataclass(frozen=True)
class Neighbours:
    """The k nearest rows of y for each row of x, nearest first; of equally near ones the earlier row comes first."""

    rows: np.ndarray
    """(N, k) int64: row numbers in y; -1 where y has fewer rows that count."""
    distances: np.ndarray
    """(N, k) float64, Euclidean (not squared); infinite where there is no row."""


def nearest(
    x: np.ndarray,
    y: np.ndarray,
    k: int = 1,
    *,
    groups_x: np.ndarray | None = None,
    groups_y: np.ndarray | None = None,
) -> Neighbours:
    """The k nearest rows of y, Euclidean, for each row of x.

    Float32 matrix products propose candidates, in under half the time and memory of float64 ones; float64
    differences of these few decide. A row whose candidates float32 can't tell from the rest, by the bound on its
    rounding, is done again in float64 throughout, so the answer is the brute-force one. A row of x depends on no other
    row of x.

    Args:
        x, y: (N, D) and (M, D), any float type.
        groups_x, groups_y: numbers (N,), (M,), such as patients: a row of y in the group of x's row doesn't count.
    """
    assert (groups_x is None) == (groups_y is None)
    centre = y.mean(axis=0, dtype=np.float64).astype(np.float32)  # distances stay, rounding shrinks with the norms
    x32, y32 = ((rows - centre).astype(np.float32, copy=False) for rows in (x, y))
    norms_x, norms_y = _squared_norms(x32), _squared_norms(y32)
    # |fl(x.y) - x.y| <= D u |x||y| with u = 2^-24, twice that in the distance; the casts add a few u of the norms
    rounding = (x.shape[1] + 8) * 2.0**-23
    rows = np.full((len(x), k), -1, np.int64)
    distances = np.full((len(x), k), np.inf)
    step = max(1, _BLOCK_ENTRIES // min(len(y), _COLUMNS))
    for start in range(0, len(x), step):
        block = slice(start, start + step)
        own = None if groups_x is None else (groups_x[block], groups_y)
        proposed, limit = _propose(x32[block], y32, norms_x[block], norms_y, k + _SPARE, own)
        for i, (candidates, furthest) in enumerate(zip(proposed, limit, strict=True), start):
            found, exact = _exact(x[i], y, candidates[candidates >= 0], k)
            slack = rounding * (norms_x[i] + norms_y.max())
            if np.isfinite(furthest) and exact[-1] ** 2 >= furthest - slack:
                others = np.arange(len(y)) if groups_x is None else np.flatnonzero(groups_y != groups_x[i])
                found, exact = _exact(x[i], y, others, k)
            rows[i, : len(found)], distances[i, : len(found)] = found, exact
    return Neighbours(rows, distances)


def nearest_in_subsets(x: np.ndarray, y: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """Distance from each row of x to the nearest row of y inside each subset: (S, N), float64, Euclidean.

    Args:
        x, y: (N, D) and (M, D). subsets: bool (S, M), each with at least one row.
    """
    used = subsets.any(axis=0)
    y, subsets = y[used].astype(np.float64), subsets[:, used]
    centre = y.mean(axis=0)
    result = np.empty((len(subsets), len(x)))
    columns = [np.flatnonzero(subset) for subset in subsets]
    for rows, distances in squared_distances(x - centre, y - centre):
        for s, chosen in enumerate(columns):
            result[s, rows] = distances[:, chosen].min(axis=1)
    return np.sqrt(result)


def _propose(
    x: np.ndarray,
    y: np.ndarray,
    norms_x: np.ndarray,
    norms_y: np.ndarray,
    count: int,
    groups: tuple[np.ndarray, np.ndarray | None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest rows of y by float32, in any order, and the squared distance of the furthest of them.

    The distance is infinite where all rows that count are among them.
    """
    best = np.full((len(x), 0), np.inf, np.float32)
    where = np.full((len(x), 0), -1, np.int64)
    for start in range(0, len(y), _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        squared = norms_x[:, None] + norms_y[columns] - 2 * (x @ y[columns].T)
        if groups is not None and groups[1] is not None:
            squared[groups[0][:, None] == groups[1][columns]] = np.inf
        here = _smallest(squared, count)
        best = np.concatenate([best, np.take_along_axis(squared, here, 1)], axis=1)
        where = np.concatenate([where, here + start], axis=1)
        kept = _smallest(best, count)
        best, where = np.take_along_axis(best, kept, 1), np.take_along_axis(where, kept, 1)
    where[~np.isfinite(best)] = -1
    complete = len(y) <= count
    return where, np.full(len(x), np.inf) if complete else best.max(axis=1).astype(np.float64)


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Columns of the `count` smallest values of each row, or of all of them, in any order."""
    if values.shape[1] <= count:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.argpartition(values, count - 1, axis=1)[:, :count]


def _exact(point: np.ndarray, y: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the candidates by float64 differences, nearest first, ties by row number."""
    difference = y[candidates].astype(np.float64) - point
    distances = np.sqrt((difference * difference).sum(axis=1))
    order = np.lexsort((candidates, distances))[:k]
    return candidates[order], distances[order]


def _squared_norms(x: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", x, x)
