"""Which synthetic image is a copy of which real one: to the pixel, or changed as noise, crops and mirrors change it.

Three searches propose candidates: perceptual hashes, layouts (tiny band-passed views of the whole and of 52 parts) and
whatever feature neighbours the caller brings. `alignment` judges them. Who was a member plays no part in it, so an
image that merely looks like many others finds members and held-out images alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from vaegan.duplicates import MAX_DISTANCE, THUMBNAIL, TILE, thumbnail
from vaegan.images import perceptual_hash, pixel_hash
from vaegan.metrics.privacy.alignment import Alignment, align

SAME = 0.95
"""Correlation of detail that only copies reach. Of 1,467 of Kermany's films none has more than .938 with any film of
the other 3,097 children; `docs/metrics.md` has the table."""
STANDS_OUT = 0.6
"""Distance of a copy's original from its best rival, on Fisher's scale (arctanh of the correlation). Of the 1,467 films
none reaches .34 among 4,389 others, and .48 is the highest seen among 1,050, where the best rival is a poorer one."""
ALIKE = 0.6  # a copy by standing out is at least that like its original
CANDIDATES = 10  # of each search, for each synthetic image
LAYOUT = 10  # px
VIEWS = ((1.0, 1), (0.92, 3), (0.9, 1), (0.84, 4), (0.8, 1), (0.76, 5))
"""Size of a view, and how many of it along each axis: 53 in all. Any crop of up to 20 % is near one of them; with nine
parts at .84 instead of sixteen a crop of 15 % is missed in one case of five."""
COARSEST = 1.25  # px of a layout, a Gaussian's standard deviation: brightness and shading lie above
_ROWS = 64  # synthetic images at a time
_COLUMNS = 2048  # real ones

Details = Callable[[np.ndarray], np.ndarray]
"""Row numbers (n,) to what `alignment.detail` makes of these images."""


@dataclass(frozen=True)
class Fingerprints:
    """What finds copies of N images without their pixels: 1.1 kB an image."""

    pixel_hashes: np.ndarray
    """uint8 (N, 64): SHA-256 as hexadecimal digits in ASCII, see `images.pixel_hash`; safetensors has no strings."""
    hashes: np.ndarray
    """(N,) uint64 perceptual hashes."""
    mirrored_hashes: np.ndarray
    """(N,) uint64: of the image with left and right exchanged."""
    thumbnails: np.ndarray
    """(N, 32, 32) uint8."""

    @classmethod
    def of(cls, pixels: np.ndarray) -> Fingerprints:
        """Of uint8 images (N, H, W, C); N may be 0."""
        return cls(
            np.array([pixel_hash(image) for image in pixels], "S64").view(np.uint8).reshape(-1, 64),
            np.array([perceptual_hash(image) for image in pixels], np.uint64),
            np.array([perceptual_hash(image[:, ::-1]) for image in pixels], np.uint64),
            np.array([thumbnail(image) for image in pixels], np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL),
        )

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, rows: np.ndarray) -> Fingerprints:
        return Fingerprints(*(value[rows] for value in self.arrays().values()))

    def arrays(self) -> dict[str, np.ndarray]:
        """As plain arrays by name, to be stored; `Fingerprints(**arrays)` is the way back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def concatenate(parts: Sequence[Fingerprints]) -> Fingerprints:
        """All rows of several, in order."""
        names = [field.name for field in fields(Fingerprints)]
        return Fingerprints(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Matches:
    """For each of M synthetic images the real image most like it."""

    rows: np.ndarray
    """(M,) int64: row number of the real image."""
    alignment: Alignment
    """(M,): how the two lie on each other."""
    rival: np.ndarray
    """(M,) highest correlation with a candidate of another patient than the best one's; -1 where there is none."""
    same_pixels: np.ndarray
    """(M,) bool."""
    hash_distance: np.ndarray
    """(M,) bits, mirrored or not, whichever is less."""
    proposed: dict[str, np.ndarray]
    """Search to bool (M,): whether it found this real image by itself."""

    @property
    def gap(self) -> np.ndarray:
        """(M,): how far the best stands out from its rival, on Fisher's scale; 0 where there is no rival."""
        best, rival = (np.arctanh(np.clip(c, -0.9999, 0.9999)) for c in (self.alignment.correlation, self.rival))
        return np.where(self.rival > -1, best - rival, 0)

    @property
    def copied(self) -> np.ndarray:
        """(M,) bool: as like as only copies are, or far more like this real image than any other patient's."""
        correlation = self.alignment.correlation
        return self.same_pixels | (correlation >= SAME) | ((correlation >= ALIKE) & (self.gap >= STANDS_OUT))


def find_matches(
    synthetic: Fingerprints,
    real: Fingerprints,
    patients: np.ndarray,
    synthetic_details: Details,
    real_details: Details,
    feature_neighbours: Mapping[str, np.ndarray] | None = None,
) -> Matches:
    """The real image most like each synthetic one, among the candidates of every search.

    Args:
        patients: (N,) numbers; films of one patient are no rivals of each other.
        synthetic_details, real_details: called for the rows that are compared, block by block.
        feature_neighbours: name of an extractor to row numbers of real images (M, k), -1 for none.
    """
    proposals = {
        "hash": similar_hashes(synthetic, real),
        "layout": similar_layouts(synthetic.thumbnails, real.thumbnails),
        **(feature_neighbours or {}),
    }
    exact = _same_pixels(synthetic.pixel_hashes, real.pixel_hashes)
    together = np.concatenate([exact[:, None], *proposals.values()], axis=1)
    parts = []
    for start in range(0, len(synthetic), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(synthetic)))
        parts.append(_best(together[rows], patients, synthetic_details(rows), real_details, exact[rows]))
    best, rival = (np.concatenate(values) for values in zip(*((p[0], p[2]) for p in parts), strict=True))
    alignment = Alignment(*(np.concatenate([getattr(p[1], field.name) for p in parts]) for field in fields(Alignment)))
    return Matches(
        rows=best,
        alignment=alignment,
        rival=rival,
        same_pixels=exact >= 0,
        hash_distance=_hash_distance(synthetic, real.take(best)),
        proposed={name: (rows == best[:, None]).any(axis=1) for name, rows in proposals.items()},
    )


