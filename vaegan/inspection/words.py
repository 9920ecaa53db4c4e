"""What was found, in sentences: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vaegan.inspection.contents import Contents
from vaegan.inspection.pictures import Mean, Pair
from vaegan.inspection.recheck import Recheck
from vaegan.inspection.recorded import Recorded
from vaegan.inspection.shortcuts import LOOKS, Tell
from vaegan.webpage.words import counted, joined, number

KIND_WORDS = {
    "exact": "exact copies", "near": "near copies", "patient": "images of one patient", "group": "images of one group",
}  # fmt: skip
TASKS = {"multiclass": "exactly one class an image", "multilabel": "any number of findings an image"}


def headline(checked: Recheck) -> str:
    """The recheck in one line: what isn't in two splits, or what is."""
    across, exact = checked.patients.across, checked.copies.exact_across
    if across or exact:
        found = [counted(across, "patient")] if across else []
        found += [_copies(exact, "exact")] if exact else []
        return f"{joined(found)} {'is' if across + exact == 1 else 'are'} in two splits"
    if checked.miscounts:
        return "The manifest doesn’t describe the files as they are"
    if len(checked.splits) < 2:
        return "There is one split only, so nothing can be in two"
    if checked.patients.unknown:
        return "No exact copy is in two splits; patients aren’t known"
    if not checked.patients.number:
        return "No exact copy is in two splits; there is no real image in it"
    return "No patient and no exact copy is in two splits"


def verdict_kind(checked: Recheck) -> str:
    """The colour of the headline: "pass", "fail", "unsure", or "untested" where there is nothing to leak into."""
    if not checked.passes:
        return "fail"
    if len(checked.splits) < 2:
        return "untested"
    return "unsure" if checked.patients.unknown or checked.copies.near_across else "pass"


def recheck_sentences(checked: Recheck, verified: bool) -> list[str]:
    """What the recheck looked at and what it found, apart from the headline."""
    patients, copies = checked.patients, checked.copies
    files = "Every file has the sha256 that the manifest lists." if verified else (
        "The files’ sha256 were not compared with the manifest (--verify false)."
    )  # fmt: skip
    said = [files, *checked.miscounts, _near_sentence(checked)]
    if copies.groups:
        inside = int((~copies.across).sum())
        said.append(
            f"{counted(copies.groups, 'group')} of copies, {counted(copies.images, 'image')} in all: "
            f"{_copies(len(copies.exact), 'exact')}"
            + (f", {_copies(len(copies.near), 'near')}" if copies.near is not None else "")
            + (f"; {counted(inside, 'pair')} within one split, where a film then counts twice." if inside else ".")
        )
    conflicting = int(copies.conflicting.sum())
    if conflicting:
        said.append(f"{counted(conflicting, 'pair')} of copies {_have(conflicting)} different labels.")
    if patients.unknown:
        said.append(
            "Each image counts as a patient of its own, since nothing told patients apart: a patient with several "
            "images may be in two splits, and nobody could see it here."
        )
    if patients.several_labels:
        some = patients.several_labels
        said.append(f"{counted(some, 'patient')} {_have(some)} images with different labels.")
    return said


def _near_sentence(checked: Recheck) -> str:
    copies = checked.copies
    if copies.near is None:
        return f"Near copies were not looked for among {counted(checked.num_images, 'image')}: see --max-compared."
    if len(checked.splits) < 2:
        return f"Near copies were looked for among all {counted(checked.num_images, 'image')}."
    if copies.near_across:
        some = copies.near_across
        return (
            f"{_copies(some, 'near')} {'is' if some == 1 else 'are'} in two splits: look at the pairs, since films of "
            "one kind can be alike."
        )
    return f"No near copy is in two splits, of {counted(checked.num_images, 'image')} compared."


