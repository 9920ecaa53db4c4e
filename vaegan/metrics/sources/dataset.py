"""Datasets of ours as images to measure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.storage import text_sha256
from vaegan.metrics.sources.base import ImageSource
from vaegan.metrics.sources.blocks import Block, DatasetBlock, Shape, block_size
from vaegan.shards import labelled_of, labels_of, locate, read_manifest, readable, split_info


def dataset_source(path: Path, split: str | None = None) -> ImageSource:
    """A dataset of ours; hashes come from its manifest, so nothing is read but labels and names."""
    manifest = read_manifest(path)
    wanted = [split] if split is not None else list(manifest.splits)
    files = {name: sha256 for each in wanted for name, sha256 in split_info(path, each).files.items()}
    shape = (manifest.height, manifest.width, manifest.channels)
    blocks: list[Block] = []
    tables = []
    for name, sha256 in files.items():
        file = locate(path, name, sha256)
        with readable(file):
            marked = ["labelled"] if "labelled" in pq.read_schema(file).names else []
            tables.append(pq.read_table(file, columns=["labels", "patient_id", "image_id", *marked]))
            blocks += _group_blocks(file, sha256, shape)
    if not tables:
        raise UserError(f"{path} has no images: expected a split with some; prepare the dataset again")
    table = pa.concat_tables(tables)
    labelled = labelled_of(table)
    return ImageSource(
        name=str(path) if split is None else f"{path} ({split})",
        shape=shape,
        blocks=tuple(blocks),
        labels=labels_of(table),
        classes=manifest.classes,
        patient_id=np.array([patient or "" for patient in table.column("patient_id").to_pylist()], dtype=object),
        image_id=np.array(table.column("image_id").to_pylist(), dtype=object),
        labelled=None if labelled.all() else labelled,
    )


def _group_blocks(path: Path, file_sha256: str, shape: Shape) -> Iterator[DatasetBlock]:
    """Runs of row groups of about `block_size` images."""
    metadata = pq.read_metadata(path)
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    step = max(1, block_size(shape) // max(counts, default=1))
    for start in range(0, len(counts), step):
        groups = tuple(range(start, min(start + step, len(counts))))
        sha256 = text_sha256(f"{file_sha256} row groups {groups}")
        yield DatasetBlock(sha256=sha256, count=sum(counts[group] for group in groups), path=path, groups=groups)
