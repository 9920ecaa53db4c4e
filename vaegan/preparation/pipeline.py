"""Images from anywhere to a dataset: open the source, decode it part by part, settle who belongs where, write.

Memory holds a few parts at a time and, of each image, labels, hashes and names: 600 bytes with what the source keeps to
list them (docs/log.md). A run that is killed leaves its parts beside the dataset, and the same command goes on from
there.
"""

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from cluster.errors import UserError
from cluster.provenance import provenance
from cluster.storage import locked
from vaegan.importers import Source, open_source
from vaegan.preparation.asides import Asides
from vaegan.preparation.config import PrepareConfig
from vaegan.preparation.decoding import Decoding
from vaegan.preparation.findings import findings_table
from vaegan.preparation.identity import Pseudonyms, read_or_make_salt, write_linkage
from vaegan.preparation.inputs import inputs_sha256, lines_again, lines_of_parts
from vaegan.preparation.names import name_warnings
from vaegan.preparation.pools import Interrupted, Part, Run, choose_pool
from vaegan.preparation.settling import Rows, settle
from vaegan.preparation.shortcuts import shortcut_warnings
from vaegan.preparation.spool import Spool, columns_of, records_per_part, reject_sentence
from vaegan.preparation.writing import linkage_rows, write_splits
from vaegan.shards import FINDINGS, MANIFEST, DatasetWriter, Manifest, read_manifest

MAX_REASONS = 20  # in the manifest; rejects.parquet has all
FORMAT_OF_PARTS = 2  # raised when a part's content changes, so that parts of an older version aren't taken over

LATER_SETTINGS: dict[str, Any] = {"unlabelled": [], "keep_unlabelled": False}
"""What datasets don't say that were made before these could be chosen."""


def prepare(config: PrepareConfig, in_tasks: Run | None = None) -> Manifest:
    """Write the dataset `config.out` and return its manifest; a finished one of the same inputs is left as it is.

    Args:
        in_tasks: what decodes instead of this machine's cores: `tasks.in_ray_tasks`.

    Raises:
        UserError: nothing to read, fewer than two classes, a bad image under `strict`, or another dataset at `out`.
    """
    started_s = time.time()
    source = open_source(config, config.source)
    classes = _choose_classes(source, config)
    settings = config.deciding(source.kind)
    _check_places(config)
    if (config.out / MANIFEST).exists():
        return _existing(config, settings, source, _decoding(config, source, classes))
    if config.linkage is not None and config.linkage.exists():
        raise UserError(f"--linkage {config.linkage} is there already, of another dataset: choose another name")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another process prepares {config.out}: wait for it, or choose another --out"
    lock = config.out.with_name(f".{config.out.name}.lock")
    with locked(lock, busy):
        try:
            return _prepare(config, source, classes, settings, in_tasks, started_s)
        finally:
            lock.unlink(missing_ok=True)


def _prepare(
    config: PrepareConfig,
    source: Source,
    classes: tuple[str, ...],
    settings: dict[str, Any],
    in_tasks: Run | None,
    started_s: float,
) -> Manifest:
    shape = {"height": config.size, "width": config.size, "channels": config.channels}
    how = _decoding(config, source, classes)
    hidden = _is_hidden(source, settings)
    salt_sha256 = _salt_sha256(config)
    spool = Spool(
        config.out.with_name(f".{config.out.name}.work"),
        {
            "format": FORMAT_OF_PARTS,
            "settings": settings,
            "fingerprint": source.fingerprint,
            "salt": salt_sha256,
            "names": how.keep_names,
        },
        how,
    )
    with DatasetWriter(config.out, task=source.task, classes=classes, **shape) as writer, _kept_for_later(spool):
        if hidden:
            spool.how = replace(spool.how, pseudonym=Pseudonyms(_salt(config, spool)))
        _decode_all(source, config, spool, in_tasks or choose_pool(source.num_records, config.num_workers))
        rejects, left_out = _gather_rest(spool, writer, strict=config.strict)
        rows = Rows.read(spool)
        _check_enough(rows, classes, rejects, writer, config)
        settlement = settle(rows, classes, config)
        warnings, numbers = _warnings(spool, rows, classes, config.seed, hidden=hidden)
        writer.table(FINDINGS, findings_table(rows, settlement, spool))
        write_splits(writer, spool, settlement.split, rows.labels, rows.labelled)
        report = {
            "source": source.kind,
            "notes": source.notes + _film_notes(rows, config),
            "rejects": dict(rejects.most_common(MAX_REASONS)),
            "left_out": dict(left_out),
            **settlement.report,
            "warnings": warnings,
            "checks": numbers,
            "films": _film_report(rows),
        }
        inputs = inputs_sha256(source, lines_of_parts(spool, named=not hidden), named=not hidden)
        origin = provenance(seed=config.seed, started_s=started_s, inputs=inputs)
        origin |= {"config": settings, "fingerprint": source.fingerprint, "salt_sha256": salt_sha256}
        if hidden:
            origin["command"] = (
                "python -m vaegan.prepare (its words are left out: they may tell whose images these are)"
            )
        if config.linkage is not None:
            write_linkage(config.linkage, linkage_rows(spool))
        return writer.finish(report=report, provenance=origin)


