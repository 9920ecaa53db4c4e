"""The folder that `python -m downstream.ablate` leaves, read into memory."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.storage import file_sha256, read_json

FILES = ("config.json", "ablation.json", "results.parquet", "test.parquet")
"""What a finished ablation has at least; ablation.json is written last."""

COLUMNS = ("arm", "classifier", "fraction", "ratio", "generator_seed", "pool_seed", "classifier_seed", "status",
           "scores")  # fmt: skip


@dataclass(frozen=True)
class Results:
    """A finished ablation.

    Attributes:
        rows: one dictionary per (arm, cell), failed ones included, in the file's order; `scores` is a flat float32
            array or None, `per_class` a dictionary or None.
        labels: multi-hot truth of the test images, (N, K) uint8, in the order of `scores`.
        patients: patient of each test image, (N,) str.
        examples: rows of examples.parquet, empty when there is none.
        named: the primary comparison and when it was first written down (named.json); None where that wasn't kept.
        metrics: (file name, content) of each metrics/*.json, sorted by name.
        inputs: sha256 of every file read, by name.
    """

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    rows: list[dict[str, Any]]
    labels: np.ndarray
    patients: np.ndarray
    examples: pa.Table | None
    named: dict[str, Any] | None
    metrics: list[tuple[str, dict[str, Any]]]
    inputs: dict[str, str]

    @property
    def ok(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["status"] == "ok"]

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["status"] != "ok"]


def read_results(folder: Path) -> Results:
    """Read a finished ablation.

    Raises:
        UserError: there is no such folder, it is no ablation's, or the ablation isn't finished.
    """
    check_complete(folder)
    table = _read_parquet(folder / "results.parquet")
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise UserError(
            f"{folder / 'results.parquet'} has no column {missing[0]!r}: expected the table that "
            f"python -m downstream.ablate writes; point --results at an ablation's own folder"
        )
    test = _read_parquet(folder / "test.parquet")
    examples = folder / "examples.parquet"
    metric_files = sorted((folder / "metrics").glob("*.json"))
    named = folder / "named.json"
    optional = [path for path in (named, examples) if path.exists()]
    read = [folder / name for name in FILES] + optional + metric_files
    return Results(
        folder=folder,
        config=read_json(folder / "config.json"),
        manifest=read_json(folder / "ablation.json"),
        rows=_rows(table),
        labels=np.array(test["labels"].to_pylist(), dtype=np.uint8),
        patients=np.array(test["patient_id"].to_pylist(), dtype=object),
        examples=_read_parquet(examples) if examples.exists() else None,
        named=read_json(named) if named.exists() else None,
        metrics=[(path.name, read_json(path)) for path in metric_files],
        inputs={str(path.relative_to(folder)): file_sha256(path) for path in read},
    )


def check_complete(folder: Path) -> None:
    """Raise a `UserError` that says what is missing and which command writes it, unless the ablation is finished."""
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}: expected the output of python -m downstream.ablate; check the path given as --results"
        )
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder} is not an ablation's folder (it has no config.json): expected the output of "
            f"python -m downstream.ablate; point --results at the folder given to it as --out"
        )
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        cells = len(list((folder / "cells").glob("*.parquet")))
        raise UserError(
            f"the ablation in {folder} isn't finished: {', '.join(missing)} missing, {cells} cells done so far; "
            f"run it again, it does only what is left: {finish_command(folder)}"
        )


def finish_command(folder: Path) -> str:
    """The command that finishes the ablation begun in `folder`."""
    return f"python -m downstream.ablate --config {shlex.quote(str(folder / 'config.json'))}"


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path} can't be read as Parquet ({error}): it may be cut short; delete it and run the ablation again, "
            f"which does only what is left: {finish_command(path.parent)}"
        ) from None


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Dictionaries, with scores as arrays (as Python lists they would take fifty times the memory)."""
    rows = table.drop_columns(["scores"]).to_pylist()
    for row, scores in zip(rows, table["scores"], strict=True):
        row["scores"] = scores.values.to_numpy(zero_copy_only=False) if scores.is_valid else None
        row["per_class"] = json.loads(row["per_class"]) if row.get("per_class") else None
    return rows
