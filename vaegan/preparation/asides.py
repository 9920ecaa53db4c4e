"""What columns that decide nothing say of the images: second opinions on the label, and what goes with it.

A column of another reader's verdicts shows which labels are in doubt. A column of scanners, views or hospitals that
goes with the label is a shortcut: a classifier may learn it instead of the disease.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency

Table = dict[str, Counter[str]]
"""Value to class to number of images. "" is the class of images without any; ALL counts each image once."""
ALL, REST = "\0all", "\0rest"

MAX_VALUES = 20  # a column with more is dropped: a name, a date, a measurement
MAX_COLUMNS = 64
MAX_CHARACTERS = 60  # of a value
MIN_LISTED = 5
"""Images of a value that the manifest names. A value that one or two images have may name a patient."""
MIN_DISAGREEING = 3
"""Images on which a column says something else than the label. One or two are left to the table in the manifest."""
MIN_OF_CLASS = 30  # images of a class, with the column filled in, for it to be asked what goes with it
MIN_V = 0.3
"""Cramér's V of column and label where every class weighs the same. Of two classes and two values: a value on 65 % of
the one and 35 % of the other, from which the class can be told with AUROC .65, as much as from corners (`shortcuts`).
Kermany's provenance has .02; a view that is AP on 56 % of a class and on 40 % of the rest has .16; of random columns
with 3 and 12 values the 99th percentile is .35, .21 and .11 for 100, 300 and 1,000 images."""
ALPHA = 0.01  # chance of one false alarm or more over all columns and classes, were images independent
NAMED = 4  # values in one sentence

NORMAL = ("normal", "healthy", "negative", "unremarkable", "no finding", "no findings", "no abnormality")
NEGATIONS = {"no", "not", "non", "without", "negative", "never", "absent", "free"}
HEDGES = {"possible", "possibly", "probable", "probably", "suspected", "suspicion", "maybe", "unsure", "uncertain",
          "unlikely", "or", "vs", "history", "previous", "prior", "rule", "exclude", "unclear", "query"}  # fmt: skip


@dataclass(frozen=True)
class Opinion:
    """What a value says of an image, as a doctor would read it.

    label: the class it names; None where it says that there is nothing and no class is called so.
    denied: whether it says "no <label>".
    """

    label: str | None
    denied: bool = False


class Asides:
    """Counts of each column's values by class, row after row; memory depends on columns and classes alone."""

    def __init__(self) -> None:
        self._tables: dict[str, Table] = {}
        self._dropped: set[str] = set()
        self._images: Counter[str] = Counter()
        self._exclusive = True

    def add(self, asides: Mapping[str, str], labels: tuple[str, ...]) -> None:
        """One image: name to value of its columns, and its classes."""
        counted = (ALL, *(labels or ("",)))
        self._images.update(counted)
        self._exclusive &= len(labels) == 1
        for column, text in asides.items():
            table = self._table(column)
            value = text if table and text in table else " ".join(str(text).split())[:MAX_CHARACTERS]
            if value and table is not None:
                if value not in table and len(table) == MAX_VALUES:
                    self._dropped.add(column)
                    del self._tables[column]
                else:
                    table.setdefault(value, Counter()).update(counted)

    def _table(self, column: str) -> Table | None:
        """None for a column that is not counted."""
        if column not in self._tables:
            if column in self._dropped or len(self._tables) + len(self._dropped) >= MAX_COLUMNS:
                return None
            self._tables[column] = {}
        return self._tables[column]

    def warnings(self, classes: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """At most one sentence for each column, and the counts behind them for the manifest.

        The counts are {"columns": {column: {"values": {value: {"images": n, class: n}}, "other": n, "v": V}}}.
        """
        sentences: list[str | None] = []
        columns = {}
        for column, table in self._tables.items():
            columns[column] = _as_json(table)
            opinions = _opinions(table, classes)
            if opinions and (len(opinions) == len(table) or self._leans(table, opinions)):
                # What names the classes goes with them, as it should: no shortcut to look for.
                sentences.append(self._second_opinion(column, table, opinions, classes))
            elif strongest := self._strongest(table, classes):
                columns[column]["v"] = round(strongest.v, 4)
                sentences.append(self._association(column, table, strongest, classes))
        return [sentence for sentence in sentences if sentence], {"columns": columns}

    def _leans(self, table: Table, opinions: Mapping[str, Opinion]) -> bool:
        """Whether what a column says leans the label's way: twice as common where it agrees as where it doesn't.

        Else it is on something else that can be normal or negative, such as weight.
        """
        for value, opinion in opinions.items():
            label = opinion.label or ""
            named = sum(counts[label] for counts in table.values())
            rest = sum(counts[ALL] for counts in table.values()) - named
            inside = table[value][label] / max(named, 1)
            outside = (table[value][ALL] - table[value][label]) / max(rest, 1)
            if (outside > 2 * inside) if opinion.denied else (inside > 2 * outside):
                return True
        return False

    def _second_opinion(
        self, column: str, table: Table, opinions: Mapping[str, Opinion], classes: Sequence[str]
    ) -> str | None:
        """On the value and class that disagree most often, and how often all do."""
        found = [
            (count, value, of, whom)
            for value, opinion in opinions.items()
            for count, of, whom in self._disagreements(table[value], opinion, classes)
        ]
        total = sum(count for count, *_ in found)
        if total < MIN_DISAGREEING:
            return None
        count, value, of, whom = max(found, key=lambda item: item[0])
        label = opinions[value].label or ""
        agrees = 0 if opinions[value].denied else table[value][label]
        also = f" (and of {agrees} of {self._images[label]} {_labelled(label)})" if agrees else ""
        more = f", and {total - count} more images likewise" if total > count else ""
        return (
            f"Column {column!r} says {value!r} of {count} of {of} images {whom}{also}{more}: a second opinion "
            "disagrees with the label; look at these images, and correct or leave out what is labelled wrongly."
        )

    def _disagreements(
        self, counts: Counter[str], opinion: Opinion, classes: Sequence[str]
    ) -> Iterator[tuple[int, int, str]]:
        """Images of which a value says otherwise, of how many, labelled how."""
        label = opinion.label
        if opinion.denied:
            yield counts[str(label)], self._images[str(label)], _labelled(str(label))
        elif self._exclusive:
            for other in (name for name in classes if name != label):
                yield counts[other], self._images[other], _labelled(other)
        elif label is None or reads_normal(label):
            ill = lambda of: of[ALL] - of[""] - (of[label] if label else 0)  # noqa: E731
            yield ill(counts), ill(self._images), "labelled with a finding"
        else:
            yield counts[ALL] - counts[label], self._images[ALL] - self._images[label], f"not labelled {label}"

    def _strongest(self, table: Table, classes: Sequence[str]) -> "Strength | None":
        """How strongly a column goes with the label; of findings that may be several, with the one it does most."""
        if self._exclusive:
            return _strength(table, {_labelled(label): [label] for label in classes})
        found = [
            _strength(_split_off(table, label), {_labelled(label): [label], f"not labelled {label}": [REST]})
            for label in classes
        ]
        return max((one for one in found if one), key=lambda one: one.v, default=None)

    def _association(self, column: str, table: Table, found: "Strength", classes: Sequence[str]) -> str | None:
        if found.v < MIN_V or found.p > ALPHA / (len(self._tables) * (1 if self._exclusive else len(classes))):
            return None
        lead = f"Column {column!r} goes with the label (Cramér's V {found.v:.2f} of 1): "
        if self._exclusive and (settled := _settled(table, classes)):
            return (
                f"{lead}each of its values is found in one class only ({settled}): if it says how or where images were "
                "taken, a classifier may learn that instead of the disease, and no split of these images can show it; "
                "if it refines the label, all is well."
            )
        return (
            f"{lead}{found.value!r} is said of {found.most:.0%} of the images {found.whom_most} and of "
            f"{found.least:.0%} of those {found.whom_least}: if it says how, where or of whom images were taken, a "
            "classifier may learn that instead of the disease; compare scores within each of its values."
        )


@dataclass(frozen=True)
class Strength:
    """Cramér's V of column and label, p of there being none, and the value whose shares of two classes differ most."""

    v: float
    p: float
    value: str
    most: float
    whom_most: str
    least: float
    whom_least: str


def _strength(table: Table, classes: Mapping[str, Sequence[str]]) -> Strength | None:
    """None where fewer than two classes have enough images, or fewer than two values have.

    V with Bergsma's (2013) correction of its bias, every class weighing the same: else a finding that is rare could go
    with nothing.

    Args:
        classes: in words, and the keys of the table that are summed.
    """
    values = [value for value, counts in table.items() if counts[ALL] >= MIN_LISTED]
    counts = np.array([[sum(table[v][key] for key in keys) for v in values] for keys in classes.values()], dtype=float)
    enough = counts.sum(axis=1) >= MIN_OF_CLASS if counts.size else np.zeros(len(counts), dtype=bool)
    whom = [words for words, kept in zip(classes, enough, strict=True) if kept]
    counts = counts[enough]
    seen = counts.sum(axis=0) > 0 if counts.size else np.zeros(0, dtype=bool)
    if len(counts) < 2 or seen.sum() < 2:
        return None
    counts, values = counts[:, seen], [value for value, kept in zip(values, seen, strict=True) if kept]
    share = counts / counts.sum(axis=1, keepdims=True)
    at = int(np.lexsort((share.max(axis=0), np.ptp(share, axis=0).round(9)))[-1])
    most, least = int(share[:, at].argmax()), int(share[:, at].argmin())
    p = float(chi2_contingency(counts, correction=False).pvalue)
    v = _cramers_v(share, len(counts) / (1 / counts.sum(axis=1)).sum() * len(counts))
    return Strength(v, p, values[at], share[most, at], whom[most], share[least, at], whom[least])


def _cramers_v(share: NDArray[np.float64], images: float) -> float:
    """Bias-corrected V of shares of values (K classes, R values), each class having images / K."""
    expected = share.mean(axis=0)
    k, r = share.shape
    phi2 = float(((share - expected) ** 2 / expected).sum() / k - (k - 1) * (r - 1) / (images - 1))
    k_corrected, r_corrected = k - (k - 1) ** 2 / (images - 1), r - (r - 1) ** 2 / (images - 1)
    return float(np.sqrt(max(phi2, 0.0) / (min(k_corrected, r_corrected) - 1)))


def _split_off(table: Table, label: str) -> Table:
    """The table with all images but those of one class under REST."""
    return {value: counts + Counter({REST: counts[ALL] - counts[label]}) for value, counts in table.items()}


def _settled(table: Table, classes: Sequence[str]) -> str | None:
    """ "GE: NORMAL, Philips: PNEUMONIA" where each value is found in one class only; None elsewhere."""
    owners = {value: [label for label in classes if counts[label]] for value, counts in table.items()}
    if any(len(labels) != 1 for labels in owners.values()):
        return None
    named = ", ".join(f"{value}: {labels[0]}" for value, labels in list(owners.items())[:NAMED])
    return named + (", ..." if len(owners) > NAMED else "")


def _labelled(label: str) -> str:
    return f"labelled {label}" if label else "without a label"


def _as_json(table: Table) -> dict[str, Any]:
    listed = {value: counts for value, counts in table.items() if counts[ALL] >= MIN_LISTED}
    values = {
        value: {"images": counts[ALL]} | {label or "(none)": n for label, n in sorted(counts.items()) if label != ALL}
        for value, counts in listed.items()
    }
    return {"values": values, "other": sum(counts[ALL] for value, counts in table.items() if value not in listed)}


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W_]+", text.casefold()))


