"""Which column of a table is what, and what a row says besides its image: class, patient, split, group, asides."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import UserError
from vaegan.importers.base import SPLIT_NAMES, ColumnsConfig
from vaegan.importers.labels import NO_LABEL, Findings, Labels, LabelSurvey
from vaegan.importers.tabular import MISSING, listed

MAX_ASIDE_VALUES = 20
REMEMBERED = 1 << 16  # distinct labels whose reading is kept

USUAL = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path", "image_file", "Image Index", "img"),
    "label": ("label", "labels", "class", "target", "diagnosis", "finding", "Finding Labels", "label_name"),
    "patient_id": ("patient_id", "PatientID", "patient", "subject_id"),
    "split": ("split",),
    "image_id": ("source_id", "image_id"),
}
"""What columns are called elsewhere. Upper and lower case, spaces and underscores make no difference."""

CONFIGURED = {each.name: each.default for each in fields(ColumnsConfig)}


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are there, by what they are for; None for those that aren't.

    image: of paths or of bytes.
    label: of labels; None where `findings` has columns of 0 and 1.
    asides: columns that decide nothing.
    unread: columns that nobody asked for, and hold too much to be an aside.
    notes: which were taken though they are called otherwise.
    """

    image: str
    label: str | None
    findings: tuple[str, ...] = ()
    label_name: str | None = None
    patient_id: str | None = None
    split: str | None = None
    image_id: str | None = None
    group: str | None = None
    asides: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def used(self) -> tuple[str, ...]:
        """All but the image, asides and unread ones, each once."""
        roles = (self.label, *self.findings, self.label_name, self.patient_id, self.split, self.image_id, self.group)
        return tuple(dict.fromkeys(name for name in roles if name is not None))


def find_column(names: Sequence[str], config: ColumnsConfig, role: str) -> str | None:
    """The column that `config` names for this role or, where it names none of its own, one of a usual name."""
    asked = getattr(config, role)
    if asked in names:
        return asked
    if asked != CONFIGURED[role]:
        return None
    known = {_plain(name): name for name in reversed(names)}
    return next((known[_plain(usual)] for usual in USUAL.get(role, ()) if _plain(usual) in known), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())


def find_columns(names: Sequence[str], config: ColumnsConfig, image: Literal["image", "path"], where: Path) -> Columns:
    """Who is who among `names`.

    Raises:
        UserError: no column of images or labels, or none of a name that the user gave.
    """
    found = {role: find_column(names, config, role) for role in (image, "label", "patient_id", "split", "image_id")}
    label_name = config.label_name if config.label_name in names else None
    if config.findings:
        del found["label"]
        label_name = None
    for role in (image, "label"):
        if role in found and found[role] is None:
            raise UserError(_missing(role, getattr(config, role), names, where))
    found["group"] = config.group
    if not config.findings:
        found["label_name"] = label_name
    for role, column in found.items():
        asked = getattr(config, role)
        if asked is not None and asked != CONFIGURED[role] and (column is None or column not in names):
            raise UserError(_missing(role, asked, names, where))
    for finding in config.findings:
        if finding not in names:
            raise UserError(_missing("findings", finding, names, where))
    return Columns(
        image=str(found[image]),
        label=found.get("label"),
        findings=config.findings,
        label_name=None if label_name == found.get("label") else label_name,
        patient_id=found["patient_id"],
        split=found["split"],
        image_id=found["image_id"] if found["image_id"] != found[image] else None,
        group=config.group,
        notes=tuple(_taken(found, config)),
    )


def _missing(role: str, asked: str, names: Sequence[str], where: Path) -> str:
    flag = f"--columns.{role.replace('_', '-')}"
    instead = " or columns of 0 and 1 with --columns.findings" if role == "label" else ""
    return f"{where} has no column {asked!r} (it has {listed(names)}): name yours with {flag} NAME{instead}"


def _taken(found: dict[str, str | None], config: ColumnsConfig) -> list[str]:
    said = {"image": "images", "path": "paths", "label": "labels", "patient_id": "patients", "split": "splits"}
    other = [
        f"{said[role]} from {column!r}"
        for role, column in found.items()
        if role in said and column is not None and column != getattr(config, role)
    ]
    return [f"Columns taken by their usual names: {', '.join(other)}."] if other else []


# ---------------------------------------------------------------------------------------------------------------------
# What the columns hold


