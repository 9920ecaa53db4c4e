"""Sliced Wasserstein distance of small patches: what tells checkpoints apart in a second and needs no weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import correlate1d

PATCH = 7  # side of a descriptor's neighbourhood, in pixels of its level
COARSEST = 16  # side of the smallest level
SCALE = 1000  # the unit of Karras et al. 2018: thousandths of a grey value's standard deviation
_TAPS = np.array([1, 4, 6, 4, 1]) / 16
_BLOCK_ENTRIES = 1_000_000  # of projections held at a time: 8 MB


def sliced_wasserstein(
    real: np.ndarray, synthetic: np.ndarray, *, seed: int = 0, descriptors: int = 64, projections: int = 128
) -> float:
    """Mean over pyramid levels of the sliced Wasserstein distance between patches of two sets, times 1000.

    Karras et al. 2018 (Progressive Growing of GANs), section 5: each image becomes a Laplacian pyramid whose levels
    halve from full size down to 16 pixels; from a level come 7x7 neighbourhoods in all channels; the distance of two
    sets of these is the mean over random unit directions of the 1-D Wasserstein distance along them. 0 is best. Fine
    levels see texture and noise, coarse ones shapes and brightness.

    Ours differs from the reference code in three ways, so its values compare with each other only:

    - Both sets are normalised, per level and channel, by mean and standard deviation of the *real* set's descriptors.
      The reference normalises each set by its own, which hides errors of brightness and contrast altogether: for 256
      chest films of 64 pixels against 256 others it gives 18, and 18 again when those have lost half of their contrast;
      ours gives 32, then 350. Lost contrast is the commonest fault of a VAE.
    - All images share a level's patch positions, drawn from the seed without repeats. So the order of the images is
      without effect, equal sets have distance 0, and checkpoints are compared at the same places.
    - 64 patches per image and level, 128 directions, instead of 128 and 512: 0.6 s on one core for those films, not 6.
      Either way the value moves by 3 % from seed to seed.

    Two sets from one distribution have a distance above 0 that shrinks with their size: compare at one count, and with
    the distance between real images beside it.

    Args:
        real, synthetic: uint8 (N, H, W, C) and (M, H, W, C), at least 16 pixels a side. Of the larger set as many
            images as the smaller one has are drawn, from the seed.
        descriptors: patches per image and level, fewer where a level has no more (100 at 16 pixels).
        projections: directions per level.

    Raises:
        ValueError: arrays of other types or shapes, or no images.
    """
    _check(real, synthetic)
    rng = np.random.default_rng(seed)
    count = min(len(real), len(synthetic))
    pyramids = [laplacian_pyramid(_draw(pixels, count, rng)) for pixels in (real, synthetic)]
    distances = []
    for level_real, level_synthetic in zip(*pyramids, strict=True):
        height, width = level_real.shape[1:3]
        num_places = (height - PATCH + 1) * (width - PATCH + 1)
        places = rng.choice(num_places, min(descriptors, num_places), replace=False)
        x, y = _patches(level_real, places), _patches(level_synthetic, places)
        mean, std = x.mean(axis=(0, 2, 3), keepdims=True), x.std(axis=(0, 2, 3), keepdims=True)
        std[std < 1e-9] = 1  # a channel without content in the real set: errors there count in grey values
        directions = rng.normal(size=(projections, x[0].size))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        x, y = (((patches - mean) / std).reshape(len(patches), -1) for patches in (x, y))
        distances.append(_mean_over_directions(x, y, directions))
    return SCALE * float(np.mean(distances))


def wasserstein_1d(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distance of equally many points on a line: mean |x_(i) - y_(i)| of sorted values.

    (..., N) and (..., N) -> (...), in the points' own unit.
    """
    return np.abs(np.sort(x, axis=-1) - np.sort(y, axis=-1)).mean(axis=-1)


def laplacian_pyramid(pixels: np.ndarray) -> list[np.ndarray]:
    """(N, H, W, C) -> float64 levels, finest first: what halving loses at each size, then the coarsest image itself.

    Burt & Adelson 1983 with the binomial kernel 1 4 6 4 1. A side is halved while it is even and stays at 16 or more.
    """
    image = pixels.astype(np.float64)
    levels = []
    while all(side % 2 == 0 and side >= 2 * COARSEST for side in image.shape[1:3]):
        smaller = _blur(image)[:, ::2, ::2]
        levels.append(image - _enlarged(smaller))
        image = smaller
    return [*levels, image]


def _check(real: np.ndarray, synthetic: np.ndarray) -> None:
    for name, pixels in (("real", real), ("synthetic", synthetic)):
        if pixels.dtype != np.uint8 or pixels.ndim != 4:
            raise ValueError(f"{name} images are {pixels.dtype} {pixels.shape}: expected uint8 (N, H, W, C)")
        if not len(pixels) or min(pixels.shape[1:3]) < COARSEST:
            raise ValueError(
                f"{name} images have shape {pixels.shape}: expected one image at least, of {COARSEST} pixels or more"
            )
    if real.shape[1:] != synthetic.shape[1:]:
        raise ValueError(
            f"real images are {real.shape[1:]}, synthetic ones {synthetic.shape[1:]}: expected the same (H, W, C); "
            "resize one of them"
        )


def _draw(pixels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the images; drawn, since the first ones of a dataset may be of one class."""
    return pixels if len(pixels) == count else pixels[rng.choice(len(pixels), count, replace=False)]


def _blur(image: np.ndarray) -> np.ndarray:
    return correlate1d(correlate1d(image, _TAPS, axis=1, mode="mirror"), _TAPS, axis=2, mode="mirror")


def _enlarged(image: np.ndarray) -> np.ndarray:
    num, height, width, channels = image.shape
    sparse = np.zeros((num, 2 * height, 2 * width, channels))
    sparse[:, ::2, ::2] = 4 * image  # a quarter of the pixels carries the brightness of all
    return _blur(sparse)


def _patches(level: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(N, H, W, C) and P places, counted row by row -> neighbourhoods (N * P, C, 7, 7)."""
    windows = np.lib.stride_tricks.sliding_window_view(level, (PATCH, PATCH), axis=(1, 2))
    rows, columns = np.unravel_index(places, windows.shape[1:3])
    return windows[:, rows, columns].reshape(-1, *windows.shape[3:])


def _mean_over_directions(x: np.ndarray, y: np.ndarray, directions: np.ndarray) -> float:
    """Sliced distance of x and y (N, D) along rows of directions (P, D)."""
    parts = [wasserstein_1d(block @ x.T, block @ y.T) for block in _blocks(directions, len(x))]
    return float(np.concatenate(parts).mean())


def _blocks(directions: np.ndarray, num_points: int) -> Iterator[np.ndarray]:
    step = max(1, _BLOCK_ENTRIES // num_points)
    return (directions[start : start + step] for start in range(0, len(directions), step))