def _best(
    candidates: np.ndarray, patients: np.ndarray, details: np.ndarray, real_details: Details, exact: np.ndarray
) -> tuple[np.ndarray, Alignment, np.ndarray]:
    """Best real row, its alignment, and the best rival's correlation, for a block of synthetic images.

    Args:
        candidates: (m, k) rows of real images, repeats and -1 allowed.
        exact: (m,) row of the real image of equal pixels, or -1.
    """
    lists = [np.unique(row[row >= 0]) for row in candidates]
    owner = np.repeat(np.arange(len(lists)), [len(rows) for rows in lists])
    needed, position = np.unique(np.concatenate(lists), return_inverse=True)
    alignments = align(details[owner], real_details(needed)[position])
    rows = needed[position]
    correlation = np.where(exact[owner] == rows, 1.0, alignments.correlation)  # a blank image correlates with none
    best = np.empty(len(lists), np.int64)
    rival = np.full(len(lists), -1.0)
    for i in range(len(lists)):
        mine = np.flatnonzero(owner == i)
        best[i] = mine[correlation[mine].argmax()]
        others = mine[patients[rows[mine]] != patients[rows[best[i]]]]
        if len(others):
            rival[i] = correlation[others].max()
    chosen = alignments.take(best)
    return rows[best], Alignment(correlation[best], chosen.mirrored, chosen.zoom), rival


