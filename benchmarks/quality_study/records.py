"""Records: what one run found, one file each, and all of them in one."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.storage import read_json, write_json

FORMAT_VERSION = 1
DIGITS = 6
Record = dict[str, Any]


def key(record: Record) -> tuple[str, int, str, str, int]:
    """What a record is of: case, budget, reference, recipe, seed. One record each."""
    return record["case"], record["images"], record["reference"], record["recipe"], record["seed"]


def file_name(case: str, images: int, reference: str, recipe: str, seed: int) -> str:
    """Of a record in a work folder."""
    return f"{case}-{images}-{reference}-{recipe}-s{seed}.json"


def write_record(folder: Path, record: Record) -> None:
    """Whole or not at all, in place of an earlier one."""
    write_json(folder / file_name(*key(record)), rounded(record))


def read_records(folder: Path) -> list[Record]:
    """Every record of a work folder."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def merge(before: Iterable[Record], new: Iterable[Record]) -> list[Record]:
    """Both, sorted, the new one where both have one of the same key; an error never replaces a result of its digest."""
    found = {key(record): record for record in before}
    for record in new:
        there = found.get(key(record))
        if there is not None and "error" in record and "error" not in there and there["digest"] == record["digest"]:
            continue
        found[key(record)] = record
    return [found[each] for each in sorted(found)]


def read_results(path: Path) -> list[Record]:
    """The records of quality.json; none where there is no such file."""
    return read_json(path)["records"] if path.exists() else []


def write_results(path: Path, records: list[Record]) -> None:
    """quality.json, a line for each record, so that a diff shows which are new."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records)
    text = f'{{"format": {FORMAT_VERSION}, "records": [\n{lines}\n]}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def rounded(value: Any) -> Any:
    """The same with numbers to `DIGITS` digits: more is noise, and would change with every machine."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return value