@dataclass(frozen=True)
class Reader:
    """How rows are read.

    splits: the source's names of train, val and test to ours; None where it has no split, as when every row says "all".
    keep_unlabelled: whether a blank is a row that nobody labelled, also where it could be one of no finding.
    """

    columns: Columns
    labels: Labels
    splits: dict[str, str] | None
    notes: tuple[str, ...]
    keep_unlabelled: bool = False

    def rows(self, table: pa.Table) -> Iterator["Row"]:
        """What each row says. `table` has the columns that are used and the asides, as `as_strings` makes them."""

        def column(name: str | None) -> Iterable[Any]:
            return repeat(None) if name is None else map(_value, table.column(name).to_pylist())

        read = functools.lru_cache(REMEMBERED)(self.labels.read)
        of_findings = [table.column(name).to_pylist() for name in self.columns.findings]
        labels = zip(*of_findings, strict=True) if of_findings else column(self.columns.label)
        asides = [column(name) for name in self.columns.asides]
        parts = zip(
            range(table.num_rows),
            labels,
            column(self.columns.patient_id),
            column(self.columns.split),
            column(self.columns.image_id),
            column(self.columns.group),
            zip(*asides, strict=True) if asides else repeat(()),
            strict=False,  # `repeat` has no end
        )
        for _, label, patient_id, split, image_id, group, aside in parts:
            blank = self.keep_unlabelled and _is_blank(label)
            names, problem = (None, NO_LABEL) if blank else read(label)
            if self.splits is not None and split not in self.splits and (blank or problem is None):
                problem = f"unknown split {split!r}"
            yield Row(
                labels=names,
                problem=problem,
                patient_id=patient_id or None,
                split=None if self.splits is None else self.splits.get(split),
                image_id=image_id or None,
                group=f"{self.columns.group}={group}" if group not in MISSING else None,
                asides={k: v for k, v in zip(self.columns.asides, aside, strict=True) if v not in MISSING},
            )


class Row(NamedTuple):
    """What a row says besides its image; see `Record`."""

    labels: tuple[str, ...] | None
    problem: str | None
    patient_id: str | None
    split: str | None
    image_id: str | None
    group: str | None
    asides: dict[str, str]


def _is_blank(label: Any) -> bool:
    """Whether a cell, or all cells of a row's findings, say nothing; an empty list says that there is no finding."""
    cells = label if isinstance(label, tuple) and label else (label,)
    return all(cell is None or (isinstance(cell, str) and not cell.strip()) for cell in cells)


def _value(value: Any) -> Any:
    """Lists as tuples, which can be looked up."""
    return tuple(value) if isinstance(value, list) else value


@dataclass
class _Survey:
    labels: LabelSurvey = field(default_factory=LabelSurvey)
    splits: set[str] = field(default_factory=set)
    asides: dict[str, set[str]] = field(default_factory=dict)

    def add(self, part: pa.Table, columns: Columns, where: Path) -> None:
        for name in columns.used:
            if name != columns.label and pa.types.is_list(part[name].type):
                raise UserError(
                    f"column {name!r} of {where} holds lists: expected one value a row; name another column"
                )
        if columns.label is not None:
            self.labels.add(part[columns.label], part[columns.label_name] if columns.label_name else None)
        if columns.split is not None:
            self.splits.update(pc.unique(part[columns.split]).to_pylist())
        for name in [name for name in self.asides if name in part.column_names]:
            column = part[name]
            if not pa.types.is_list(column.type):
                self.asides[name].update(value for value in pc.unique(column).to_pylist() if value not in MISSING)
            if pa.types.is_list(column.type) or len(self.asides[name]) > MAX_ASIDE_VALUES:
                del self.asides[name]


def survey(
    parts: Iterable[pa.Table],
    names: Sequence[str],
    columns: Columns,
    config: ColumnsConfig,
    where: Path,
    *,
    keep_unlabelled: bool = False,
) -> Reader:
    """Look through all rows, part by part, for the classes, the splits and the columns that may be asides.

    Args:
        parts: tables with the columns that are used, and those that may be asides.
        names: of all columns of the file.
        where: the file, for messages.

    Raises:
        UserError: labels that are none; see `LabelSurvey.labels`.
    """
    seen = _Survey()
    others = [name for name in names if name not in (columns.image, *columns.used)]
    seen.asides = {name: set() for name in others}
    for part in parts:
        seen.add(part, columns, where)
    asides = tuple(name for name, values in seen.asides.items() if values)
    if columns.label is None:
        labels: Labels = Findings(columns.findings)
    else:
        labels = seen.labels.labels(column=columns.label, separator=config.separator, where=str(where))
    known = {
        name: SPLIT_NAMES[name.strip().lower()] for name in seen.splits if name and name.strip().lower() in SPLIT_NAMES
    }
    complete = dataclasses.replace(columns, asides=asides, unread=tuple(n for n in others if n not in asides))
    notes = [*columns.notes, *seen.labels.hints(config.separator), *_notes(complete, bool(known))]
    return Reader(complete, labels, known or None, tuple(notes), keep_unlabelled)


def _notes(columns: Columns, has_split: bool) -> list[str]:
    notes = []
    if columns.split and not has_split:
        notes.append(f"Column {columns.split!r} names no train, val or test: the split is made anew.")
    if columns.asides:
        notes.append(
            f"Columns that decide nothing, looked at for second opinions and shortcuts: {listed(columns.asides)}."
        )
    if columns.unread:
        notes.append(f"Columns not read: {listed(columns.unread)}.")
    return notes
