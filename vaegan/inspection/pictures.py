"""Images of a dataset for people: drawn by seed, made small, side by side; class means and how they differ."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import norm

from vaegan.images import encode_png, grid, reduced
from vaegan.inspection.contents import ALL, NO_FINDING, NO_LABEL, Contents, Grey, Rows
from vaegan.inspection.reading import Shard, pixels_at
from vaegan.inspection.recheck import Recheck, correlations
from vaegan.shards import Manifest

MAX_SIDE = 112
"""Larger images are shown reduced to it, so that the page can be sent."""
MAX_STRIPS = 60
"""Groups of a dataset that are shown."""
PIECE = 4
FEWEST = 5
"""Images of a mean; the mean of one is that one."""
FEWEST_TO_COMPARE = 20
"""Images on either side of a difference; of fewer it shows who is in them."""
SCALE_SHARE = 99.5
"""Percentile of all differences at which their colours are full: a marker must not make everything else white."""
MAX_PAIRS = 24
MAX_FLAT = 8
RED_BLUE = colormaps["RdBu_r"]


@dataclass(frozen=True, eq=False)
class Strip:
    """Images of one split and class in a row.

    pixels: uint8 (n, H, W, C), no side above `MAX_SIDE`.
    total: how many images there are of that kind.
    """

    label: str
    split: str
    synthetic: bool
    total: int
    pixels: NDArray[np.uint8]

    @property
    def pieces(self) -> list[tuple[int, bytes]]:
        """The row in pieces of four, which a narrow page puts below each other: images of each, and its PNG."""
        parts = [self.pixels[at : at + PIECE] for at in range(0, len(self.pixels), PIECE)]
        return [(len(part), encode_png(grid(part, len(part), pad=1), level=9)) for part in parts]


@dataclass(frozen=True)
class Side:
    """One of two images beside each other."""

    image_id: str
    split: str
    label: str
    png: bytes | None


@dataclass(frozen=True)
class Pair:
    """Two images that may be one."""

    kind: str
    left: Side
    right: Side
    correlation: float | None
    removed: bool = False

    @property
    def across(self) -> bool:
        return bool(self.left.split and self.right.split) and self.left.split != self.right.split

    @property
    def conflicting(self) -> bool:
        return NO_LABEL not in (self.left.label, self.right.label) and self.left.label != self.right.label


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean image, or the difference of two.

    most: of a difference, its largest absolute value in grey levels; None of a mean.
    noise: what that would be about, at most, if both groups were drawn from one: see `differences`.
    """

    title: str
    counts: tuple[int, ...]
    png: bytes
    most: float | None = None
    noise: float | None = None


def draw_strips(
    contents: Contents, shards: Sequence[Shard], manifest: Manifest, *, splits: Sequence[str], per_class: int, seed: int
) -> tuple[list[Strip], int]:
    """Images of each class and split, drawn at random; and how many such groups are not shown, since they are too many.

    Classes in their order, then images without a finding; of each, the splits in theirs; real before synthetic.
    """
    rows = contents.rows
    groups = [
        (label, split, synthetic, members)
        for label, of_class in _of_classes(rows)
        for split in splits
        for synthetic in (False, True)
        if len(members := of_class[_is(rows, of_class, split, synthetic)])
    ]
    shown = groups[:MAX_STRIPS]
    drawn = [_draw(members, per_class, [seed, k]) for k, (*_, members) in enumerate(shown)]
    if not drawn:
        return [], 0
    pixels = pixels_at(shards, np.concatenate(drawn), manifest)
    small = np.stack([reduced(image, MAX_SIDE) for image in pixels])
    parts = np.split(small, np.cumsum([len(each) for each in drawn])[:-1])
    strips = [
        Strip(label, split, synthetic, len(members), part)
        for (label, split, synthetic, members), part in zip(shown, parts, strict=True)
    ]
    return strips, len(groups) - len(shown)


def _of_classes(rows: Rows) -> list[tuple[str, NDArray[np.int64]]]:
    """Rows of each class, then those of none, then those that nobody labelled."""
    found = [(name, np.flatnonzero(rows.labels[:, k])) for k, name in enumerate(rows.classes)]
    none = np.flatnonzero(rows.labelled & ~rows.labels.any(axis=1))
    return [*found, (NO_FINDING if rows.classes else ALL, none), (NO_LABEL, np.flatnonzero(~rows.labelled))]


def _is(rows: Rows, of_class: NDArray[np.int64], split: str, synthetic: bool) -> NDArray[np.bool_]:
    return (rows.split[of_class] == rows.splits.index(split)) & (rows.synthetic[of_class] == synthetic)


