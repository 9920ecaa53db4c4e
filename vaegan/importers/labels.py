"""How what stands in a table becomes class names: one label, several in a string or a list, or columns of 0 and 1."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import UserError
from vaegan.importers.tabular import listed

Reading = tuple[tuple[str, ...] | None, str | None]
"""Class names and None, or None and why there are none."""

MAX_CLASSES = 1000
"""More are no classes but names, texts or measurements, taken by mistake."""
STATES = {"": 0, "0": 0, "0.0": 0, "false": 0, "nan": 0, "1": 1, "1.0": 1, "true": 1, "-1": -1, "-1.0": -1}
"""What a column of findings may say, in lower case, and what it means: not present, present, uncertain."""
FRACTION = re.compile(r"[+-]?\d*\.\d+")
NO_LABEL = "no label"
LINE_BREAK = "a line break in the label, as an unmatched quotation mark makes"


class Labels(Protocol):
    """The classes of a table, and how to read a row's."""

    @property
    def task(self) -> Literal["multiclass", "multilabel"]:
        """Whether a row has exactly one class or any number of them."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the labels' columns in a dataset."""

    def read(self, value: Any) -> Reading:
        """Args:
        value: a string, a tuple of strings for a list or for columns of findings; None for nothing.
        """


@dataclass(frozen=True)
class OneLabel:
    """One label a row.

    names: what the column holds to the class's name.
    """

    classes: tuple[str, ...]
    names: Mapping[str, str]
    task: Literal["multiclass"] = "multiclass"

    def read(self, value: str | None) -> Reading:
        """The row's class; no label is a problem."""
        if value is None or not value.strip():
            return None, NO_LABEL
        name = self.names.get(value.strip())
        return ((name,), None) if name is not None else (None, _unknown(value))


@dataclass(frozen=True)
class SeparatedLabels:
    """Any number of labels in one string, as `Edema|Mass`; "No Finding" and the empty string are none of them.

    blank: whether an empty string says so too, or is a row that nobody labelled.
    """

    classes: tuple[str, ...]
    separator: str
    blank: bool = True
    task: Literal["multilabel"] = "multilabel"

    def read(self, value: str | None) -> Reading:
        """The row's classes, each once."""
        if value is None or (not value.strip() and not self.blank):
            return None, NO_LABEL
        names = _split(value, self.separator)
        found = tuple(name for name in names if not no_finding(name))
        if found and len(found) < len(names):
            return None, "no finding beside a finding"
        unknown = [name for name in found if name not in self.classes]
        return (None, _unknown(unknown[0])) if unknown else (found, None)


@dataclass(frozen=True)
class ListedLabels:
    """A list of labels a row."""

    classes: tuple[str, ...]
    task: Literal["multilabel"] = "multilabel"

    def read(self, value: tuple[str | None, ...] | None) -> Reading:
        """The row's classes, each once."""
        if value is None:
            return None, NO_LABEL
        names = tuple(dict.fromkeys(value))
        unknown = [name for name in names if name not in self.classes]
        return (None, _unknown(unknown[0])) if unknown else (tuple(name for name in names if name is not None), None)


@dataclass(frozen=True)
class MultiHot:
    """A list of 0 and 1 a row, one for each class."""

    classes: tuple[str, ...]
    task: Literal["multilabel"] = "multilabel"

    def read(self, value: tuple[str | None, ...] | None) -> Reading:
        """The classes that are 1."""
        if value is None:
            return None, NO_LABEL
        if len(value) != len(self.classes) or not set(value) <= {"0", "1"}:
            return None, f"no list of {len(self.classes)} times 0 or 1"
        return tuple(name for name, on in zip(self.classes, value, strict=True) if on == "1"), None


@dataclass(frozen=True)
class Findings:
    """A column of 0 and 1 for each class; a blank is 0.

    uncertain: what -1 becomes: not present, present, or a problem; None where it means nothing.
    """

    classes: tuple[str, ...]
    uncertain: Literal["zeros", "ones", "reject"] | None = None
    task: Literal["multilabel"] = "multilabel"

    def read(self, value: tuple[str | None, ...]) -> Reading:
        """The classes that are present."""
        states = [STATES.get((each or "").strip().lower()) for each in value]
        found = []
        for name, state, each in zip(self.classes, states, value, strict=True):
            if state is None or (state < 0 and self.uncertain is None):
                return None, f"{name} is {_short(each)}, expected 0 or 1"
            if state < 0 and self.uncertain == "reject":
                return None, "a label that is marked as uncertain"
            if state > 0 or (state < 0 and self.uncertain == "ones"):
                found.append(name)
        return tuple(found), None


def no_finding(name: str) -> bool:
    """Whether a label says that there is none, as NIH's "No Finding" does."""
    return not name.strip() or re.sub(r"[\s_-]+", " ", name.strip().lower()) in ("no finding", "no findings")


def _split(value: str, separator: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in value.split(separator) if part.strip()))


def _unknown(value: str | None) -> str:
    return LINE_BREAK if value and "\n" in value else f"unknown label {_short(value)}"


def _short(value: str | None) -> str:
    return repr(value if value is None or len(value) <= 60 else f"{value[:60]}...")


# ---------------------------------------------------------------------------------------------------------------------
# Which of them a column needs


