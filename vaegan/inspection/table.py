"""A dataset in short, as text for a terminal."""

from __future__ import annotations

import textwrap

from vaegan.inspection import words
from vaegan.inspection.contents import NO_FINDING, NO_LABEL, Contents
from vaegan.inspection.recheck import Recheck
from vaegan.inspection.recorded import Recorded
from vaegan.inspection.shortcuts import Tell
from vaegan.shards import Manifest

WIDTH = 110
MAX_COLUMNS = 6
"""Classes beside each other; more stand below each other."""


def summary(
    name: str, manifest: Manifest, contents: Contents, checked: Recheck, recorded: Recorded, tells: list[Tell], *,
    verified: bool,
) -> str:  # fmt: skip
    """Splits and classes, the recheck, what was recorded."""
    colour = "grey" if manifest.channels == 1 else "colour"
    lines = [
        f"{name}: {manifest.height}x{manifest.width} {colour}, {manifest.task}; {words.source_sentence(contents)}", "",
        *_counts(contents, checked), "", f"recheck: {words.headline(checked)}.",
    ]  # fmt: skip
    said = [*words.recheck_sentences(checked, verified), *words.tell_sentences(tells), *recorded.warnings]
    said += [*recorded.split_notes, words.leaks_sentence(recorded)]
    if recorded.num_rejects:
        said.append(f"{recorded.num_rejects:,} images could not be used when it was prepared.")
    if recorded.left_out:
        said.append(f"{sum(recorded.left_out.values()):,} images were left out when it was prepared.")
    for sentence in said:
        lines += textwrap.wrap(sentence, WIDTH, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(lines)


def _counts(contents: Contents, checked: Recheck) -> list[str]:
    """A row a split, or where there are many classes a row a class."""
    splits = list(contents.grey)
    rows = contents.rows
    table = {"images": [int((rows.split == s).sum()) for s in range(len(splits))]}
    table["patients"] = [sum(checked.patients.images[split].values()) for split in splits]
    for k, name in enumerate(rows.classes):
        table[name] = [int(rows.labels[rows.split == s, k].sum()) for s in range(len(splits))]
    none = [int((rows.labelled & ~rows.labels.any(axis=1))[rows.split == s].sum()) for s in range(len(splits))]
    if any(none) and rows.classes:
        table[NO_FINDING] = none
    if not rows.labelled.all():
        table[NO_LABEL] = [int((~rows.labelled[rows.split == s]).sum()) for s in range(len(splits))]
    if len(table) > MAX_COLUMNS:
        heads, body = splits, list(table.items())
    else:
        heads, body = list(table), [(split, [counts[s] for counts in table.values()]) for s, split in enumerate(splits)]
    first = max(len(name) for name, _ in body) + 2 if body else 0
    width = [max(len(head), 8) + 2 for head in heads]
    lines = [" " * (first + 2) + "".join(f"{head:>{w}}" for head, w in zip(heads, width, strict=True))]
    for name, counts in body:
        cells = "".join(f"{count:>{w},}" for count, w in zip(counts, width, strict=True))
        lines.append(f"  {name:<{first}}{cells}")
    return lines
