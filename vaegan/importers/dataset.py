"""Datasets of AugRay's as a source: to take a part, resize, split anew, or merge several."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.remote import absolute
from cluster.storage import file_sha256
from vaegan.importers.base import Address, Format, ImportConfig, Record, Source
from vaegan.shards import (
    MANIFEST,
    SPLITS,
    Images,
    Manifest,
    dataset_sha256,
    from_table,
    is_dataset,
    locate,
    read_manifest,
    readable,
)

NAMES = ("patient_id", "image_id")
"""Columns in which two datasets may say the same."""


def open_dataset(config: ImportConfig) -> Source:
    """Every row of the dataset at `config.images`, then of those in `config.merge`.

    Equal patient_ids are one patient, wherever they are: to join two people by mistake costs a little freedom in the
    split, to part one person is a leak. Equal image_ids get their dataset's name in front. Classes are joined by name.

    Raises:
        UserError: one of them is no finished dataset, is named twice, or a shard is missing or damaged.
    """
    assert config.images is not None
    folders = (config.images, *config.merge)
    if len({absolute(folder) for folder in folders}) < len(folders):
        raise UserError(f"the same dataset is named twice ({', '.join(map(str, folders))}): name each once")
    manifests = [_read_sound_manifest(folder) for folder in folders]
    tasks = {manifest.task for manifest in manifests}
    task: Literal["multiclass", "multilabel"] = "multilabel" if "multilabel" in tasks else "multiclass"
    names = _short_names(folders)
    shared = _shared(folders, manifests) if len(folders) > 1 else {}
    ambiguous = shared.get("image_id", frozenset())

    def records() -> Iterator[Record]:
        for folder, manifest, name in zip(folders, manifests, names, strict=True):
            yield from _records(folder, manifest, name, ambiguous)

    hashes = {name: dataset_sha256(folder) for name, folder in zip(names, folders, strict=True)}
    return Source(
        kind="dataset",
        task=task,
        classes=tuple(dict.fromkeys(name for manifest in manifests for name in manifest.classes)),
        num_records=sum(info.num_images for manifest in manifests for info in manifest.splits.values()),
        records=records,
        fingerprint=" ".join(hashes.values()),
        inputs=hashes,
        notes=_notes(config, manifests, shared),
    )


def _records(folder: Path, manifest: Manifest, name: str, ambiguous: frozenset[str]) -> Iterator[Record]:
    for split, info in manifest.splits.items():
        given = 0
        for file, sha256 in info.files.items():
            path = locate(folder, file, sha256)
            opened = _opened(path, sha256, manifest)
            for group in range(opened.num_row_groups):
                with readable(path):
                    images = from_table(opened.read_row_group(group))
                given += len(images)
                has_label = images.has_label
                for i in range(len(images)):
                    image_id = str(images.image_id[i])
                    yield Record(
                        name=f"{folder.name}/{file} {image_id}",
                        image=images.pixels[i],
                        image_id=f"{name}/{image_id}" if image_id in ambiguous else image_id,
                        labels=tuple(manifest.classes[k] for k in np.flatnonzero(images.labels[i]))
                        if has_label[i]
                        else None,
                        patient_id=str(images.patient_id[i]),
                        split=split,
                        synthetic=_address(images, i) if images.source[i] == "synthetic" else None,
                    )
        if given != info.num_images:
            raise UserError(
                f"the files of {folder}'s {split} split hold {given} images and its manifest says {info.num_images}: "
                "prepare that dataset again"
            )


def _opened(path: Path, sha256: str, manifest: Manifest) -> pq.ParquetFile:
    """A file of a dataset, unless it isn't the one that the manifest means: a damaged one can look sound."""
    _check_regular(path)
    with readable(path):
        found = file_sha256(path)
    if found != sha256:
        raise UserError(
            f"{path} isn't the file that {MANIFEST} lists (its sha256 is another): it was damaged or changed; prepare "
            "that dataset again"
        )
    with readable(path):
        opened = pq.ParquetFile(path)
        about = json.loads((opened.schema_arrow.metadata or {}).get(b"augray", b"{}"))
    if tuple(about.get("classes", ())) != manifest.classes or about.get("task") != manifest.task:
        raise UserError(f"{path} has other classes than {MANIFEST} lists: prepare that dataset again")
    return opened


