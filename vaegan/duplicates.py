"""Copies among images: exact ones, and near ones that were resaved, resized or brightened.

A near copy must pass two tests: a small Hamming distance between perceptual hashes, which is cheap but says of many
chest films that they look alike, and then a correlation of thumbnails that only copies reach.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

THUMBNAIL = 32  # px
MAX_DISTANCE = 8  # of 64 bits
MIN_CORRELATION = 0.992
"""Measured on Kermany's 5,856 films: two different ones reach 0.975 at most (hash distance up to 12); a copy resaved as
JPEG of quality 10, 20 % brighter, with 30 % more contrast, gamma 1.2 or a third of the size stays above 0.993 and
within 8 bits. A copy with its border cropped by 2 % is not found."""
TILE = 1024  # hashes a side: 8 MB of differences, which stay in the cache
Hashes = Sequence[str] | NDArray[np.void] | NDArray[np.bytes_]
"""Of pixels: as text, or as an array of their bytes or digits."""
PAIRS = 4096  # compared by thumbnail at a time: 4 kB each, four times, as floats


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One image (H, W, C) as a grey (32, 32) thumbnail."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("L")
    return np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def exact_pairs(pixel_hashes: Hashes) -> NDArray[np.int64]:
    """(P, 2): each image that repeats an earlier one, after the first of its kind."""
    _, first, kind = np.unique(np.asarray(pixel_hashes), return_index=True, return_inverse=True)
    earlier = first[kind]
    repeats = np.flatnonzero(earlier != np.arange(len(kind)))
    return np.stack([earlier[repeats], repeats], axis=1).astype(np.int64)


def near_pairs(
    hashes: NDArray[np.uint64],
    thumbnails: NDArray[np.uint8],
    *,
    rows: NDArray[np.int64] | None = None,
    max_distance: int = MAX_DISTANCE,
    min_correlation: float = MIN_CORRELATION,
) -> NDArray[np.int64]:
    """(P, 2), i < j: pairs close in hash whose thumbnails correlate.

    All pairs are compared, tile by tile: a popcount is so cheap that 100,000 images take a minute or two on one core.

    Args:
        hashes: perceptual hashes (N,).
        thumbnails: (N, 32, 32); of a file that is mapped to memory only those of likely pairs are read.
        rows: which of the N to compare, in rising order; all of them by default.
    """
    rows = np.arange(len(hashes)) if rows is None else rows
    hashes = hashes[rows]
    found = [np.empty((0, 2), dtype=np.int64)]
    starts = range(0, len(hashes), TILE)
    for top, left in ((top, left) for top in starts for left in starts if left >= top):
        close = np.bitwise_count(hashes[top : top + TILE, None] ^ hashes[None, left : left + TILE]) <= max_distance
        pairs = rows[np.argwhere(np.triu(close, 1) if top == left else close) + np.array([top, left])]
        for at in range(0, len(pairs), PAIRS):
            pair = pairs[at : at + PAIRS]
            found.append(pair[correlation(thumbnails[pair[:, 0]], thumbnails[pair[:, 1]]) >= min_correlation])
    return np.concatenate(found)


def correlation(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pearson correlation of each thumbnail with its partner, (N,): blind to brightness and contrast."""
    x, y = (v.reshape(len(v), -1).astype(np.float32) for v in (a, b))
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return (x * y).sum(axis=1) / np.maximum(norm, 1e-12)


def find_pairs(
    pixel_hashes: Hashes, hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Exact and near pairs, (P, 2) each; of exact copies only the first is compared with others."""
    exact = exact_pairs(pixel_hashes)
    return exact, near_pairs(hashes, thumbnails, rows=np.setdiff1d(np.arange(len(hashes)), exact[:, 1]))


def components(num_rows: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Group number of each row (num_rows,), where pairs connect rows, directly or through others."""
    links = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(num_rows, num_rows))
    return connected_components(links, directed=False)[1].astype(np.int64)
