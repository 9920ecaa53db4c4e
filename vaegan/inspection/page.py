"""What is in a dataset as inspect.html: one file that needs no other, and no script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from vaegan.inspection import plots, words
from vaegan.inspection.contents import DARK, FLAT, NO_FINDING, NO_LABEL, Contents, label_words
from vaegan.inspection.pictures import (
    Pair,
    Side,
    Strip,
    class_differences,
    differences,
    means,
    scale_bar,
    split_differences,
)
from vaegan.inspection.plots import Plot
from vaegan.inspection.recheck import Recheck
from vaegan.inspection.recorded import Finding, Recorded
from vaegan.inspection.shortcuts import LOOKS, Tell
from vaegan.shards import Manifest
from vaegan.webpage.html import environment, stylesheet
from vaegan.webpage.words import counted, duration, joined, magnitude, moment, number

TEMPLATES = Path(__file__).parent / "templates"
BANDS = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 9), (10, 10**9))
"""Images per patient, from and to."""
MAX_MATRIX = 20
"""Classes in the table of labels that occur together."""
MAX_INPUTS = 20
FILTERS: dict[str, Callable[..., Any]] = {
    "counted": counted, "duration": duration, "joined": joined, "magnitude": magnitude, "moment": moment,
    "number": number, "pair_words": words.pair_words, "mean_words": words.mean_words,
    "across_words": words.across_words,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Inspection:
    """Everything that the page shows."""

    name: str
    manifest: Manifest
    contents: Contents
    checked: Recheck
    recorded: Recorded
    tells: list[Tell]
    strips: list[Strip]
    hidden_strips: int
    pairs: list[Pair]
    flattest: list[Side]
    splits: tuple[str, ...]
    """Those whose pictures and grey levels are shown."""
    verified: bool
    seed: int
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Share:
    """A count of a class in a split."""

    count: int
    share: float


def render_html(found: Inspection) -> str:
    """The whole page as one HTML text. The same input gives the same bytes."""
    grey = {split: found.contents.grey[split] for split in found.splits}
    return _environment().get_template("inspect.html.j2").render(
        i=found,
        m=found.manifest,
        r=found.recorded,
        checked=found.checked,
        source=words.source_sentence(found.contents),
        kind=words.verdict_kind(found.checked),
        headline=words.headline(found.checked),
        sentences=words.recheck_sentences(found.checked, found.verified),
        leaks=words.leaks_sentence(found.recorded),
        films=words.films_sentence(found.recorded.films),
        num_real=int((~found.contents.rows.synthetic).sum()),
        balance=balance(found.contents),
        per_patient=per_patient(found.checked),
        bands=[_band(*band) for band in BANDS],
        together=together(found.contents) if found.manifest.task == "multilabel" else None,
        looks=look_rows(found.contents, found.splits),
        levels=[*(plots.class_levels(each, split) for split, each in grey.items()), *_across(found)],
        means=[means(grey[split], split) for split in grey],
        by_class=differences([half for split in grey for half in class_differences(grey[split], split)]),
        by_split=differences(split_differences(found.contents.grey)),
        bar=scale_bar(),
        tell_rows=tell_rows(found.tells),
        tell_notes=words.tell_sentences(found.tells),
        prepared=recorded_pairs(found),
        finding_rows=finding_rows(found.recorded),
        css=stylesheet(TEMPLATES / "inspect.css"),
    )  # fmt: skip


@cache
def _environment() -> Environment:
    made = environment(TEMPLATES, FILTERS)
    made.globals |= {"TASKS": words.TASKS, "KINDS": words.KIND_WORDS, "LOOKS": LOOKS, "DARK": DARK, "FLAT": FLAT,
                     "MAX_INPUTS": MAX_INPUTS}  # fmt: skip
    return made


def _across(found: Inspection) -> list[Plot]:
    return [plots.split_levels(found.contents.grey)] if len(found.contents.grey) > 1 else []


# --------------------------------------------------------------------------------------------------------------- tables
def balance(contents: Contents) -> list[tuple[str, list[Share]]]:
    """Each class, images without a finding and those without a label, with count and share in every split."""
    rows = contents.rows
    masks = [(rows.split == s) for s in range(len(rows.splits))]
    found = [(name, [_share(rows.labels[mask, k]) for mask in masks]) for k, name in enumerate(rows.classes)]
    none = [_share((rows.labelled & ~rows.labels.any(axis=1))[mask]) for mask in masks]
    if rows.classes and any(each.count for each in none):
        found.append((NO_FINDING, none))
    if not rows.labelled.all():
        found.append((NO_LABEL, [_share(~rows.labelled[mask]) for mask in masks]))
    return found


def _share(positive: np.ndarray) -> Share:
    return Share(int(positive.sum()), float(positive.mean()) if len(positive) else 0.0)


def per_patient(checked: Recheck) -> list[tuple[str, list[int], float, int]]:
    """For each split: patients in each of `BANDS`, images per patient on average, and most."""
    found = []
    for split, tally in checked.patients.images.items():
        patients, images = sum(tally.values()), sum(count * number for count, number in tally.items())
        inside = [sum(n for count, n in tally.items() if low <= count <= high) for low, high in BANDS]
        found.append((split, inside, images / max(patients, 1), max(tally, default=0)))
    return found


def _band(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} or more" if high == BANDS[-1][1] else f"{low} to {high}"


def together(contents: Contents) -> tuple[list[str], list[list[Share]], bool]:
    """The most frequent classes; images that have both of two; whether classes were left away.

    The share is of the row's images.
    """
    rows = contents.rows
    counts = rows.labels.sum(axis=0, dtype=np.int64)
    kept = np.sort(np.argsort(-counts, kind="stable")[:MAX_MATRIX])
    labels = rows.labels[:, kept].astype(np.float32)
    both = (labels.T @ labels).astype(np.int64)
    cells = [
        [Share(int(both[a, b]), both[a, b] / max(both[a, a], 1)) for b in range(len(kept))] for a in range(len(kept))
    ]
    return [rows.classes[k] for k in kept], cells, len(kept) < len(counts)


@dataclass(frozen=True)
class LookRow:
    """Grey levels of one group of a split."""

    split: str
    group: str
    num_images: int
    mean: float
    std: float
    border: float
    bordered: float
    flat: int


def look_rows(contents: Contents, splits: Sequence[str]) -> list[LookRow]:
    found = []
    for split in splits:
        grey = contents.grey[split]
        for g, name in enumerate(grey.names):
            count = int(grey.num_images[g])
            if count and not (g and count == grey.num_images[0]):
                found.append(
                    LookRow(split, name, count, grey.mean(g), grey.std(g), float(grey.border[g]) / count,
                            int(grey.bordered[g]) / count, int(grey.flat[g]))
                )  # fmt: skip
    return found


def tell_rows(tells: Sequence[Tell]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Each class or split with the AUC of each look, and whether it is notable."""
    return [
        (
            f"{tell.subject}, from {tell.against}",
            [(words.auc_cell(tell, k), tell.notable(k)) for k in range(len(LOOKS))],
        )
        for tell in tells
    ]


