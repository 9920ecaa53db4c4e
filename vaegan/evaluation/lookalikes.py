"""The most alike pairs of images within one set: where a generator repeats itself, it shows here first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vaegan.duplicates import thumbnail
from vaegan.metrics.ms_ssim import WINDOW, ms_ssim

_BLOCK_ROWS = 512
_CANDIDATES = 400
"""Pairs kept of each block, from which those that repeat an image are dropped."""


@dataclass(frozen=True)
class AlikeRows:
    """Two rows of a set, how alike they are."""

    first: int
    second: int
    correlation: float
    """Of the small grey copies, in [-1, 1]."""
    ms_ssim: float | None
    """Of the images themselves; None where they are smaller than its window."""


def most_alike(pixels: np.ndarray, patients: np.ndarray, count: int) -> list[AlikeRows]:
    """Up to `count` pairs with the highest correlation, no image in two of them, the most alike first.

    Args:
        pixels: uint8 (N, H, W, C).
        patients: str (N,); two films of one patient make no pair. "" is a patient not known.
    """
    vectors = _unit_vectors(pixels)
    found: list[tuple[float, int, int]] = []
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS] @ vectors.T
        rows = np.arange(start, start + len(block))
        same = (patients[rows, None] == patients) & (patients != "")
        block[same | (rows[:, None] >= np.arange(len(vectors)))] = -np.inf  # each pair once
        best = np.argsort(-block, axis=None, kind="stable")[:_CANDIDATES]
        found += [(float(block.flat[i]), start + int(i) // len(vectors), int(i) % len(vectors)) for i in best]
    chosen = _without_repeats([pair for pair in found if np.isfinite(pair[0])], count)
    similarities = _ms_ssim(pixels, chosen)
    return [AlikeRows(i, j, min(r, 1.0), s) for (r, i, j), s in zip(chosen, similarities, strict=True)]


def _without_repeats(pairs: list[tuple[float, int, int]], count: int) -> list[tuple[float, int, int]]:
    """The highest pairs whose rows are in no higher one, else a single image would fill the list."""
    chosen: list[tuple[float, int, int]] = []
    seen: set[int] = set()
    for r, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1:])):
        if len(chosen) < count and not seen & {i, j}:
            chosen.append((r, i, j))
            seen |= {i, j}
    return chosen


def _ms_ssim(pixels: np.ndarray, pairs: list[tuple[float, int, int]]) -> list[float | None]:
    if not pairs or min(pixels.shape[1:3]) < WINDOW:
        return [None] * len(pairs)
    return [float(s) for s in ms_ssim(pixels[[i for _, i, _ in pairs]], pixels[[j for _, _, j in pairs]])]


def _unit_vectors(pixels: np.ndarray) -> np.ndarray:
    """Rows (N, 32² + 1) whose products are correlations of thumbnails: shape and shading count, noise doesn't.

    Images of one value are alike and unlike all others.
    """
    grey = np.stack([thumbnail(image) for image in pixels]).reshape(len(pixels), -1).astype(np.float64)
    centred = grey - grey.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    flat = norms < 1e-9
    return np.concatenate([centred / np.where(flat, 1, norms), flat], axis=1)
