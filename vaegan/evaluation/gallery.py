"""What metrics.html shows besides numbers: pictures drawn by seed, maps of the features, pairs, misses; as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vaegan.evaluation.embedding import Embedding, embed
from vaegan.evaluation.lookalikes import most_alike
from vaegan.evaluation.misses import stretches
from vaegan.images import reduced, reduced_size
from vaegan.metrics.intervals import draw_rows

MAX_SIDE = 112
"""Larger images are shown reduced to it: some 250 pictures then weigh about 2 MB, and the page can be sent."""
PICTURES_OF_A_SET = 90
"""In all grids of one set together."""
ROW = 6
"""A grid has whole rows of it."""
MOST_PER_CLASS, FEWEST_PER_CLASS = 3 * ROW, ROW
MAX_POINTS = 1000
"""Rows of each set on a map: more would hide each other."""
MAX_NEIGHBOURS = 20_000
"""Rows of a set whose neighbours are looked up, as for precision and recall."""
MAX_COMPARED = 4000
"""Rows of a set among which the most alike pairs are looked for."""
MISSES, ALIKE, SUSPICIOUS = 8, 6, 10
MARKED_CLASSES = 6
"""Classes with a marker of their own on a map; the rarer ones share one."""
NO_CLASS, OTHER_CLASSES, ALL_IMAGES = "no class", "other classes", "all images"


class ImageRows(Protocol):
    """N images by row, their pixels read when they are needed: `vaegan.metrics.sources.ImageSource` is one."""

    def __len__(self) -> int: ...

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (len(rows), H, W, C)."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """uint8 (N, K), multi-hot over `classes`."""
        ...

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def patient_id(self) -> np.ndarray:
        """str (N,); "" where it is not known."""
        ...

    @property
    def image_id(self) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class FeatureSets:
    """One extractor's features of all images, row for row."""

    extractor: str
    """Its name, as the stamps of its numbers have it."""
    real: np.ndarray
    """(N, D)."""
    synthetic: np.ndarray
    """(M, D)."""
    held_out: np.ndarray | None = None
    """(H, D)."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One image, small enough for the page."""

    pixels: np.ndarray
    """uint8 (H, W, C), no side above `MAX_SIDE`."""
    source: str
    """ "real", "synthetic" or "held-out"; the last is a real image too."""
    image_id: str
    label: str
    """Its class or classes, in words."""


@dataclass(frozen=True, eq=False)
class ClassGrid:
    """Images of one class, as many real as synthetic ones where both have that many."""

    name: str
    real: tuple[Picture, ...]
    synthetic: tuple[Picture, ...]


@dataclass(frozen=True, eq=False)
class Miss:
    """A synthetic image that is like no real one, or a real one that no synthetic one is like."""

    picture: Picture
    stretch: float
    """See `misses.Stretches`; infinite beside exact copies."""


@dataclass(frozen=True, eq=False)
class Misses:
    """The farthest of either kind under one extractor, and how many there are."""

    extractor: str
    num_outside: int
    num_synthetic: int
    outside: tuple[Miss, ...]
    num_uncovered: int
    num_real: int
    uncovered: tuple[Miss, ...]


@dataclass(frozen=True, eq=False)
class AlikePair:
    """Two images of one set."""

    first: Picture
    second: Picture
    correlation: float
    ms_ssim: float | None


@dataclass(frozen=True, eq=False)
class Gallery:
    """All pictures and maps of a page. Everything drawn is drawn by `seed`, nothing is picked by eye."""

    seed: int
    grids: tuple[ClassGrid, ...]
    num_hidden_classes: int
    """Rarest classes that have no grid, since the page would grow too large."""
    shown_at: tuple[int, int] | None
    """(H, W) to which larger images were reduced; None where they are shown as they are."""
    embeddings: tuple[Embedding, ...]
    misses: tuple[Misses, ...]
    similarities_real: np.ndarray | None
    """(P,): MS-SSIM of random pairs of real images, of one class and two patients; None where it was not measured."""
    similarities_synthetic: np.ndarray | None
    alike_real: tuple[AlikePair, ...]
    alike_synthetic: tuple[AlikePair, ...]
    num_compared: tuple[int, int]
    """Real and synthetic images among which the most alike pairs were looked for."""
    suspicious: tuple[tuple[Picture, Picture], ...]
    """(synthetic, real) of the first suspicious pairs of metrics.json, in its order."""


