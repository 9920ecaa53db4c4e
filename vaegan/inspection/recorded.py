"""What was recorded when a dataset was prepared: the manifest's report, findings.parquet and rejects.parquet.

Older datasets, and those of others, record less: what is absent is None or empty here, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.errors import UserError
from vaegan.inspection.reading import table_at
from vaegan.shards import FINDINGS, FINDINGS_SCHEMA, REJECTS, Manifest, readable

KINDS = ("exact", "near", "patient", "group")
MAX_SHOWN = 60
"""Pairs with pictures."""
MAX_THUMBNAIL_BYTES = 200_000
MAX_REASONS, EXAMPLES = 20, 3
"""Of rejects: reasons, most frequent first, and names of each."""
REJECTS_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string())])
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Finding:
    """Two images that belong together, as they were found: see `Findings`."""

    kind: str
    image_ids: tuple[str, str]
    splits: tuple[str, str]
    labels: tuple[str | None, str | None]
    removed: bool
    correlation: float | None
    thumbnails: tuple[bytes | None, bytes | None]

    @property
    def across(self) -> bool:
        return all(self.splits) and self.splits[0] != self.splits[1]

    @property
    def conflicting(self) -> bool:
        return None not in self.labels and self.labels[0] != self.labels[1]


@dataclass(frozen=True, eq=False)
class Findings:
    """All pairs that were found, counted, and the first of them.

    counts: (kind, whether in two splits, whether taken out) to the number of pairs.
    conflicting: pairs of copies with different labels.
    shown: those to look at first, in two splits before others, with pictures.
    """

    num_pairs: int
    counts: dict[tuple[str, bool, bool], int]
    conflicting: int
    shown: list[Finding]


@dataclass(frozen=True)
class Reason:
    """Why images couldn't be used: how many, and the names of some."""

    words: str
    count: int
    examples: list[str]


@dataclass(frozen=True, eq=False)
class Recorded:
    """Whatever is known of a dataset's making."""

    source: str | None
    notes: list[str]
    split_origin: str | None
    split_notes: list[str]
    warnings: list[str]
    left_out: dict[str, int]
    films: dict[str, Any]
    patients: dict[str, int]
    duplicates: dict[str, int]
    leaks: dict[str, int]
    leak_action: str | None
    leaks_listed: list[dict[str, str]]
    num_rejects: int
    reasons: list[Reason]
    findings: Findings | None
    sample: dict[str, Any]
    provenance: dict[str, Any]


def read_recorded(dataset: Path, manifest: Manifest) -> Recorded:
    """Everything that was recorded.

    Raises:
        UserError: findings.parquet or rejects.parquet is there, but can't be read.
    """
    report = _mapping(manifest.report)
    split, leaks = _mapping(report.get("split")), _mapping(report.get("leaks"))
    return Recorded(
        source=_text(report.get("source")),
        notes=_texts(report.get("notes")),
        split_origin=_text(split.get("origin")),
        split_notes=_texts(split.get("notes")),
        warnings=_texts(report.get("warnings")),
        left_out=_counts(report.get("left_out")),
        films=_mapping(report.get("films")),
        patients=_counts(report.get("patients")),
        duplicates=_counts(report.get("duplicates")),
        leaks=_counts(leaks),
        leak_action=_text(leaks.get("action")),
        leaks_listed=[
            {key: str(value) for key, value in entry.items()}
            for entry in _list(leaks.get("listed"))
            if isinstance(entry, dict)
        ],
        num_rejects=manifest.rejects if isinstance(manifest.rejects, int) else 0,
        reasons=read_reasons(table_at(dataset, manifest, REJECTS), _counts(report.get("rejects"))),
        findings=read_findings(table_at(dataset, manifest, FINDINGS)),
        sample=_mapping(report.get("sample")),
        provenance=_mapping(manifest.provenance),
    )


