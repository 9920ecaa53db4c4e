"""Two sets of images, and any number of extractors, to the content of metrics.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cluster.errors import UserError
from cluster.provenance import provenance
from vaegan.evaluation.bias import bias
from vaegan.evaluation.comparison import Comparison, Rows
from vaegan.evaluation.diversity import Similarities, diversity, similarities
from vaegan.evaluation.gallery import FeatureSets, Gallery, build_gallery
from vaegan.metrics.cache import FeatureCache
from vaegan.metrics.extraction import extract, progress_bar
from vaegan.metrics.extractor import Extractor, Features
from vaegan.metrics.intervals import DEFAULT, Subsampling
from vaegan.metrics.ms_ssim import WINDOW
from vaegan.metrics.sources import ImageSource, source_of
from vaegan.shards import Images

FORMAT_VERSION = 2
MIN_IMAGES = 24
"""On either side: half of a half must still hold more than five neighbours."""
MIN_HELD_OUT = 100
"""A held-out split below it says less than two halves of the reference do."""

Progress = Callable[[str], None]
FeaturesOf = Callable[[Mapping[str, ImageSource], Extractor], dict[str, Features]]
"""Features of named sources, by the same names: computed here, found in a cache, or computed on other machines."""


def features_here(
    sources: Mapping[str, ImageSource],
    extractor: Extractor,
    *,
    batch_size: int | None = None,
    cache: FeatureCache | None = None,
) -> dict[str, Features]:
    """Features computed in this process, with a progress bar for each set."""
    found = {}
    for name, source in sources.items():
        with progress_bar(f"{extractor.name}, {name}") as bar:
            found[name] = extract(source, extractor, batch_size=batch_size, cache=cache, progress=bar)
    return found


@dataclass(frozen=True, kw_only=True)
class Sets:
    """The images of an evaluation."""

    real: ImageSource
    """The reference: what the generator was trained on, where its privacy is asked about."""
    synthetic: ImageSource
    held_out: ImageSource | None = None
    """Real images the generator has not seen."""

    def __post_init__(self) -> None:
        """Refuse what can't be compared.

        Raises:
            UserError: too few images, or images of two different shapes.
        """
        for name, images in {"real": self.real, "synthetic": self.synthetic}.items():
            if len(images) < MIN_IMAGES:
                raise UserError(
                    f"{len(images)} {name} images: no metric means anything below {MIN_IMAGES}; sample or import more"
                )
        for name, others in {"synthetic": self.synthetic, "held-out": self.held_out}.items():
            if others is not None and others.shape != self.real.shape:
                raise UserError(
                    f"the real images are {_shape(self.real)} and the {name} ones {_shape(others)} (height x width x "
                    "channels): a difference in size would be measured as a difference in quality; prepare both alike, "
                    "or give --size"
                )

    @property
    def all(self) -> dict[str, ImageSource]:
        """Those that are there, by name."""
        sets = {"real": self.real, "synthetic": self.synthetic, "held_out": self.held_out}
        return {name: source for name, source in sets.items() if source is not None}

    @property
    def floor(self) -> ImageSource | None:
        """The held-out images if they make a floor."""
        return None if self.held_out is None or len(self.held_out) < MIN_HELD_OUT else self.held_out

    @property
    def floor_words(self) -> str:
        if self.floor is not None:
            return "held-out real images against the whole reference"
        halves = "two halves of the reference that share no patient"
        few = (
            ""
            if self.held_out is None
            else f" (the {len(self.held_out)} held-out images are fewer than {MIN_HELD_OUT})"
        )
        return halves + few


@dataclass(frozen=True)
class Measured:
    """The numbers, and what their pictures are made of."""

    sets: Sets
    features: list[tuple[Extractor, dict[str, Features]]]
    """By set's name, for each extractor."""
    similarities: tuple[Similarities, Similarities] | None
    """Of pairs of real and of synthetic images; None where the images are too small for MS-SSIM."""
    result: dict[str, Any]
    seed: int

    def gallery(self) -> Gallery:
        """The pictures of metrics.html."""
        privacy = self.result["privacy"] or {}
        alike = self.similarities
        return build_gallery(
            self.sets.real,
            self.sets.synthetic,
            [
                FeatureSets(extractor.name, **{name: each.features for name, each in found.items()})
                for extractor, found in self.features
            ],
            held_out=self.sets.held_out,
            suspicious_pairs=privacy.get("suspicious_pairs", ()),
            similarities=None if alike is None else (alike[0].values, alike[1].values),
            seed=self.seed,
        )