def _same_pixels(synthetic: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Row of the first real image with the same pixels, or -1: (M,)."""
    real, synthetic = (np.ascontiguousarray(hashes).view("S64")[:, 0] for hashes in (real, synthetic))
    known, first = np.unique(real, return_index=True)
    place = np.minimum(np.searchsorted(known, synthetic), len(known) - 1)
    return np.where(known[place] == synthetic, first[place], -1)


def _hash_distance(a: Fingerprints, b: Fingerprints) -> np.ndarray:
    """Bits between each row and its partner, mirrored or not: (N,)."""
    return np.minimum(np.bitwise_count(a.hashes ^ b.hashes), np.bitwise_count(a.mirrored_hashes ^ b.hashes))


def similar_hashes(synthetic: Fingerprints, real: Fingerprints, count: int = CANDIDATES) -> np.ndarray:
    """The real images nearest in perceptual hash, mirrored or not, up to `MAX_DISTANCE` bits: rows (M, count) or -1."""
    found = np.full((len(synthetic), count), -1, np.int64)
    for start in range(0, len(synthetic), TILE):
        block = slice(start, start + TILE)
        best = np.full((len(synthetic.hashes[block]), 0), 255, np.uint8)
        rows = np.empty(best.shape, np.int64)
        for left in range(0, len(real), TILE):
            there = real.hashes[left : left + TILE]
            bits = np.minimum(
                np.bitwise_count(synthetic.hashes[block, None] ^ there),
                np.bitwise_count(synthetic.mirrored_hashes[block, None] ^ there),
            )
            numbers = np.broadcast_to(np.arange(left, left + len(there)), bits.shape)
            best, rows = _lowest(np.concatenate([best, bits], 1), np.concatenate([rows, numbers], 1), count)
        found[block, : rows.shape[1]] = np.where(best <= MAX_DISTANCE, rows, -1)
    return found


def similar_layouts(synthetic: np.ndarray, real: np.ndarray, count: int = CANDIDATES) -> np.ndarray:
    """The real images of which the whole or a part looks most like the synthetic image, mirrored or not.

    Correlation of `LAYOUT` px views, by matrix products: some 10,000 multiplications a pair.

    Args:
        synthetic, real: thumbnails (M, 32, 32) and (N, 32, 32).
    """
    found = np.full((len(synthetic), count), -1, np.int64)
    rows_at_a_time = 16 * _ROWS
    for start in range(0, len(synthetic), rows_at_a_time):
        block = synthetic[start : start + rows_at_a_time]
        ours = np.concatenate([layouts(block), layouts(block[:, :, ::-1])])
        best = np.full((len(block), 0), -1, np.float32)
        rows = np.empty(best.shape, np.int64)
        for left in range(0, len(real), _COLUMNS):
            there = real[left : left + _COLUMNS]
            likeness = np.full((len(ours), len(there)), -1, np.float32)
            for view in _views(there):
                np.maximum(likeness, ours @ view.T, out=likeness)
            likeness = np.maximum(likeness[: len(block)], likeness[len(block) :])
            numbers = np.broadcast_to(np.arange(left, left + likeness.shape[1]), likeness.shape)
            worst, rows = _lowest(np.concatenate([-best, -likeness], 1), np.concatenate([rows, numbers], 1), count)
            best = -worst
        found[start : start + rows_at_a_time, : rows.shape[1]] = rows
    return found


def layouts(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails (N, 32, 32) as features (N, 100): the whole view, a unit vector, so d² is 2 - 2 x correlation."""
    return next(iter(_views(thumbnails)))


def _lowest(values: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` lowest of each row with their row numbers, ties by row number."""
    if values.shape[1] > count:
        kept = np.argsort(values, axis=1, kind="stable")[:, :count]
        values, rows = np.take_along_axis(values, kept, 1), np.take_along_axis(rows, kept, 1)
    return values, rows


def _views(thumbnails: np.ndarray) -> Iterator[np.ndarray]:
    """Thumbnails (N, 32, 32) as unit vectors (N, 100) of each view in `VIEWS`, the whole first."""
    grey = thumbnails.astype(np.float32)
    for size, along in VIEWS:
        offsets = _offsets(size, along)
        for top in offsets:
            for left in offsets:
                small = _window(top, size) @ grey @ _window(left, size).T
                small -= gaussian_filter(small, (0, COARSEST, COARSEST), mode="nearest")
                flat = small.reshape(len(small), LAYOUT**2)
                flat = flat - flat.mean(axis=1, keepdims=True)
                yield flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-3)


def _offsets(size: float, along: int) -> list[float]:
    """Where views of that size begin, in px of a thumbnail: spread evenly, a single one in the middle."""
    room = THUMBNAIL * (1 - size)
    return [room / 2] if along == 1 else list(np.linspace(0, room, along))


@cache
def _window(start: float, size: float) -> np.ndarray:
    """(LAYOUT, 32) matrix that cuts a window out of one axis and resizes it: bilinear, antialiased."""
    box = (0.0, float(start), 1.0, float(start + THUMBNAIL * size))
    columns = [
        np.asarray(Image.fromarray(column[:, None]).resize((1, LAYOUT), Image.Resampling.BILINEAR, box=box))[:, 0]
        for column in np.eye(THUMBNAIL, dtype=np.float32)
    ]
    return np.stack(columns, axis=1)