def read_findings(path: Path | None) -> Findings | None:
    """The pairs of findings.parquet; None where there is no such file."""
    if path is None:
        return None
    small = ("kind", "split", "other_split", "labels", "other_labels", "removed")
    table = _read(path, FINDINGS_SCHEMA, small)
    here, there = table.column("split"), table.column("other_split")
    known = pc.and_(pc.not_equal(here, ""), pc.not_equal(there, ""))
    across = pc.and_(known, pc.not_equal(here, there))
    counted = (
        table.append_column("across", across).group_by(["kind", "across", "removed"]).aggregate([([], "count_all")])
    )
    kinds, columns = {kind: k for k, kind in enumerate(KINDS)}, counted.to_pydict()
    counts = {
        (str(kind), bool(crosses), bool(removed)): int(count)
        for kind, crosses, removed, count in zip(
            columns["kind"], columns["across"], columns["removed"], columns["count_all"], strict=True
        )
    }
    copies = pc.is_in(table.column("kind"), pa.array(["exact", "near"]))
    conflicting = pc.and_(copies, pc.not_equal(table.column("labels"), table.column("other_labels")))
    return Findings(
        num_pairs=table.num_rows,
        counts=dict(sorted(counts.items(), key=lambda item: (kinds.get(item[0][0], 9), not item[0][1], item[0]))),
        conflicting=int(pc.sum(conflicting).as_py() or 0),
        shown=_shown(path, np.asarray(across.fill_null(False)), np.asarray(conflicting.fill_null(False))),
    )


def _shown(path: Path, across: np.ndarray, conflicting: np.ndarray) -> list[Finding]:
    """The first pairs to look at among those that have pictures: only a file's first thousand do."""
    with readable(path), pq.ParquetFile(path) as file:
        first = next(iter(file.iter_batches(1000)), None)
    if first is None:
        return []
    count = first.num_rows
    bare = np.asarray(first.column("thumbnail").is_null()) & np.asarray(first.column("other_thumbnail").is_null())
    order = np.lexsort((~conflicting[:count], ~across[:count], bare))
    return [_finding(row) for row in first.take(pa.array(order[:MAX_SHOWN])).to_pylist()]


def _finding(row: Mapping[str, Any]) -> Finding:
    two = lambda name: (row[name] or "", row[f"other_{name}"] or "")  # noqa: E731
    return Finding(
        kind=row["kind"] or "",
        image_ids=two("image_id"),
        splits=two("split"),
        labels=(row["labels"], row["other_labels"]),
        removed=bool(row["removed"]),
        correlation=row["correlation"],
        thumbnails=(_picture(row["thumbnail"]), _picture(row["other_thumbnail"])),
    )


def _picture(data: Any) -> bytes | None:
    """The bytes of a PNG of a thumbnail's size; None where they are anything else."""
    fits = isinstance(data, bytes) and data.startswith(PNG) and len(data) <= MAX_THUMBNAIL_BYTES
    return data if fits else None


def read_reasons(path: Path | None, counts: Mapping[str, int]) -> list[Reason]:
    """Why images were rejected, the most frequent reason first; from the report's counts where there is no table."""
    if path is None:
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        return [Reason(words, count, []) for words, count in ordered[:MAX_REASONS]]
    table = _read(path, REJECTS_SCHEMA, ("path", "reason"))
    tally = pc.value_counts(table.column("reason")).to_pylist()
    tally.sort(key=lambda entry: -entry["counts"])
    found = []
    for entry in tally[:MAX_REASONS]:
        mine = pc.equal(table.column("reason"), pa.scalar(entry["values"], pa.string()))
        names = table.column("path").filter(mine).slice(0, EXAMPLES).to_pylist()
        found.append(Reason(entry["values"] or "no reason given", entry["counts"], [name or "" for name in names]))
    return found


def _read(path: Path, expected: pa.Schema, columns: tuple[str, ...]) -> pa.Table:
    """Some columns of a table that must have all the expected ones."""
    with readable(path):
        found = pq.read_schema(path)
        wrong = [f for f in expected if f.name not in found.names or found.field(f.name).type != f.type]
        if wrong:
            raise UserError(
                f"{path} has no column {wrong[0].name} of type {wrong[0].type}: expected what vaegan.prepare writes; "
                "prepare the dataset again, or remove the file to do without it"
            )
        return pq.read_table(path, columns=list(columns))


# ----------------------------------------------------------------------------------------------- JSON of unknown make
def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _texts(value: Any) -> list[str]:
    return [str(each) for each in _list(value)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _counts(value: Any) -> dict[str, int]:
    return {str(name): count for name, count in _mapping(value).items() if isinstance(count, int)}