def measure(
    sets: Sets,
    extractors: Sequence[Extractor],
    *,
    features_of: FeaturesOf = features_here,
    seed: int = 2020,
    subsampling: Subsampling = DEFAULT,
    inputs: dict[str, str] | None = None,
    progress: Progress = lambda _line: None,
) -> Measured:
    """All metrics of `comparison.METRICS` under each extractor, the bias of each, the diversity of pixels.

    Args:
        inputs: name of each thing read, to its sha256, for the provenance.
    """
    started_s = time.time()
    numbers: list[dict[str, Any]] = []
    biases = []
    features: list[tuple[Extractor, dict[str, Features]]] = []
    for extractor in extractors:
        progress(f"{extractor.name}: features of {' and '.join(f'{len(s)} {n}' for n, s in sets.all.items())} images")
        features.append((extractor, features_of(sets.all, extractor)))
        progress(f"{extractor.name}: metrics, intervals and floor")
        comparison = compare(sets, extractor, features[-1][1], seed, subsampling)
        numbers += comparison.numbers()
        biases.append(bias(comparison))
    alike = None
    if min(sets.real.shape[:2]) >= WINDOW:
        progress("pixels: how alike pairs of images are")
        alike = (
            similarities(sets.real, units(sets.real), seed),
            similarities(sets.synthetic, units(sets.synthetic), seed),
        )
        numbers += diversity(*alike, sets.real.shape)
    result = {
        "format": FORMAT_VERSION,
        "sets": {"held_out": None} | {name: about(source) for name, source in sets.all.items()},
        "numbers": numbers,
        "bias": biases,
        "privacy": None,
        "provenance": provenance(seed=seed, started_s=started_s, inputs=inputs or {}),
    }
    return Measured(sets, features, alike, result, seed)


def evaluate_images(
    real: Images,
    synthetic: Images,
    extractors: Sequence[Extractor],
    *,
    held_out: Images | None = None,
    seed: int = 2020,
    subsampling: Subsampling = DEFAULT,
    batch_size: int | None = None,
    inputs: dict[str, str] | None = None,
    progress: Progress = lambda _line: None,
) -> dict[str, Any]:
    """The content of metrics.json for images in memory; see `measure`.

    Args:
        real: the reference. held_out: real images the generator has not seen, for the floor; None, or fewer than
            `MIN_HELD_OUT`, takes two halves of the reference.

    Raises:
        UserError: too few images, or images of two different shapes.
    """
    sets = Sets(
        real=source_of(real, "real images"),
        synthetic=source_of(synthetic, "synthetic images"),
        held_out=None if held_out is None else source_of(held_out, "held-out images"),
    )
    features_of = partial(features_here, batch_size=batch_size)
    return measure(
        sets, extractors,
        features_of=features_of, seed=seed, subsampling=subsampling, inputs=inputs, progress=progress,
    ).result  # fmt: skip


def compare(
    sets: Sets, extractor: Extractor, features: dict[str, Features], seed: int, subsampling: Subsampling
) -> Comparison:
    """One extractor's comparison."""
    return Comparison(
        extractor=extractor,
        real=Rows(features["real"], units(sets.real)),
        synthetic=Rows(features["synthetic"], np.arange(len(sets.synthetic)).astype(str)),
        held_out=None if sets.floor is None else Rows(features["held_out"], units(sets.floor)),
        floor_words=sets.floor_words,
        seed=seed,
        subsampling=subsampling,
    )


def units(source: ImageSource | Images) -> np.ndarray:
    """The unit each row belongs to, for drawing: its patient; the row itself where patients are unknown or too few."""
    ids = np.array([patient or f"\0{row}" for row, patient in enumerate(source.patient_id)], dtype=str)
    return ids if len(np.unique(ids)) >= MIN_IMAGES else np.arange(len(source)).astype(str)


def about(source: ImageSource) -> dict[str, Any]:
    """What metrics.json says of a set."""
    counts = source.labels.sum(axis=0, dtype=np.int64)
    return {
        "name": source.name,
        "num_images": len(source),
        "num_patients": len({patient for patient in source.patient_id if patient}),
        "classes": dict(zip(source.classes, map(int, counts), strict=True)),
        "shape": list(source.shape),
        "rejected": len(source.rejected),
        "sha256": source.sha256,
    }


def _shape(source: ImageSource) -> str:
    return "x".join(map(str, source.shape))
