"""Multi-scale structural similarity of image pairs: how alike the images of one set are to each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales, finest first (Wang et al. 2003, found by experiment with observers)."""
WINDOW, SIGMA = 11, 1.5  # of the Gaussian, in pixels of its scale
K1, K2 = 0.01, 0.03
RANGE = 255.0  # of a uint8 image
_PAIRS_AT_A_TIME = 32

Pixels = Callable[[np.ndarray], np.ndarray]
"""Row numbers (n,) to uint8 images (n, H, W, C)."""


def ms_ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """MS-SSIM of each image with its partner: uint8 (N, H, W, C), twice -> (N,) in [0, 1], 1 for equal images.

    Wang, Simoncelli & Bovik 2003: contrast and structure at every scale, luminance at the coarsest, each mean over the
    image clipped at 0, raised to the scale's weight and multiplied; channels averaged. Gaussian window of 11 pixels
    without padding, K1 = .01, K2 = .03, halving by 2x2 means, float64. The same number as `pytorch-msssim`.

    That library, as the original, wants more than 160 pixels, which five scales of an 11-pixel window need. A smaller
    image has the scales whose side still holds the window (64 pixels: three), their weights scaled up to the
    same sum: such values compare at one size only.

    Raises:
        ValueError: arrays of other types or of two shapes, or a side under 11 pixels.
    """
    if x.shape != y.shape or x.ndim != 4 or x.dtype != np.uint8 or y.dtype != np.uint8:
        raise ValueError(
            f"pairs of {x.dtype} {x.shape} and {y.dtype} {y.shape}: expected uint8 (N, H, W, C), both alike"
        )
    weights = torch.tensor(scale_weights(min(x.shape[1:3])), dtype=torch.float64)
    blocks = [slice(at, at + _PAIRS_AT_A_TIME) for at in range(0, len(x), _PAIRS_AT_A_TIME)]
    parts = [_similarity(_planes(x[rows]), _planes(y[rows]), weights) for rows in blocks]
    return torch.cat(parts).numpy() if parts else np.empty(0)


def scale_weights(side: int) -> list[float]:
    """Weights, finest first, of the scales that an image of `side` pixels has; fewer than five are scaled up alike."""
    if side < WINDOW:
        raise ValueError(f"images of {side} pixels: the window alone is {WINDOW}")
    scales = sum(-(-side // 2**scale) >= WINDOW for scale in range(len(WEIGHTS)))  # an odd side is halved upwards
    missing = sum(WEIGHTS) / sum(WEIGHTS[:scales])  # the published five sum to 1.0001, and stay as they are
    return [weight * missing for weight in WEIGHTS[:scales]]


def draw_pairs(labels: np.ndarray, patients: np.ndarray, max_pairs: int, seed: int) -> np.ndarray:
    """Random pairs of rows (P, 2), P <= max_pairs: of one class, of two patients, no row in two pairs.

    Within classes, since otherwise a set's classes alone make it diverse (Odena et al. 2017). As no row occurs twice,
    pairs are independent but for films of one patient, and their mean has the plain standard error.

    Args:
        labels: multi-hot (N, K); a class is one combination. patients: (N,).
    """
    rng = np.random.default_rng(seed)
    _, group = np.unique(labels, axis=0, return_inverse=True) if labels.shape[1] else (None, np.zeros(len(labels), int))
    pairs = []
    for number in np.unique(group):
        rows = rng.permutation(np.flatnonzero(group.ravel() == number))
        pairs.append(rows[: len(rows) // 2 * 2].reshape(-1, 2))
    found = np.concatenate(pairs) if pairs else np.empty((0, 2), int)
    found = found[patients[found[:, 0]] != patients[found[:, 1]]]
    return found[rng.permutation(len(found))[:max_pairs]]  # classes in proportion to their images


def pair_similarities(pixels: Pixels, pairs: np.ndarray) -> np.ndarray:
    """MS-SSIM of pairs of rows (P, 2): (P,). The mean over a set's pairs is its (lack of) diversity.

    Higher than the real images' own: a generator that repeats itself. Lower: noise, or structure that real ones share.
    """
    return ms_ssim(pixels(pairs[:, 0]), pixels(pairs[:, 1]))


def _planes(pixels: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) to float64 (N, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).double()


def _similarity(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    factors = []
    for scale in range(len(weights)):
        luminance, contrast_structure = _maps_means(x, y)
        factors.append(contrast_structure if scale < len(weights) - 1 else luminance)
        padding = [side % 2 for side in x.shape[2:]]  # an odd side keeps its last line, as in pytorch-msssim
        x, y = (F.avg_pool2d(image, kernel_size=2, padding=padding) for image in (x, y))
    stacked = torch.stack(factors).clamp(min=0)  # (scales, N, C); a negative mean has no real power
    return torch.prod(stacked ** weights[:, None, None], dim=0).mean(dim=1)


def _maps_means(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the image of SSIM and of its contrast-structure factor, (N, C) each."""
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    contrast_structure = (2 * covariance + c2) / (var_x + var_y + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * contrast_structure).mean(dim=(2, 3)), contrast_structure.mean(dim=(2, 3))


def _blurred(image: Tensor) -> Tensor:
    """Gaussian mean around every pixel whose window lies inside the image."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    taps = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    taps = (taps / taps.sum()).expand(image.shape[1], 1, 1, WINDOW)
    rows = F.conv2d(image, taps, groups=image.shape[1])
    return F.conv2d(rows, taps.transpose(2, 3), groups=image.shape[1])