def finding_rows(recorded: Recorded) -> list[tuple[str, str, int, int]]:
    """Of what prepare found: what, where, how many pairs, of how many one image was taken out."""
    if recorded.findings is None:
        return []
    found: dict[tuple[str, bool], list[int]] = {}
    for (kind, across, removed), count in recorded.findings.counts.items():
        pairs = found.setdefault((kind, across), [0, 0])
        pairs[0] += count
        pairs[1] += count if removed else 0
    return [
        (words.KIND_WORDS.get(kind, kind), "in two splits" if across else "in one split", pairs, removed)
        for (kind, across), (pairs, removed) in found.items()
    ]


def recorded_pairs(found: Inspection) -> list[Pair]:
    """What prepare found, less what was found again and is shown already."""
    if found.recorded.findings is None:
        return []
    seen = {frozenset((pair.left.image_id, pair.right.image_id)) for pair in found.pairs}
    pairs = [finding_pair(each) for each in found.recorded.findings.shown]
    return [pair for pair in pairs if frozenset((pair.left.image_id, pair.right.image_id)) not in seen]


def _recorded_words(labels: str | None) -> str:
    return NO_LABEL if labels is None else label_words([name for name in labels.split("|") if name])


def finding_pair(finding: Finding) -> Pair:
    left, right = (
        Side(finding.image_ids[k], finding.splits[k], _recorded_words(finding.labels[k]), finding.thumbnails[k])
        for k in range(2)
    )
    return Pair(finding.kind, left, right, finding.correlation, finding.removed)
