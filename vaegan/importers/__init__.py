"""Sources of images: one file each, all in `FORMATS`. An importer lists records; `vaegan.preparation` decodes them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import UserError
from vaegan.importers import (
    chexpert,
    dataset,
    dicom,
    folder,
    medmnist,
    mimic,
    nih,
    parquet,
    phantom,
    table,
)
from vaegan.importers.base import ImportConfig, Record, Source
from vaegan.importers.labels import NO_LABEL

__all__ = ["FORMATS", "ImportConfig", "Record", "Source", "open_source"]

FORMATS = (
    dataset.FORMAT,
    nih.FORMAT,
    chexpert.FORMAT,
    mimic.FORMAT,
    medmnist.FORMAT,
    dicom.FORMAT,
    table.FORMAT,
    parquet.FORMAT,
    folder.FORMAT,
    phantom.FORMAT,
)
"""In the order in which they are tried: a format that is sure of itself stands before one that takes anything."""


UNLABELLED = (NO_LABEL, dicom.NO_ROW, mimic.NO_STUDY)
"""What is wrong with images that nobody labelled, and nothing else is."""


def open_source(config: ImportConfig, name: str = "auto") -> Source:
    """What is at `config.images`, in the format called `name` or, for "auto", in the first that recognises it.

    Raises:
        UserError: no such format, nothing there, nothing that any format recognises, or what that format's `open` says.
    """
    known = {each.name: each for each in FORMATS}
    if name not in ("auto", *known):
        raise UserError(f"--source is {name!r}: expected auto or one of {', '.join(known)}")
    if name != "phantom" and name != "auto" and config.images is None:
        raise UserError(f"--source {name} needs --images PATH: found none")
    chosen = known[_detect(config.images) if name == "auto" else name]
    if config.merge and chosen.name != "dataset":
        raise UserError(
            f"--merge takes datasets of AugRay's, and --images {config.images} is none ({chosen.name}): "
            "prepare each source by itself, then merge the results"
        )
    source = chosen.open(config)
    return _with_unlabelled(source, config) if config.unlabelled or config.keep_unlabelled else source


def _with_unlabelled(source: Source, config: ImportConfig) -> Source:
    """The source with `config.unlabelled` no classes any more, and what lacks a label no problem, if so asked."""
    names = frozenset(config.unlabelled)
    if unknown := sorted(names.difference(source.classes)):
        raise UserError(
            f"--unlabelled is {unknown[0]!r}, and {config.images} has no such class or folder: found "
            f"{', '.join(source.classes)}"
        )
    blank = UNLABELLED if config.keep_unlabelled else ()

    def records() -> Iterator[Record]:
        for record in source.records():
            if record.problem in blank:
                yield dataclasses.replace(record, labels=None, problem=None)
            elif names.intersection(record.labels or ()):
                yield dataclasses.replace(record, labels=None)
            else:
                yield record

    classes = tuple(name for name in source.classes if name not in names)
    if not classes:
        raise UserError(f"--unlabelled names all classes of {config.images}: expected at least one that is left")
    return dataclasses.replace(source, classes=classes, records=records)


def _detect(images: Path | None) -> str:
    if images is None:
        return "phantom"
    if dataset.FORMAT.recognises(images):  # which may be at a URL
        return dataset.FORMAT.name
    summaries = "; ".join(each.summary for each in FORMATS if each.name != "phantom")
    if not images.exists():
        raise UserError(f"no folder or file {images}: expected one of: {summaries}; check --images")
    for each in FORMATS:
        if each.recognises(images):
            return each.name
    raise UserError(
        f"{images} is a file of unknown format ({images.suffix or 'no suffix'}): expected one of: {summaries}"
    )