def _draw(members: NDArray[np.int64], count: int, seed: list[int]) -> NDArray[np.int64]:
    """Up to `count` of them at random, in their order."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(members, min(count, len(members)), replace=False))


def found_pairs(checked: Recheck, contents: Contents, shards: Sequence[Shard], manifest: Manifest) -> list[Pair]:
    """The copies to look at first, with their pictures: those in two splits, those with two labels, others."""
    rows, copies = contents.rows, checked.copies
    worst = copies.worst(MAX_PAIRS)
    pairs = copies.pairs[worst]
    pixels = pixels_at(shards, pairs.ravel(), manifest)
    made = []
    for k, (at, correlation) in enumerate(zip(worst, correlations(rows, pairs), strict=True)):
        left, right = (
            Side(rows.name(row), rows.splits[rows.split[row]], rows.label(row), to_png(pixels[2 * k + side]))
            for side, row in enumerate(pairs[k])
        )
        made.append(Pair("exact" if at < len(copies.exact) else "near", left, right, correlation))
    return made


def flattest(contents: Contents, shards: Sequence[Shard], manifest: Manifest, limit: float) -> list[Side]:
    """The images with the smallest spread of grey levels, if it is below `limit`."""
    rows = contents.rows
    spread = rows.looks[:, 1]
    flat = np.flatnonzero(spread < limit)
    worst = flat[np.argsort(spread[flat], kind="stable")][:MAX_FLAT]
    pixels = pixels_at(shards, worst, manifest)
    return [
        Side(rows.name(row), rows.splits[rows.split[row]], rows.label(row), to_png(image))
        for row, image in zip(worst, pixels, strict=True)
    ]


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """One image, made small, as PNG."""
    return encode_png(reduced(pixels, MAX_SIDE), level=9)


# ---------------------------------------------------------------------------------------------------------------- means
def means(grey: Grey, split: str) -> list[Mean]:
    """Mean image of all images of a split, of each class and of those without."""
    counts = grey.num_images
    shown = [g for g in range(len(grey.names)) if counts[g] >= FEWEST and not (g and counts[g] == counts[0])]
    return [
        Mean(f"{split}, {grey.names[g]}", (int(counts[g]),), to_png(np.round(grey.mean_image(g)).astype(np.uint8)))
        for g in shown
    ]


@dataclass(frozen=True, eq=False)
class _Half:
    """One side of a difference: sum of images, their number and the variance of a value over all of them."""

    total: NDArray[np.float64]
    count: int
    std: float


def class_differences(grey: Grey, split: str) -> list[tuple[str, _Half, _Half]]:
    """Each class against the split's other labelled images; of two exclusive classes once only. See `differences`."""
    groups = [g for g in range(1, len(grey.names)) if grey.names[g] != NO_LABEL]
    count, total = int(grey.num_images[0]), grey.total[0]
    if grey.names[-1] == NO_LABEL:
        count, total = count - int(grey.num_images[-1]), total - grey.total[-1]
    if len(groups) == 3 and not grey.num_images[3] and grey.num_images[1:3].sum() == count:
        groups = [2]
    found = []
    for g in groups:
        rest = count - int(grey.num_images[g])
        if min(grey.num_images[g], rest) >= FEWEST_TO_COMPARE:
            mine = _Half(grey.total[g], int(grey.num_images[g]), grey.std(g))
            others = _Half(total - grey.total[g], rest, grey.std(0))
            against = grey.names[1] if len(groups) == 1 else "the others"
            found.append((f"{split}: {grey.names[g]} − {against}", mine, others))
    return found


def split_differences(grey: dict[str, Grey]) -> list[tuple[str, _Half, _Half]]:
    """Each split against the first. See `differences`."""
    names = [name for name, each in grey.items() if each.num_images[0] >= FEWEST_TO_COMPARE]
    halves = {name: _Half(grey[name].total[0], int(grey[name].num_images[0]), grey[name].std(0)) for name in names}
    return [(f"{name} − {names[0]}", halves[name], halves[names[0]]) for name in names[1:]]


def differences(halves: list[tuple[str, _Half, _Half]]) -> tuple[list[Mean], float]:
    """Differences of means, red where the first is brighter and blue where it is darker; and where colours are full.

    `Mean.noise` is what the largest of all pixels' differences stays below in 95 % of draws from one population, if
    each varies over images as all pixels' values do, which is more than most do, and images are independent.
    """
    maps = [(a.total / a.count - b.total / b.count).mean(axis=2) for _, a, b in halves]
    scale = max(float(np.percentile(np.abs(maps), SCALE_SHARE)), 1.0) if maps else 1.0
    z = norm.isf(0.025 / maps[0].size) if maps else 0.0  # Bonferroni, over pixels
    found = [
        Mean(
            title,
            (a.count, b.count),
            to_png((255 * RED_BLUE(0.5 + each / scale / 2)[..., :3]).round().astype(np.uint8)),
            most=float(np.abs(each).max()),
            noise=float(z * np.sqrt(a.std**2 / a.count + b.std**2 / b.count)),
        )
        for (title, a, b), each in zip(halves, maps, strict=True)
    ]
    return found, scale


def scale_bar() -> bytes:
    """The colours of a difference from its lowest to its highest value, as PNG."""
    ramp = np.tile(RED_BLUE(np.linspace(0, 1, 240))[None, :, :3], (10, 1, 1))
    buffer = io.BytesIO()
    Image.fromarray((255 * ramp).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
