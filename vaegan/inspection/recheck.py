"""Whether splits can be trusted, found out from a dataset's rows as they are, whoever wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from vaegan import duplicates
from vaegan.inspection.contents import Contents, Rows
from vaegan.shards import Manifest

Indices = NDArray[np.int64]
MAX_LISTED = 50
"""Patients by name; counts are complete."""


@dataclass(frozen=True, eq=False)
class Patients:
    """The patients of real images.

    number: of them all.
    unknown: whether each image counts as a patient of its own, so that nobody could be in two splits.
    across: those in several splits; across_listed: the first of them with those splits.
    several_labels: those whose images don't all have the same labels.
    images: how many patients of each split have 1, 2, ... images: {split: {images: patients}}.
    """

    number: int
    unknown: bool
    across: int
    across_listed: list[tuple[str, tuple[str, ...]]]
    several_labels: int
    several_listed: list[str]
    images: dict[str, dict[int, int]]


@dataclass(frozen=True, eq=False)
class Copies:
    """Pairs of rows that are copies.

    exact: of each repeat and the first of its kind, (P, 2).
    near: (P, 2), or None where they were not looked for.
    across, conflicting: which pairs are in two splits, have different labels; the exact ones first, (P,).
    groups, groups_across: sets of images that are copies of each other, and those in several splits.
    """

    exact: Indices
    near: Indices | None
    across: NDArray[np.bool_]
    conflicting: NDArray[np.bool_]
    groups: int
    images: int

    @property
    def pairs(self) -> Indices:
        """All of them, the exact ones first."""
        return self.exact if self.near is None else np.concatenate([self.exact, self.near])

    @property
    def exact_across(self) -> int:
        return int(self.across[: len(self.exact)].sum())

    @property
    def near_across(self) -> int:
        return int(self.across[len(self.exact) :].sum())

    def worst(self, count: int) -> Indices:
        """Positions in `pairs` of the first to look at: in two splits, with two labels, near copies, exact ones."""
        is_exact = np.arange(len(self.across)) < len(self.exact)
        return np.lexsort((is_exact, ~self.conflicting, ~self.across))[:count]


@dataclass(frozen=True, eq=False)
class Recheck:
    """What was found, and what the manifest counts otherwise."""

    num_images: int
    splits: tuple[str, ...]
    patients: Patients
    copies: Copies
    miscounts: list[str]

    @property
    def passes(self) -> bool:
        """No patient and no exact copy is in two splits, and the manifest's counts are right."""
        return not (self.patients.across or self.copies.exact_across or self.miscounts)


def recheck(contents: Contents, manifest: Manifest) -> Recheck:
    """Look for patients and copies in two splits among all rows, and count them again."""
    rows = contents.rows
    patients = find_patients(rows)
    return Recheck(len(rows), rows.splits, patients, find_copies(rows), miscounts(rows, manifest))


def find_patients(rows: Rows) -> Patients:
    """Real images by patient."""
    real = np.flatnonzero(~rows.synthetic)
    names = rows.patient_id.take(real)
    encoded = pc.dictionary_encode(names)
    of_row, known = encoded.indices.to_numpy().astype(np.int64), encoded.dictionary
    unknown = len(real) > 0 and bool(pc.all(pc.equal(names, rows.image_id.take(real))).as_py())
    present = np.zeros((len(known), len(rows.splits)), bool)
    present[of_row, rows.split[real]] = True
    across = np.flatnonzero(present.sum(axis=1) > 1)
    told = rows.labelled[real]
    several = np.flatnonzero(_disagree(of_row[told], rows.labels[real][told], len(known)))
    splits = np.array(rows.splits, dtype=object)
    return Patients(
        number=len(known),
        unknown=unknown,
        across=len(across),
        across_listed=[(str(known[int(p)]), tuple(splits[present[p]])) for p in across[:MAX_LISTED]],
        several_labels=len(several),
        several_listed=[str(known[int(p)]) for p in several[:MAX_LISTED]],
        images={name: _tally(of_row[rows.split[real] == s]) for s, name in enumerate(rows.splits)},
    )


def _disagree(group: Indices, labels: NDArray[np.uint8], count: int) -> NDArray[np.bool_]:
    """Whether the rows of each group have different labels, (count,)."""
    first = np.zeros(count, np.int64)
    first[group[::-1]] = np.arange(len(group))[::-1]
    differs = np.zeros(count, bool)
    differs[group[(labels != labels[first[group]]).any(axis=1)]] = True
    return differs


def _tally(of_row: Indices) -> dict[int, int]:
    """Number of images to the number of patients that have so many."""
    per_patient = np.unique(of_row, return_counts=True)[1]
    values, counts = np.unique(per_patient, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def find_copies(rows: Rows) -> Copies:
    """Exact copies, and near ones if what they are found by was remembered."""
    near = None
    if len(rows.perceptual_hash) == len(rows):
        exact, near = duplicates.find_pairs(rows.pixel_hash, rows.perceptual_hash, rows.thumbnails)
    else:
        exact = duplicates.exact_pairs(rows.pixel_hash)
    pairs = exact if near is None else np.concatenate([exact, near])
    a, b = pairs[:, 0], pairs[:, 1]
    sizes = np.bincount(duplicates.components(len(rows), pairs)) if len(rows) else np.empty(0, int)
    return Copies(
        exact=exact,
        near=near,
        across=rows.split[a] != rows.split[b],
        conflicting=(rows.labels[a] != rows.labels[b]).any(axis=1) & rows.labelled[a] & rows.labelled[b],
        groups=int((sizes > 1).sum()),
        images=int(sizes[sizes > 1].sum()),
    )


def correlations(rows: Rows, pairs: Indices) -> list[float | None]:
    """Pearson correlation of the thumbnails of each pair; 1 of exact copies, None where there are no thumbnails."""
    found: list[float | None] = []
    for a, b in pairs:
        if rows.pixel_hash[a] == rows.pixel_hash[b]:
            found.append(1.0)
        elif len(rows.thumbnails):
            found.append(float(duplicates.correlation(rows.thumbnails[[a]], rows.thumbnails[[b]])[0]))
        else:
            found.append(None)
    return found


def miscounts(rows: Rows, manifest: Manifest) -> list[str]:
    """Sentences on what the manifest counts otherwise than its files hold."""
    found = []
    for s, (name, info) in enumerate(manifest.splits.items()):
        mine = np.flatnonzero(rows.split == s)
        told: Sequence[tuple[str, object, int]] = [
            ("images", info.num_images, len(mine)),
            ("images without a label", info.num_unlabelled, int((~rows.labelled[mine]).sum())),
            ("patients", info.num_patients, pc.count_distinct(rows.patient_id.take(mine)).as_py()),
            *(
                (f"{label} images", info.per_class.get(label), int(count))
                for label, count in zip(rows.classes, rows.labels[mine].sum(axis=0, dtype=np.int64), strict=True)
            ),
        ]
        found += [
            f"The manifest counts {says} {what} in {name}, the files hold {count:,}."
            for what, says, count in told
            if says != count
        ]
    if manifest.task == "multiclass" and rows.classes:
        odd = int((rows.labels[rows.labelled].sum(axis=1) != 1).sum())
        if odd:
            found.append(f"The task is multiclass, but {odd:,} images don't have exactly one label.")
    return found