# ---------------------------------------------------------------------------------------------------------------------
# Before reading


def _choose_classes(source: Source, config: PrepareConfig) -> tuple[str, ...]:
    new_names = config.new_names
    if unknown := [name for name in new_names if name not in source.classes]:
        found = ", ".join(source.classes)
        raise UserError(f"no class {unknown[0]!r} to rename in {config.images}: found {found}; correct --rename")
    found_classes = tuple(dict.fromkeys(new_names.get(name, name) for name in source.classes))
    if unknown := [name for name in config.classes if name not in found_classes]:
        found = ", ".join(found_classes)
        raise UserError(f"no class {unknown[0]!r} in {config.images}: found {found}; correct --classes")
    classes = config.classes or found_classes
    if len(set(classes)) < len(classes):
        raise UserError(f"--classes names a class twice ({', '.join(classes)}): name each once")
    if len(classes) < 2 and not config.allow_one_class:
        raise UserError(
            f"only one class ({', '.join(classes)}) in {config.images}: a classifier needs two, each a subfolder or a "
            "label; pass --allow-one-class to train an unconditional generator on it"
        )
    return classes


def _check_places(config: PrepareConfig) -> None:
    if config.images is not None and config.images.resolve() in config.out.resolve().parents:
        raise UserError(
            f"--out {config.out} lies in --images {config.images}, which would hold other files the next time: choose "
            "a folder elsewhere"
        )
    for name, file in (("salt", config.salt), ("linkage", config.linkage)):
        if file is not None and config.out.resolve() in file.resolve().parents:
            raise UserError(
                f"--{name} {file} lies in the dataset {config.out}, whose hashes it undoes: keep it elsewhere"
            )


def _existing(config: PrepareConfig, settings: dict[str, Any], source: Source, how: Decoding) -> Manifest:
    manifest = read_manifest(config.out)
    before = manifest.provenance
    known = LATER_SETTINGS | before.get("config", {})
    changed = [name for name, value in settings.items() if known.get(name) != value]
    if changed:
        raise UserError(
            f"{config.out} holds a dataset prepared with other settings ({', '.join(changed)}): "
            "choose another --out, or remove it to prepare it anew"
        )
    if config.salt is not None and before.get("salt_sha256") != _salt_sha256(config):
        raise UserError(
            f"{config.out} holds a dataset prepared with another salt than {config.salt}: choose another --out, or "
            "remove it to prepare it anew"
        )
    if config.linkage is not None and not config.linkage.exists():
        raise UserError(
            f"{config.out} is prepared already, and no linkage can be written afterwards: choose another --out, or "
            "remove it to prepare it anew"
        )
    named = not _is_hidden(source, settings)
    touched = before.get("fingerprint") != source.fingerprint
    if touched and before.get("inputs") != inputs_sha256(source, lines_again(source, how, named=named), named=named):
        raise UserError(
            f"{config.out} holds a dataset prepared from other images: choose another --out, or remove it to prepare "
            "it anew"
        )
    return manifest


def _decoding(config: PrepareConfig, source: Source, classes: tuple[str, ...]) -> Decoding:
    return Decoding(
        size=config.size,
        channels=config.channels,
        aspect=config.aspect,
        classes=classes,
        multilabel=source.task == "multilabel",
        new_names=config.new_names,
        dicom=config.dicom if source.dicom else None,
        keep_names=config.linkage is not None,
        subset=config.subset,
        seed=config.seed,
        strict=config.strict,
    )


def _is_hidden(source: Source, settings: dict[str, Any]) -> bool:
    """Whether names become hashes."""
    return source.identifying or settings["hash_patients"]


def _salt_sha256(config: PrepareConfig) -> str | None:
    """Of the user's salt: parts that were hashed with another are of no use."""
    return None if config.salt is None else hashlib.sha256(read_or_make_salt(config.salt)).hexdigest()


def _salt(config: PrepareConfig, spool: Spool) -> bytes:
    """The user's salt, or one of the spool's own, which a run that goes on finds and that ends with it."""
    return read_or_make_salt(config.salt or spool.folder / "salt")


