"""Datasets: their rows in memory and as tables, their folders, and how one is written."""

from vaegan.shards.dataset import (
    FINDINGS,
    MANIFEST,
    REJECTS,
    Manifest,
    SplitInfo,
    dataset_sha256,
    is_dataset,
    locate,
    read_manifest,
    read_split,
    readable,
    split_info,
)
from vaegan.shards.rows import (
    FINDINGS_SCHEMA,
    SPLITS,
    Images,
    from_table,
    labelled_of,
    labels_of,
    pixels_of,
    schema,
    to_table,
)
from vaegan.shards.writer import GROUP_ROWS, DatasetWriter

__all__ = [
    "FINDINGS", "FINDINGS_SCHEMA", "GROUP_ROWS", "MANIFEST", "REJECTS", "SPLITS",
    "DatasetWriter", "Images", "Manifest", "SplitInfo",
    "dataset_sha256", "from_table", "is_dataset", "labelled_of", "labels_of", "locate", "pixels_of", "read_manifest",
    "read_split", "readable", "schema", "split_info", "to_table",
]  # fmt: skip
