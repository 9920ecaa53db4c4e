"""Rows from the spool to the dataset's files, and to the list that says what hashes stand for."""

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from vaegan.preparation.spool import Spool, columns_of
from vaegan.shards import SPLITS, DatasetWriter, Images


def write_splits(
    writer: DatasetWriter, spool: Spool, split: np.ndarray, labels: np.ndarray, labelled: np.ndarray
) -> None:
    """All images that stay, in the source's order within each split.

    Args:
        split: index into SPLITS, or below 0 for what was removed (N,).
        labels: multi-hot (N, K).
        labelled: whether each has a label, (N,).
    """
    if some := not labelled[split >= 0].all():
        writer.allow_unlabelled()
    names = ["patient_id", "image_id", "model", "seed", "index", "synthetic", "image"]
    with tqdm(total=int(np.sum(split >= 0)), desc="writing", unit="image", file=sys.stderr) as progress:
        start = 0
        for table in spool.tables(names):
            here = slice(start, start + len(table))
            start += len(table)
            for s, name in enumerate(SPLITS):
                chosen = np.flatnonzero(split[here] == s)
                if len(chosen):
                    images = _images(table.take(chosen), labels[here][chosen], spool)
                    writer.add(name, replace(images, labelled=labelled[here][chosen]) if some else images)
                    progress.update(len(chosen))


def _images(table: pa.Table, labels: np.ndarray, spool: Spool) -> Images:
    def strings(name: str) -> np.ndarray:
        return np.array(table.column(name).to_pylist(), dtype=object)

    def numbers(name: str) -> np.ndarray:
        return table.column(name).fill_null(-1).to_numpy().astype(np.int64)

    synthetic = table.column("synthetic").to_numpy()
    return Images(
        spool.pixels_of(table),
        labels,
        strings("patient_id"),
        strings("image_id"),
        np.where(synthetic, "synthetic", "real").astype(object),
        **{"model": strings("model"), "seed": numbers("seed"), "index": numbers("index")} if synthetic.any() else {},
    )


def linkage_rows(spool: Spool) -> Iterator[tuple[str, str, str, str]]:
    """Rows of `identity.write_linkage`: those that were rejected or left out have no patient."""
    columns = ["image_id", "patient_id", "source", "source_patient"]
    for number in range(spool.num_parts):
        yield from columns_of(spool.part_table(number, columns), columns)
        yield from ((name, "", source, "") for name, source in columns_of(spool.rest(number), ["name", "source"]))
