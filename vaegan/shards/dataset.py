"""A dataset on disk or at a URL: Parquet files of one row per image, a manifest that makes the folder complete."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import remote
from cluster.errors import UserError
from cluster.storage import file_sha256, read_json
from vaegan.shards.rows import Images, from_table

MANIFEST = "manifest.json"
REJECTS = "rejects.parquet"
FINDINGS = "findings.parquet"


@dataclass(frozen=True)
class SplitInfo:
    """Counts of one split, and its files with their sha256."""

    num_images: int
    per_class: dict[str, int]
    num_patients: int
    files: dict[str, str]
    row_groups: dict[str, list[int]] = field(default_factory=dict)
    """Rows in each row group of each file, so that an order of rows needs no file; earlier datasets don't tell."""
    num_unlabelled: int = 0
    """Images that nobody labelled, which no class counts; not written where there are none."""


@dataclass(frozen=True)
class Manifest:
    """What is in a dataset. A folder that has a manifest.json is complete, since it is written last."""

    task: str  # "multiclass" (exactly one class a row) or "multilabel"
    classes: tuple[str, ...]
    height: int
    width: int
    channels: int
    splits: dict[str, SplitInfo]
    rejects: int = 0
    tables: dict[str, str] = field(default_factory=dict)
    """Files beside those of the splits, with their sha256."""
    report: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def locate(dataset: Path, name: str, sha256: str | None = None) -> Path:
    """Where a file of a dataset is on this machine; those of a dataset at a URL are fetched into a cache first.

    Raises:
        UserError: a file at a URL is missing, can't be fetched, or hasn't the hash that the manifest gives it.
    """
    return remote.locate(dataset, name, sha256)


def is_dataset(path: Path) -> bool:
    """Whether a folder or URL has a manifest.

    Raises:
        UserError: a URL can't be reached.
    """
    try:
        return locate(path, MANIFEST).exists()
    except remote.MissingError:
        return False


def read_manifest(dataset: Path) -> Manifest:
    """The manifest of a dataset folder.

    Raises:
        UserError: there is no such folder, or no manifest in it (not a dataset, or one that was never finished).
    """
    if not is_dataset(dataset):
        found = "a folder without one" if dataset.is_dir() else "no such folder"
        url = remote.url_of(dataset)
        raise UserError(
            f"{url or dataset} isn't a dataset: expected a {MANIFEST}, found {'none there' if url else found}; "
            f"write one with: python -m vaegan.prepare --images DIR --out {dataset}"
        )
    content = read_json(locate(dataset, MANIFEST))
    try:
        splits = {name: SplitInfo(**info) for name, info in content.pop("splits").items()}
        content.pop("format")
        return Manifest(**content | {"classes": tuple(content["classes"]), "splits": splits})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{dataset / MANIFEST} isn't the manifest of a dataset ({error}): expected what vaegan.prepare writes"
        ) from None


def dataset_sha256(dataset: Path) -> str:
    """SHA-256 of a dataset's manifest, which holds those of all its files."""
    read_manifest(dataset)
    return file_sha256(locate(dataset, MANIFEST))


def read_split(dataset: Path, split: str) -> Images:
    """All rows of one split ("train", "val" or "test").

    Raises:
        UserError: the dataset has no such split, or a file of it is missing or damaged.
    """
    info = split_info(dataset, split)
    pixels: np.ndarray | None = None
    parts: list[Images] = []
    at = 0
    for name, sha256 in info.files.items():
        path = locate(dataset, name, sha256)
        with readable(path):
            part = from_table(pq.read_table(path))
        if pixels is None:
            pixels = np.empty((info.num_images, *part.pixels.shape[1:]), dtype=np.uint8)
        if len(part) <= len(pixels) - at:  # else the sum below is wrong
            pixels[at : at + len(part)] = part.pixels
        at += len(part)
        parts.append(dataclasses.replace(part, pixels=part.pixels[:, :0]))  # pixels are in memory once, not twice
    if pixels is None or at != info.num_images:
        raise UserError(
            f"the files of {dataset}'s {split} split hold {at} images and its manifest says {info.num_images}: files "
            "of two datasets were mixed; prepare the dataset again"
        )
    return dataclasses.replace(Images.concatenate(parts), pixels=pixels)


def split_info(dataset: Path, split: str) -> SplitInfo:
    """What the manifest says of a split.

    Raises:
        UserError: the dataset has no such split.
    """
    manifest = read_manifest(dataset)
    if split not in manifest.splits:
        raise UserError(f"{dataset} has no {split} split: it has {', '.join(manifest.splits) or 'none'}")
    return manifest.splits[split]


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Arrow's complaints about a file of a dataset, while it is read in this context, become a sentence."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{file} can't be read ({' '.join(str(error).split())[:200]}): "
            "the manifest lists it; prepare the dataset again"
        ) from None