@contextmanager
def _kept_for_later(spool: Spool) -> Iterator[None]:
    """The spool for as long as the context lasts, and longer where the run was interrupted."""
    spool.open()
    try:
        yield
    except Interrupted:
        raise
    except UserError:
        spool.remove()
        raise
    spool.remove()


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _decode_all(source: Source, config: PrepareConfig, spool: Spool, run: Run) -> None:
    """All parts that aren't there yet, with a progress bar that counts those that are."""
    size = records_per_part(config.size, config.channels)
    progress = tqdm(total=source.num_records, desc="reading", unit="image", file=sys.stderr)

    def missing() -> Iterator[Part]:
        records = source.records()
        while chunk := list(islice(records, size)):
            path = spool.part(spool.num_parts)
            spool.num_parts += 1
            if path.exists():
                progress.initial += len(chunk)  # the rate, and so the time left, is that of what is decoded now
                progress.update(len(chunk))
            else:
                yield Part(chunk, path)

    with progress:
        for count in run(missing(), spool.how):
            progress.update(count)


def _gather_rest(spool: Spool, writer: DatasetWriter, *, strict: bool) -> tuple[Counter[str], Counter[str]]:
    """Reasons of what was rejected, which `writer` is told, and of what was left out, with their counts."""
    rejects: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for number in range(spool.num_parts):
        for row in spool.rest(number).select(["name", "problem", "left_out"]).to_pylist():
            if row["problem"] and strict:  # in a part of an earlier run that wasn't
                raise UserError(reject_sentence(row["name"], row["problem"]))
            if row["problem"]:
                writer.reject(row["name"], row["problem"])
                rejects[row["problem"]] += 1
            else:
                left_out[row["left_out"]] += 1
    return rejects, left_out


def _check_enough(
    rows: Rows, classes: tuple[str, ...], rejects: Counter[str], writer: DatasetWriter, config: PrepareConfig
) -> None:
    first = f"; the first: {': '.join(writer.rejects[0])}" if writer.rejects else ""
    if not len(rows):
        raise UserError(f"none of the {rejects.total()} images in {config.images} could be used{first}")
    empty = [name for name, count in zip(classes, rows.labels.sum(axis=0), strict=True) if not count]
    if not rows.labelled.any():
        raise UserError(
            f"none of the {len(rows)} usable images in {config.images} has a label: expected some of each class"
        )
    if empty and len(classes) - len(empty) < (1 if config.allow_one_class else 2):
        raise UserError(f"no usable image of class {empty[0]} in {config.images}{first}; a classifier needs two")


# ---------------------------------------------------------------------------------------------------------------------
# Looking for traps


def _warnings(
    spool: Spool, rows: Rows, classes: tuple[str, ...], seed: int, *, hidden: bool
) -> tuple[list[str], dict[str, Any]]:
    """What may mislead a classifier, or its judges, as sentences and as numbers."""
    # what goes with the label is asked of those that have one; a slice copies no thumbnails
    at: slice | NDArray[np.bool_] = slice(None) if rows.labelled.all() else rows.labelled
    sizes = (rows.heights[at], rows.widths[at])
    sentences, shortcuts = shortcut_warnings(
        rows.thumbnails[at], rows.labels[at], rows.patients[at], *sizes, classes, seed=seed
    )
    asides = Asides()
    for table in spool.tables(["asides", "labels", "labelled"]):
        for said, labels, labelled in columns_of(table, ["asides", "labels", "labelled"]):
            if labelled:
                names = tuple(name for name, on in zip(classes, labels, strict=True) if on)
                asides.add(json.loads(said) if said else {}, names)
    more, columns = asides.warnings(classes)
    if not hidden:
        more = [*more, *name_warnings(rows.image_id, rows.patient_id, rows.patients_known, rows.source_split)]
    return [*sentences, *more], {"shortcuts": shortcuts, "columns": {} if hidden else columns}


def _film_report(rows: Rows) -> dict[str, Any]:
    def spread(values: np.ndarray) -> dict[str, int]:
        return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}

    return {
        "height": spread(rows.heights),
        "width": spread(rows.widths),
        "in_colour": rows.num_in_colour,
        "not_square": int(np.sum(rows.heights != rows.widths)),
    }


def _film_notes(rows: Rows, config: PrepareConfig) -> list[str]:
    notes = []
    if rows.num_in_colour and config.channels == 1:
        notes.append(
            f"{rows.num_in_colour} of {len(rows)} images are in colour and were stored in grey: --channels 3 keeps it."
        )
    if unlabelled := int(np.sum(~rows.labelled)):
        notes.append(f"{unlabelled} of {len(rows)} images have no label: a generator learns from them, too.")
    if repeated := len(rows) - pc.count_distinct(rows.image_id).as_py():
        notes.append(f"{repeated} images have the image_id of another: the source names them alike.")
    small = int(np.sum(np.minimum(rows.heights, rows.widths) < config.size))
    if small:
        notes.append(f"{small} of {len(rows)} images are smaller than {config.size} px and were enlarged.")
    if lost := int(np.sum(rows.heights != rows.widths)):
        done = {
            "crop": "the largest centred square of each was taken",
            "pad": "each has black bars beside it",
            "squash": "each was squashed to a square",
        }[config.aspect]
        notes.append(f"{lost} of {len(rows)} images are not square: {done} (--aspect).")
    return notes