def _read_sound_manifest(folder: Path) -> Manifest:
    """As `read_manifest`, but each value that is used here is of the kind it should be."""
    if is_dataset(folder):
        _check_regular(locate(folder, MANIFEST))
    manifest = read_manifest(folder)
    infos = manifest.splits.values()
    checks = {
        "task": manifest.task in ("multiclass", "multilabel"),
        "classes": all(isinstance(name, str) for name in manifest.classes),
        "height": type(manifest.height) is int,
        "splits": set(manifest.splits) <= set(SPLITS),
        "num_images": all(type(info.num_images) is int for info in infos),
        "files": all(isinstance(info.files, dict) and all(map(_plain, info.files)) for info in infos),
    }
    if odd := [name for name, is_sound in checks.items() if not is_sound]:
        raise UserError(
            f"{folder / MANIFEST} isn't the manifest of a dataset (odd {odd[0]}): expected what vaegan.prepare writes"
        )
    return manifest


def _check_regular(file: Path) -> None:
    if not file.is_file():  # reading a pipe or a device may never end
        raise UserError(f"{file} is no regular file (or none at all): expected what vaegan.prepare wrote")


def _plain(name: str) -> bool:
    """Whether it names a file of the folder itself."""
    return "\0" not in name and Path(name).name == name


def _address(images: Images, i: int) -> Address:
    if images.model is None or images.seed is None or images.index is None:
        return Address(None, -1, -1)
    return Address(images.model[i], int(images.seed[i]), int(images.index[i]))


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or numbers where names repeat."""
    names = [absolute(folder).name for folder in folders]
    return names if len(set(names)) == len(names) else [f"{k}-{name}" for k, name in enumerate(names)]


def _shared(folders: Sequence[Path], manifests: Sequence[Manifest]) -> dict[str, frozenset[str]]:
    """Of patients and images the names that more than one dataset has."""
    tables = [_names(folder, manifest) for folder, manifest in zip(folders, manifests, strict=True)]
    shared = {}
    for name in NAMES:
        counts = pc.value_counts(pa.concat_arrays([table.column(name).combine_chunks().unique() for table in tables]))
        repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        shared[name] = frozenset(repeated.to_pylist())
    return shared


def _names(folder: Path, manifest: Manifest) -> pa.Table:
    """The columns `NAMES` of all rows."""
    tables = [pa.table({name: pa.array([], pa.string()) for name in NAMES})]
    for file, sha256 in (found for info in manifest.splits.values() for found in info.files.items()):
        path = locate(folder, file, sha256)
        opened = _opened(path, sha256, manifest)
        with readable(path):
            tables.append(opened.read(columns=list(NAMES)).select(NAMES).replace_schema_metadata(None))
    return pa.concat_tables(tables, promote_options="permissive")


def _notes(config: ImportConfig, manifests: Sequence[Manifest], shared: Mapping[str, frozenset[str]]) -> list[str]:
    notes = []
    if shared:
        notes.append(f"Merged {len(manifests)} datasets; classes of the same name are one.")
        if patients := len(shared["patient_id"]):
            notes.append(f"{patients} patient_ids are in more than one of them and count as one patient each.")
        if images := len(shared["image_id"]):
            notes.append(f"{images} image_ids are in more than one of them: they got their dataset's name in front.")
    if stored := sorted({m.height for m in manifests if m.height < config.size}):
        notes.append(f"Images stored at {stored[0]} px are enlarged to {config.size}, which adds no detail.")
    return notes


def _recognises(path: Path) -> bool:
    return is_dataset(path)


FORMAT = Format("dataset", "a dataset that AugRay wrote", _recognises, open_dataset)
