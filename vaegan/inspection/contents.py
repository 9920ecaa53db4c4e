"""What is in a dataset: one pass over its rows, in memory that doesn't grow with the pixels.

Of each row stay its names, labels, hashes, three numbers and, where near copies are looked for, a 1 kB thumbnail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaegan.duplicates import THUMBNAIL, thumbnail
from vaegan.images import perceptual_hash, pixel_hash
from vaegan.inspection.reading import Shard, batches
from vaegan.shards import Manifest, labelled_of, labels_of, pixels_of

MAX_VALUES = 5_000_000_000
"""Pixel values whose grey levels are counted, about a minute's work; of more, every n-th image is taken."""
DARK = 8
"""Grey level up to which a row or column of pixels at the edge counts as black border: JPEG leaves 0 to 5 in black."""
FLAT = 4.0
"""Standard deviation, in grey levels, below which an image counts as near constant. Kermany's films at 64 pixels have
19 to 87."""
ALL, NO_FINDING, NO_LABEL = "all images", "no finding", "no label"
Progress = Callable[[int], object]
"""Called with the number of rows that were read since."""


@dataclass(eq=False)
class Grey:
    """Grey levels of G groups of one split's images: all of them, those of each class, those of no class.

    Where there are images that nobody labelled, these are one more group, and in no other but that of all.

    names: of the groups, (G,).
    num_images: (G,).
    histogram: values of each grey level, int64 (G, 256).
    total: sum of the images, float64 (G, H, W, C).
    border: sum over images of the share that is black border, (G,).
    bordered: images of which more than a twentieth is, (G,).
    flat: near constant images, (G,).
    """

    names: tuple[str, ...]
    num_images: NDArray[np.int64]
    histogram: NDArray[np.int64]
    total: NDArray[np.float64]
    border: NDArray[np.float64]
    bordered: NDArray[np.int64]
    flat: NDArray[np.int64]

    @staticmethod
    def empty(classes: Sequence[str], shape: tuple[int, int, int], *, unlabelled: bool = False) -> Grey:
        names = (ALL, *classes, NO_FINDING, *([NO_LABEL] if unlabelled else []))
        count = len(names)
        whole = lambda *size: np.zeros((count, *size), np.int64)  # noqa: E731
        return Grey(names, whole(), whole(256), np.zeros((count, *shape)), np.zeros(count), whole(), whole())

    def add(
        self, pixels: NDArray[np.uint8], labels: NDArray[np.uint8], labelled: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Count images (N, H, W, C) with labels (N, K); returns mean, standard deviation and border share, (N, 3).

        Args:
            labelled: whether each has a label, (N,); by default all have.
        """
        labelled = np.ones(len(labels), bool) if labelled is None else labelled
        none = labelled & ~labels.any(axis=1)
        groups = np.column_stack([np.ones(len(labels), np.uint8), labels, none, ~labelled])
        member = groups.astype(np.float32).T[: len(self.names)]
        grey = to_grey(pixels)
        levels = histograms(grey)
        mean = levels @ np.arange(256) / grey[0].size
        std = np.sqrt(np.maximum(levels @ np.arange(256) ** 2 / grey[0].size - mean**2, 0))
        border = border_share(grey)
        self.num_images += member.sum(axis=1).astype(np.int64)
        self.histogram += (member.astype(np.int64)) @ levels
        # exact: a batch's sums stay below 2^24
        self.total += (member @ pixels.reshape(len(pixels), -1).astype(np.float32)).reshape(self.total.shape)
        self.border += member @ border
        self.bordered += (member @ (border > 0.05)).astype(np.int64)
        self.flat += (member @ (std < FLAT)).astype(np.int64)
        return np.column_stack([mean, std, border]).astype(np.float32)

    def mean_image(self, group: int) -> NDArray[np.float64]:
        """(H, W, C); nan where the group is empty."""
        return self.total[group] / (self.num_images[group] or np.nan)

    def mean(self, group: int) -> float:
        """Of all values of a group, in grey levels."""
        count = self.histogram[group].sum()
        return float(self.histogram[group] @ np.arange(256) / (count or np.nan))

    def std(self, group: int) -> float:
        """Of all values of a group, within and between its images."""
        count = self.histogram[group].sum()
        square = self.histogram[group] @ np.arange(256) ** 2 / (count or np.nan)
        return float(np.sqrt(max(square - self.mean(group) ** 2, 0)))


@dataclass(frozen=True, eq=False)
class Rows:
    """What is remembered of each of N images, in the order of the files.

    split: index into `splits`, (N,).
    labels: multi-hot (N, K), zeros where there is none.
    labelled: whether somebody labelled it, (N,).
    synthetic: whether no patient's, (N,).
    pixel_hash: 64 hexadecimal digits of SHA-256, bytes (N,).
    perceptual_hash, thumbnails: (N,) and (N, 32, 32), or empty where near copies aren't looked for.
    looks: mean, standard deviation (grey levels) and share of black border, (N, 3); nan where not measured.
    """

    splits: tuple[str, ...]
    classes: tuple[str, ...]
    split: NDArray[np.int8]
    labels: NDArray[np.uint8]
    labelled: NDArray[np.bool_]
    synthetic: NDArray[np.bool_]
    patient_id: pa.ChunkedArray
    image_id: pa.ChunkedArray
    pixel_hash: NDArray[np.bytes_]
    perceptual_hash: NDArray[np.uint64]
    thumbnails: NDArray[np.uint8]
    looks: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.split)

    def label(self, row: int) -> str:
        """Class names of a row, "Mass + Effusion" where there are several."""
        if not self.labelled[row]:
            return NO_LABEL
        return label_words([self.classes[k] for k in np.flatnonzero(self.labels[row])])

    def name(self, row: int) -> str:
        return str(self.image_id[row])


@dataclass(frozen=True, eq=False)
class Contents:
    """A dataset after one pass.

    grey: of each split.
    every: each how many-th image's grey levels were counted; 1 is all of them.
    models: synthetic images by the model that made them.
    """

    rows: Rows
    grey: dict[str, Grey]
    every: int
    models: Counter[str] = field(default_factory=Counter)


def read_contents(
    shards: Sequence[Shard],
    manifest: Manifest,
    *,
    near: bool,
    max_values: int = MAX_VALUES,
    progress: Progress = lambda _rows: None,
) -> Contents:
    """Read all rows once.

    Args:
        near: whether to remember what near copies are found by.
        max_values: pixel values whose grey levels are counted; of more, every n-th image is taken.

    Raises:
        UserError: a file can't be read.
    """
    splits = tuple(manifest.splits)
    shape = (manifest.height, manifest.width, manifest.channels)
    num_rows = sum(shard.num_rows for shard in shards)
    every = max(1, -(-num_rows * int(np.prod(shape)) // max_values))
    rows = _no_rows(num_rows, splits, manifest.classes, near)
    unlabelled = any(shard.marked for shard in shards)
    grey = {split: Grey.empty(manifest.classes, shape, unlabelled=unlabelled) for split in splits}
    models: Counter[str] = Counter()
    names: dict[str, list[pa.Array]] = {"patient_id": [], "image_id": []}
    at = 0
    for shard, table in batches(shards, manifest):
        pixels, labelled, here = pixels_of(table), labelled_of(table), slice(at, at + table.num_rows)
        labels = labels_of(table) * labelled[:, None]
        rows.split[here], rows.labels[here], rows.labelled[here] = splits.index(shard.split), labels, labelled
        rows.synthetic[here] = np.array(table.column("source").to_pylist()) == "synthetic"
        _remember(rows, here, pixels, near)
        for column, chunks in names.items():
            chunks += table.column(column).chunks
        models.update(name for name in table.column("model").to_pylist() if name)
        taken = np.arange(-at % every, table.num_rows, every)
        if len(taken):
            rows.looks[at + taken] = grey[shard.split].add(pixels[taken], labels[taken], labelled[taken])
        at += table.num_rows
        progress(table.num_rows)
    kept = {name: pa.chunked_array(chunks, type=pa.string()).combine_chunks() for name, chunks in names.items()}
    return Contents(Rows(**vars(rows) | kept), grey, every, models)


def _no_rows(count: int, splits: tuple[str, ...], classes: tuple[str, ...], near: bool) -> Rows:
    """Room for `count` rows."""
    remembered = count if near else 0
    nothing = pa.chunked_array([], type=pa.string())
    return Rows(
        splits=splits,
        classes=classes,
        split=np.zeros(count, np.int8),
        labels=np.zeros((count, len(classes)), np.uint8),
        labelled=np.ones(count, bool),
        synthetic=np.zeros(count, bool),
        patient_id=nothing,
        image_id=nothing,
        pixel_hash=np.zeros(count, "S64"),
        perceptual_hash=np.zeros(remembered, np.uint64),
        thumbnails=np.zeros((remembered, THUMBNAIL, THUMBNAIL), np.uint8),
        looks=np.full((count, 3), np.nan, np.float32),
    )


def _remember(rows: Rows, here: slice, pixels: NDArray[np.uint8], near: bool) -> None:
    rows.pixel_hash[here] = [pixel_hash(image) for image in pixels]
    if near:
        rows.perceptual_hash[here] = [perceptual_hash(image) for image in pixels]
        rows.thumbnails[here] = [thumbnail(image) for image in pixels]


# ---------------------------------------------------------------------------------------------------------- of an image
def label_words(names: Sequence[str]) -> str:
    """An image's classes, short enough for a caption."""
    more = f" + {len(names) - 3} more" if len(names) > 4 else ""
    return (" + ".join(names[: 3 if more else 4]) + more) or NO_FINDING


def to_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W, C) to (N, H, W): colour by the ITU-R 601 luma, as Pillow does."""
    if pixels.shape[3] == 1:
        return pixels[..., 0]
    red, green, blue = (pixels[..., c].astype(np.uint32) for c in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)


def histograms(grey: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many pixels of each image (N, H, W) have each grey level, (N, 256)."""
    count = len(grey)
    flat = grey.reshape(count, -1).astype(np.int64) + 256 * np.arange(count)[:, None]
    return np.bincount(flat.ravel(), minlength=256 * count).reshape(count, 256)


def border_share(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of each image (N, H, W) that lies in rows and columns at its edges without a pixel above `DARK`, (N,)."""
    dark_rows, dark_columns = grey.max(axis=2) <= DARK, grey.max(axis=1) <= DARK
    height, width = grey.shape[1:]
    left = (height - _run(dark_rows) - _run(dark_rows[:, ::-1])) * (
        width - _run(dark_columns) - _run(dark_columns[:, ::-1])
    )
    return np.where(dark_rows.all(axis=1), 1.0, 1 - left / (height * width))


def _run(dark: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many entries of each row are true before the first that isn't, (N,)."""
    return np.where(dark.all(axis=1), dark.shape[1], dark.argmin(axis=1))