def build_gallery(
    real: ImageRows,
    synthetic: ImageRows,
    features: Sequence[FeatureSets],
    *,
    held_out: ImageRows | None = None,
    members: ImageRows | None = None,
    suspicious_pairs: Sequence[Mapping[str, Any]] = (),
    similarities: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> Gallery:
    """The pictures of an evaluation.

    Args:
        features: of each extractor, in the order of its numbers.
        held_out: the real images that the rows of `FeatureSets.held_out` and of pairs of `set` "held_out" count.
        members: the generator's training images, which the rows of pairs of `set` "members" count; None takes `real`.
        suspicious_pairs: as metrics.json has them (`synthetic_row`, `real_row`, `set`).
        similarities: MS-SSIM of random pairs of real and of synthetic images.
    """
    grids, num_hidden = class_grids(real, synthetic, seed)
    height, width = real.pixels(np.array([0])).shape[1:3]
    shown = reduced_size(height, width, MAX_SIDE)
    alike_real, compared_real = alike_pairs(real, "real", seed)
    alike_synthetic, compared_synthetic = alike_pairs(synthetic, "synthetic", seed)
    return Gallery(
        seed=seed,
        grids=grids,
        num_hidden_classes=num_hidden,
        shown_at=None if shown == (height, width) else shown,
        embeddings=embeddings(real, synthetic, held_out, features, seed),
        misses=tuple(find_misses(real, synthetic, sets, seed) for sets in features),
        similarities_real=similarities[0] if similarities else None,
        similarities_synthetic=similarities[1] if similarities else None,
        alike_real=alike_real,
        alike_synthetic=alike_synthetic,
        num_compared=(compared_real, compared_synthetic),
        suspicious=suspicious(synthetic, members or real, held_out, suspicious_pairs),
    )


# ---------------------------------------------------------------------------------------------------------------- grids
def class_grids(real: ImageRows, synthetic: ImageRows, seed: int) -> tuple[tuple[ClassGrid, ...], int]:
    """A grid for each class, drawn at random, the classes in the real images' order; and how many classes have none.

    Where either set knows no classes there is one grid of all images. An image of several classes may be in several
    grids.
    """
    names = _groups(real, synthetic)
    most = PICTURES_OF_A_SET // FEWEST_PER_CLASS
    if len(names) > most:
        count = Counter({name: len(_rows_of(real, name)) + len(_rows_of(synthetic, name)) for name in names})
        frequent = {name for name, _ in count.most_common(most)}
        names, hidden = [name for name in names if name in frequent], len(names) - most
    else:
        hidden = 0
    share = PICTURES_OF_A_SET // max(len(names), 1) // ROW * ROW
    per_class = int(np.clip(share, FEWEST_PER_CLASS, MOST_PER_CLASS))
    return tuple(_grid(real, synthetic, name, per_class, [seed, k]) for k, name in enumerate(names)), hidden


def _groups(real: ImageRows, synthetic: ImageRows) -> list[str]:
    if not real.labels.any() or not synthetic.labels.any():
        return [ALL_IMAGES]
    names = [*dict.fromkeys([*real.classes, *synthetic.classes]), NO_CLASS]
    return [name for name in names if len(_rows_of(real, name)) or len(_rows_of(synthetic, name))]


def _rows_of(images: ImageRows, name: str) -> np.ndarray:
    if name == ALL_IMAGES:
        return np.arange(len(images))
    if name in images.classes:
        return np.flatnonzero(images.labels[:, list(images.classes).index(name)])
    return np.flatnonzero(~images.labels.any(axis=1)) if name == NO_CLASS else np.empty(0, int)


def _grid(real: ImageRows, synthetic: ImageRows, name: str, per_class: int, seed: list[int]) -> ClassGrid:
    rows = [_rows_of(real, name), _rows_of(synthetic, name)]
    count = min([per_class, *(len(each) for each in rows if len(each))])
    drawn = [_draw(each, count, [*seed, which]) for which, each in enumerate(rows)]
    return ClassGrid(name, pictures(real, drawn[0], "real"), pictures(synthetic, drawn[1], "synthetic"))


def _draw(rows: np.ndarray, count: int, seed: list[int]) -> np.ndarray:
    """Up to `count` of the rows, in order."""
    return rows[draw_rows(len(rows), count, np.random.default_rng(seed))]


# ------------------------------------------------------------------------------------------------------------- pictures
def pictures(images: ImageRows, rows: np.ndarray, source: str) -> tuple[Picture, ...]:
    """Some images, reduced to the page's size."""
    rows = np.asarray(rows, int)
    if not len(rows):
        return ()
    words = class_words(images, rows)
    return tuple(
        Picture(reduced(image, MAX_SIDE), source, str(images.image_id[row]), str(label))
        for image, row, label in zip(images.pixels(rows), rows, words, strict=True)
    )


def class_words(images: ImageRows, rows: np.ndarray) -> np.ndarray:
    """Class names of some rows, "Mass + Effusion" where there are several: str (n,)."""
    names = np.array(images.classes, dtype=object)
    told = [" + ".join(names[label.astype(bool)]) or NO_CLASS for label in images.labels[rows]]
    return np.array(told, dtype=object)


# --------------------------------------------------------------------------------------------- found, mapped, compared
def embeddings(
    real: ImageRows, synthetic: ImageRows, held_out: ImageRows | None, features: Sequence[FeatureSets], seed: int
) -> tuple[Embedding, ...]:
    """Both maps under each extractor, of the same rows: up to `MAX_POINTS` of each set."""
    sets = {"real": real, "held-out": held_out, "synthetic": synthetic}
    given = {name: images for name, images in sets.items() if images is not None}
    rows = {name: _draw(np.arange(len(each)), MAX_POINTS, [seed, k]) for k, (name, each) in enumerate(given.items())}
    classes = _marked({name: class_words(each, rows[name]) for name, each in given.items()})
    made = []
    for each in features:
        points = {"real": each.real, "held-out": each.held_out, "synthetic": each.synthetic}
        drawn = {name: array[rows[name]] for name, array in points.items() if array is not None and name in rows}
        made.append(embed(each.extractor, drawn, classes, seed))
    return tuple(made)


def _marked(classes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with all but the most frequent classes as one."""
    count = Counter(name for names in classes.values() for name in names)
    if len(count) <= MARKED_CLASSES:
        return dict(classes)
    kept = [name for name, _ in count.most_common(MARKED_CLASSES - 1)]
    return {name: np.where(np.isin(words, kept), words, OTHER_CLASSES) for name, words in classes.items()}


def find_misses(real: ImageRows, synthetic: ImageRows, features: FeatureSets, seed: int) -> Misses:
    """The synthetic images farthest from any real one, and the real ones farthest from any synthetic one."""
    ours, theirs = (_draw(np.arange(len(images)), MAX_NEIGHBOURS, [seed]) for images in (real, synthetic))
    found = stretches(features.real[ours], features.synthetic[theirs])
    outside, uncovered = found.outside(), found.uncovered()

    def farthest(
        images: ImageRows, drawn: np.ndarray, rows: np.ndarray, ratios: np.ndarray, source: str
    ) -> tuple[Miss, ...]:
        shown = pictures(images, drawn[rows[:MISSES]], source)
        return tuple(Miss(each, float(ratios[row])) for each, row in zip(shown, rows, strict=False))

    return Misses(
        extractor=features.extractor,
        num_outside=len(outside),
        num_synthetic=len(theirs),
        outside=farthest(synthetic, theirs, outside, found.synthetic, "synthetic"),
        num_uncovered=len(uncovered),
        num_real=len(ours),
        uncovered=farthest(real, ours, uncovered, found.real, "real"),
    )


def alike_pairs(images: ImageRows, source: str, seed: int) -> tuple[tuple[AlikePair, ...], int]:
    """The most alike pairs of a set, and among how many of its images they were looked for."""
    rows = _draw(np.arange(len(images)), MAX_COMPARED, [seed])
    found = most_alike(images.pixels(rows), images.patient_id[rows].astype(str), ALIKE)
    made = []
    for pair in found:
        first, second = pictures(images, rows[[pair.first, pair.second]], source)
        made.append(AlikePair(first, second, pair.correlation, pair.ms_ssim))
    return tuple(made), len(rows)


def suspicious(
    synthetic: ImageRows, members: ImageRows, held_out: ImageRows | None, pairs: Sequence[Mapping[str, Any]]
) -> tuple[tuple[Picture, Picture], ...]:
    """Both images of the first suspicious pairs."""
    shown = []
    for pair in pairs[:SUSPICIOUS]:
        of_held_out = pair["set"] == "held_out"
        others = held_out if of_held_out else members
        if others is None:
            raise ValueError("a suspicious pair with a held-out image, but no held-out images were given")
        (left,) = pictures(synthetic, np.array([pair["synthetic_row"]]), "synthetic")
        (right,) = pictures(others, np.array([pair["real_row"]]), "held-out" if of_held_out else "real")
        shown.append((left, right))
    return tuple(shown)