@dataclass
class LabelSurvey:
    """What a column of labels holds, gathered part by part, so that a table needn't be in memory.

    values: distinct strings.
    spelled: distinct pairs of a value and what the column of label names says.
    parts, lengths: distinct elements and lengths of lists.
    """

    values: set[str] = field(default_factory=set)
    spelled: set[tuple[str, str]] = field(default_factory=set)
    parts: set[str | None] = field(default_factory=set)
    lengths: set[int] = field(default_factory=set)

    def add(self, labels: pa.ChunkedArray, names: pa.ChunkedArray | None = None) -> None:
        """Another part: strings or lists of strings, and names of equal length."""
        if pa.types.is_list(labels.type):
            self.parts.update(pc.unique(pc.list_flatten(labels)).to_pylist())
            self.lengths.update(
                length for length in pc.unique(pc.list_value_length(labels)).to_pylist() if length is not None
            )
            return
        self.values.update(value.strip() for value in pc.unique(labels).to_pylist() if value and value.strip())
        if names is not None and not pa.types.is_list(names.type):
            pairs = pa.table({"label": labels, "name": names}).group_by(["label", "name"]).aggregate([])
            self.spelled.update(
                (label.strip(), name.strip())
                for label, name in zip(pairs["label"].to_pylist(), pairs["name"].to_pylist(), strict=True)
                if label and name and label.strip() and name.strip()
            )

    def labels(self, *, column: str, separator: str, where: str) -> Labels:
        """How to read them.

        Args:
            column, where: the column's and the file's name, for messages.

        Raises:
            UserError: nothing there, measurements, names that contradict each other, or too many classes.
        """
        if not self.values and not self.lengths:
            raise UserError(f"column {column!r} of {where} is empty: expected a label in each row")
        if self.lengths:
            found: Labels = _list_labels(self.parts, self.lengths)
        else:
            # where a quotation mark isn't closed, one field holds the lines below it
            values = {value for value in self.values if "\n" not in value}
            several = bool(separator) and any(separator in value for value in values)
            found = _separated(values, separator) if several else _one_label(values, self.spelled, column, where)
        return _checked(found, column, where)

    def hints(self, separator: str) -> list[str]:
        """A note where labels look like several in one, with another separator than the one that counts."""
        for other in {",", ";", "|"} - {separator}:
            joined = sorted(v for v in self.values if other in v and set(_split(v, other)) <= self.values)
            if joined and not (separator and any(separator in value for value in self.values)):
                return [
                    f"Labels such as {_short(joined[0])} count as classes of their own: if they are several labels, "
                    f"pass --columns.separator {other!r}."
                ]
        return []


def _checked(labels: Labels, column: str, where: str) -> Labels:
    if not labels.classes:
        raise UserError(f"column {column!r} of {where} names no class: expected labels; name another --columns.label")
    if len(labels.classes) > MAX_CLASSES:
        raise UserError(
            f"column {column!r} of {where} holds {len(labels.classes)} different labels ({listed(labels.classes[:3])}, "
            f"...): expected classes, at most {MAX_CLASSES}; name another --columns.label"
        )
    return labels


def _list_labels(parts: set[str | None], lengths: set[int]) -> Labels:
    if len(lengths) == 1 and max(lengths) >= 2 and parts <= {"0", "1"}:
        return MultiHot(tuple(str(i) for i in range(max(lengths))))
    return ListedLabels(ordered(part for part in parts if part is not None))


def _separated(values: set[str], separator: str) -> SeparatedLabels:
    parts = {part for value in values for part in _split(value, separator)}
    return SeparatedLabels(ordered(part for part in parts if not no_finding(part)), separator)


def _one_label(values: set[str], spelled: set[tuple[str, str]], column: str, where: str) -> OneLabel:
    names = {value: value for value in values}
    fractions = {value for value in values if FRACTION.fullmatch(value)}
    if fractions and all(FRACTION.fullmatch(value) or _is_integer(value) for value in values):
        odd = sorted(value for value in fractions if not float(value).is_integer())
        if odd:
            raise UserError(
                f"column {column!r} of {where} holds float numbers ({odd[0]}): expected integers, strings or "
                "lists of them"
            )
        names |= {value: str(int(float(value))) for value in fractions}  # 1.0: an integer, once one of them was missing
    if spelled:
        names |= _spelled_out(spelled, where)
    return OneLabel(tuple(dict.fromkeys(names[value] for value in ordered(values))), names)


def _spelled_out(pairs: set[tuple[str, str]], where: str) -> dict[str, str]:
    spelled = dict(pairs)
    if len(spelled) != len(pairs) or len(set(spelled.values())) != len(pairs):
        found = listed([f"{value}={name}" for value, name in sorted(pairs)[:6]])
        raise UserError(
            f"labels and label names of {where} do not match one to one ({found}): "
            "expected one name per label; correct them or pass --columns.label-name with another column"
        )
    return spelled


def ordered(values: Iterable[str]) -> tuple[str, ...]:
    """Integers by value, everything else by name."""
    found = list(values)
    if all(map(_is_integer, found)):
        return tuple(sorted(found, key=lambda value: (int(value), value)))
    return tuple(sorted(found))


def _is_integer(value: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,18}", value) is not None