def _copies(count: int, kind: str) -> str:
    return f"{count:,} {kind} cop{'y' if count == 1 else 'ies'}"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def tell_sentences(tells: Sequence[Tell]) -> list[str]:
    """Numbers that tell a class or a split without any anatomy, in words."""
    return [
        f"{LOOKS[look].capitalize()} alone tells {tell.subject} from {tell.against} with an AUC of "
        f"{max(tell.auc[look], 1 - tell.auc[look]):.2f} ({'higher' if tell.auc[look] > 0.5 else 'lower'} values): "
        "a classifier may learn that instead."
        for tell in tells
        for look in range(len(LOOKS))
        if tell.notable(look)
    ]


def source_sentence(contents: Contents) -> str:
    """How many images are real, how many made up and by whom."""
    synthetic = int(contents.rows.synthetic.sum())
    real = len(contents.rows) - synthetic
    if not synthetic:
        return f"All {counted(real, 'image')} are marked as real."
    named = contents.models.most_common(5)
    models = joined([f"{name} ({count:,})" for name, count in named])
    more = f" and {len(contents.models) - len(named)} more" if len(contents.models) > len(named) else ""
    return f"{real:,} real, {synthetic:,} synthetic, made by {models or 'no model that is named'}{more}."


def leaks_sentence(recorded: Recorded) -> str:
    """What prepare did about images in two splits."""
    leaks = recorded.leaks
    if not leaks:
        return "Nothing is recorded of leaks."
    if not leaks.get("images"):
        return "When it was prepared, no patient and no copy was in two splits."
    by = [
        f"{leaks[key]:,} {what}"
        for key, what in (("by_patient", "by patient"), ("by_copy", "as copies"), ("by_group", "by group"))
        if leaks.get(key)
    ]
    done = {"remove": "taken out of the earlier split", "keep": "kept, as asked"}.get(
        recorded.leak_action or "", recorded.leak_action or "not said what became of them"
    )
    return (
        f"When it was prepared, {counted(leaks['images'], 'image')} crossed splits"
        f"{f' ({joined(by)})' if by else ''}: {done}."
    )


def pair_words(pair: Pair) -> str:
    """What is the matter with a pair."""
    said = [KIND_WORDS.get(pair.kind, pair.kind)]
    if pair.across:
        said.append("in two splits")
    if pair.conflicting and pair.kind in ("exact", "near"):
        said.append("different labels")
    if pair.removed:
        said.append("the left one was taken out")
    return ", ".join(said)


def mean_words(mean: Mean) -> str:
    """Under a mean image or a difference: of how many images, how large."""
    images = " and ".join(f"{count:,}" for count in mean.counts) + (" image" if mean.counts == (1,) else " images")
    if mean.most is None:
        return images
    doubt = "; no more than chance gives" if mean.noise is not None and mean.most < mean.noise else ""
    return f"at most {mean.most:.1f} grey levels{doubt}; {images}"


def across_words(entry: tuple[str, tuple[str, ...]]) -> str:
    return f"{entry[0]} ({joined(list(entry[1]))})"


def films_sentence(films: Mapping[str, Any]) -> str:
    """How large the films were before they were made one size."""
    films = {key: value for key, value in films.items() if isinstance(value, dict | int)}
    sides = [
        f"{side} {films[side]['min']} to {films[side]['max']} px (median {films[side]['median']:g})"
        for side in ("height", "width")
        if isinstance(films.get(side), dict)
        and all(isinstance(films[side].get(key), int | float) for key in ("min", "max", "median"))
    ]
    counts = [
        f"{films[key]:,} {what}"
        for key, what in (("not_square", "not square"), ("in_colour", "in colour"))
        if isinstance(films.get(key), int)
    ]
    return f"The films were of {'; '.join([', '.join(sides), *counts])}." if sides else ""


def auc_cell(tell: Tell, look: int) -> str:
    return f"{number(tell.auc[look], 2)} ± {number(1.96 * tell.standard_error[look], 2)}"
