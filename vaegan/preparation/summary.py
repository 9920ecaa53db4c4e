"""What is in a new dataset and what was decided on the way, in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vaegan.shards import FINDINGS, REJECTS, Manifest

MAX_NAMED = 5
MAX_COLUMNS = 5
"""Classes that stand side by side; more stand below each other."""


def summary(manifest: Manifest, out: Path) -> str:
    """What is in the dataset and what was decided on the way, as lines for a terminal."""
    report = manifest.report
    lines = [f"{out}: {manifest.height}x{manifest.width}x{manifest.channels}, {manifest.task}", *_counts(manifest)]
    lines += [f"  {note}" for note in report["notes"] + report["split"]["notes"]]
    patients, copies, leaks = report["patients"], report["duplicates"], report["leaks"]
    if patients["with_several_labels"]:
        lines.append(f"  {patients['with_several_labels']} patients have images with different labels.")
    if copies["groups"]:
        groups = "1 group" if copies["groups"] == 1 else f"{copies['groups']} groups"
        lines.append(
            f"  Duplicates: {groups} of {copies['images']} images together ({copies['exact_copies']} exact and "
            f"{copies['near_copies']} near copies), {copies['groups_within_one_split']} inside one split; "
            f"{copies['groups_with_conflicting_labels']} with conflicting labels."
        )
    lines += _leak_lines(leaks, patients.get("known", True))
    lines += [f"  Careful: {warning}" for warning in report.get("warnings", [])]
    if report.get("left_out"):
        lines.append(f"  {_told(report['left_out'], sum(report['left_out'].values()), 'images were left out')}.")
    if manifest.rejects:
        lines.append(f"  {_told(report['rejects'], manifest.rejects, f'images could not be used ({REJECTS})')}.")
    else:
        lines.append("  Every image could be read.")
    if FINDINGS in manifest.tables and (copies["groups"] or leaks["images"]):
        lines.append(f"  Look at what was found, pair by pair: python -m vaegan.inspect {out}")
    return "\n".join(lines)


def _counts(manifest: Manifest) -> list[str]:
    some = any(info.num_unlabelled for info in manifest.splits.values())
    heads = ["images", *manifest.classes, *(["no label"] if some else []), "patients"]
    columns = [
        [str(n) for n in (i.num_images, *i.per_class.values(), *([i.num_unlabelled] if some else []), i.num_patients)]
        for i in manifest.splits.values()
    ]
    table = [["", *heads], *([split, *column] for split, column in zip(manifest.splits, columns, strict=True))]
    if len(manifest.classes) > MAX_COLUMNS:
        table = [list(row) for row in zip(*table, strict=True)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  " + "  ".join(_padded(row, widths)).rstrip() for row in table]


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The first column to the left, numbers to the right."""
    return [
        cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _told(reasons: dict[str, int], total: int, what: str) -> str:
    named = list(reasons.items())[:MAX_NAMED]
    rest = total - sum(count for _, count in named)
    parts = [f"{count} {reason}" for reason, count in named] + ([f"{rest} for other reasons"] if rest else [])
    return f"{total} {what}: {'; '.join(parts)}"


def _leak_lines(leaks: dict[str, Any], patients_known: bool) -> list[str]:
    if not leaks["images"]:
        who = "No patient and no copy" if patients_known else "Who the patients are isn't known, but no copy"
        return [f"  {who} of an image is in two splits."]
    done = "removed" if leaks["action"] == "remove" else "KEPT as asked: scores on this dataset will flatter"
    lines = [f"  {leaks['images']} images leak between splits ({done}):"]
    for leak in leaks["listed"][:MAX_NAMED]:
        what = {"patient": "same patient as", "group": "same group as"}.get(leak["kind"], f"{leak['match']} copy of")
        lines.append(f"    {leak['image']} in {leak['split']}: {what} {leak['other_image']} in {leak['other_split']}")
    return lines + (["    ... more in manifest.json"] if len(leaks["listed"]) > MAX_NAMED else [])
