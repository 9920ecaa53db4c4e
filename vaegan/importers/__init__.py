"""Sources of images: one file each, all in `FORMATS`. An importer lists records; `vaegan.preparation` decodes them."""

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
    return chosen.open(config)


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