def _holds(words: Sequence[str], phrase: Sequence[str]) -> bool:
    return any(tuple(words[i : i + len(phrase)]) == tuple(phrase) for i in range(len(words) - len(phrase) + 1))


def reads_normal(text: str) -> bool:
    """Whether it says that there is nothing to see: "normal", "No Finding"; not "abnormal", and not "not normal"."""
    words = _words(text)
    if NEGATIONS - {"negative"} & set(words) and not any(_holds(words, p.split()) for p in NORMAL if " " in p):
        return False
    return any(_holds(words, phrase.split()) for phrase in NORMAL)


def _opinion(value: str, classes: Sequence[str]) -> Opinion | None:
    """What a value says of the label, or None: nothing, too much, or not for certain."""
    words = _words(value)
    spelled = {label: _words(label) for label in classes if sum(map(str.isalpha, label)) >= 3}  # "1" may be anything
    exact = [label for label, name in spelled.items() if words == name]
    if "?" in value or (HEDGES & set(words) and not exact):
        return None
    if exact:
        return Opinion(exact[0])
    named = [label for label, name in spelled.items() if _holds(words, name) and not reads_normal(label)]
    if named:
        return Opinion(named[0], denied=bool(NEGATIONS & set(words))) if len(named) == 1 else None
    if reads_normal(value):
        return Opinion(next((label for label in classes if reads_normal(label)), None))
    return None


def _opinions(table: Table, classes: Sequence[str]) -> dict[str, Opinion]:
    """Value to what it says, of values that say something."""
    read = {value: _opinion(value, classes) for value in table}
    return {value: opinion for value, opinion in read.items() if opinion is not None}
