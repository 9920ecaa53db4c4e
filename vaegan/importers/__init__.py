"""Sources of images: one file each, all in `IMPORTERS`. An importer lists records; `vaegan.prepare` decodes them."""

from collections.abc import Callable
from pathlib import Path

from cluster.errors import UserError
from vaegan.importers.base import ImportConfig, ParquetConfig, Record, Source
from vaegan.importers.folder import open_folder
from vaegan.importers.parquet import open_parquet, parquet_files
from vaegan.importers.phantom import open_phantom

__all__ = ["IMPORTERS", "ImportConfig", "ParquetConfig", "Record", "Source", "detect"]

IMPORTERS: dict[str, Callable[[ImportConfig], Source]] = {
    "phantom": open_phantom,
    "folder": open_folder,
    "parquet": open_parquet,
}


def detect(images: Path | None) -> str:
    """Which importer reads `images`; the phantom where there are none.

    Raises:
        UserError: nothing is there, or it is a file of an unknown format.
    """
    if images is None:
        return "phantom"
    if not images.exists():
        raise UserError(
            f"no folder or file {images}: expected images below it, one subfolder per class, or Parquet; check --images"
        )
    if images.is_dir():
        return "parquet" if parquet_files(images) else "folder"
    if images.suffix.lower() == ".parquet":
        return "parquet"
    raise UserError(
        f"{images} is a file of unknown format ({images.suffix or 'no suffix'}): "
        "expected a folder with one subfolder of images per class, or a .parquet file"
    )
