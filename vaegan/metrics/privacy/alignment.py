"""How alike two films are once one is mirrored, shifted, cropped, brightened or filtered into the other.

Chest films all look alike: two children's reach a correlation of .98. What tells a copy is the detail, between a rib's
edge and half a lung, and only where the two are laid on each other. So both are band-passed, and the first one's detail
is slid over the second's at every size from whole to `SMALLEST` and both ways round; the highest correlation counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from scipy import fft
from scipy.ndimage import gaussian_filter

SIDE = 64  # px that images are brought to: more cost time and find no more
FINE, COARSE = 1.0, 5.0
"""Band in px at `SIDE`, standard deviations of two Gaussians: noise lies below, brightness and shading above."""
SMALLEST = 46
"""Side of the smallest part looked for, 72 % of the frame: half the area cropped away."""
SLACK = 2  # px cut from the sliding part's border: whole against whole may shift that far
FLAT = 1.0
"""Grey levels: a region that varies by less has no detail to compare."""
_PAIRS = 32  # at a time, so that their transforms stay in the cache


@dataclass(frozen=True)
class Alignment:
    """The best way found to lay P pairs of images on each other."""

    correlation: np.ndarray
    """(P,) Pearson correlation of the detail in the overlap, -1 to 1."""
    mirrored: np.ndarray
    """(P,) bool: left and right are exchanged."""
    zoom: np.ndarray
    """(P,) 1, or more where the first image shows a part of the second, enlarged so."""

    def take(self, rows: np.ndarray) -> Alignment:
        return Alignment(self.correlation[rows], self.mirrored[rows], self.zoom[rows])


def detail(pixels: np.ndarray) -> np.ndarray:
    """uint8 images (N, H, W, C) to their detail (N, SIDE, SIDE), float32: grey, resized, band-passed."""
    height, width = pixels.shape[1:3]
    grey = pixels.astype(np.float32).mean(axis=3)
    sized = _resampling(height, SIDE) @ grey @ _resampling(width, SIDE).T
    bands = [gaussian_filter(sized, (0, sigma, sigma), mode="nearest") for sigma in (FINE, COARSE)]
    return bands[0] - bands[1]


def align(first: np.ndarray, second: np.ndarray) -> Alignment:
    """Best alignment of each pair of details (P, SIDE, SIDE), P >= 1, in whole px at `SIDE`, in steps of two in size.

    Normalised cross-correlation (Lewis 1995) by Fourier transforms. The first image is taken for the whole of the
    second or a part of it, as a generated image may be of a film it was trained on; not the other way round, since a
    film has nothing beyond its border. A pair's result depends on no other pair.
    """
    parts = [
        _as_part(first[start : start + _PAIRS], second[start : start + _PAIRS])
        for start in range(0, len(first), _PAIRS)
    ]
    return Alignment(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("correlation", "mirrored", "zoom"))
    )


def _as_part(part: np.ndarray, whole: np.ndarray) -> Alignment:
    """The best alignment where `part` shows `whole` or a cut-out of it."""
    transforms = {False: fft.rfft2(whole), True: fft.rfft2(whole[:, :, ::-1])}  # mirror the one that isn't resized
    sums, squares = _integral(whole), _integral(np.square(whole, dtype=np.float64))
    best = Alignment(np.full(len(part), -1, np.float32), np.zeros(len(part), bool), np.ones(len(part), np.float32))
    for size in range(SIDE, SMALLEST - 1, -2):
        shrink = _resampling(SIDE, size)
        template, varies = _standardised((shrink @ part @ shrink.T)[:, SLACK : size - SLACK, SLACK : size - SLACK])
        side = size - 2 * SLACK
        variance = _windows(squares, side) / side**2 - (_windows(sums, side) / side**2) ** 2
        deviation = np.sqrt(np.maximum(variance, FLAT**2)).astype(np.float32)
        conjugate = np.conj(fft.rfft2(template, s=(SIDE, SIDE)))
        for mirrored, transform in transforms.items():
            covariance = _inside(transform * conjugate, SIDE - side + 1) / side**2
            highest = (covariance / (deviation[:, :, ::-1] if mirrored else deviation)).max(axis=(1, 2))
            here = Alignment(
                np.where(varies, np.minimum(highest, 1), 0).astype(np.float32),
                np.full(len(part), mirrored),
                np.full(len(part), SIDE / size, np.float32),
            )
            best = _better(best, here)
    return best


def _inside(product: np.ndarray, positions: int) -> np.ndarray:
    """Inverse transform at the first `positions` along both axes; elsewhere the part would wrap around."""
    rows = fft.ifft(product, axis=1)[:, :positions]
    return fft.irfft(rows, n=SIDE, axis=2)[:, :, :positions]


def _standardised(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each image with mean 0 and standard deviation 1, and whether it varies at all."""
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=(1, 2)))
    return centred / np.maximum(deviation, FLAT)[:, None, None], deviation >= FLAT


def _integral(images: np.ndarray) -> np.ndarray:
    """Summed-area tables (P, SIDE + 1, SIDE + 1), float64."""
    return np.pad(images.cumsum(axis=1, dtype=np.float64).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))


def _windows(table: np.ndarray, side: int) -> np.ndarray:
    """Sums over all windows of side x side, from a summed-area table."""
    return table[:, side:, side:] - table[:, :-side, side:] - table[:, side:, :-side] + table[:, :-side, :-side]


def _better(a: Alignment, b: Alignment) -> Alignment:
    """Of two alignments of the same pairs the better; of equals the first."""
    second = b.correlation > a.correlation
    return Alignment(
        np.where(second, b.correlation, a.correlation),
        np.where(second, b.mirrored, a.mirrored),
        np.where(second, b.zoom, a.zoom),
    )


@cache
def _resampling(old: int, new: int) -> np.ndarray:
    """(new, old) matrix that resizes one axis: bilinear, antialiased, Pillow's own weights."""
    if old == new:
        return np.eye(old, dtype=np.float32)
    identity = Image.fromarray(np.eye(old, dtype=np.float32))
    return np.asarray(identity.resize((old, new), Image.Resampling.BILINEAR))
