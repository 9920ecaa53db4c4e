"""The way from one latent to another."""

import numpy as np


def interpolate(a: np.ndarray, b: np.ndarray, at: np.ndarray, *, spherical: bool) -> np.ndarray:
    """Latents (N, D), float32, on the way from a to b, row by row; exactly a where `at` is 0 and b where it is 1.

    Spherical (Shoemake 1985) keeps the norm between that of a and b: high-dimensional normal latents lie near a sphere,
    and the straight way would cut through its inside, where the decoder was never asked (White 2016). It is an arc
    around 0, so it means nothing for latents that are centred elsewhere. Where two rows point the same way, opposite
    ways or nowhere, they have no arc, or no particular one, and the way is straight.

    Args:
        a, b: latents, (N, D) each.
        at: fractions (N,), from 0 to 1.
    """
    start, end, fraction = (np.asarray(values, dtype=np.float64) for values in (a, b, at))
    weights = np.stack([1 - fraction, fraction])  # (2, N)
    if spherical:
        norms = np.sqrt((start**2).sum(axis=1) * (end**2).sum(axis=1))
        cosine = np.divide((start * end).sum(axis=1), norms, out=np.ones_like(norms), where=norms > 0)
        angle = np.arccos(np.clip(cosine, -1, 1))
        sine = np.sin(angle)
        weights = np.divide(np.sin(weights * angle), sine, out=weights, where=sine > 1e-6)
    found = (weights[0, :, None] * start + weights[1, :, None] * end).astype(np.float32)
    return np.where((fraction == 0)[:, None], a, np.where((fraction == 1)[:, None], b, found)).astype(np.float32)
