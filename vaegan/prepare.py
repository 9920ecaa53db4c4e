"""Command line: images from anywhere to a dataset that every other stage reads.

    python -m vaegan.prepare --out data/phantom
    python -m vaegan.prepare --images chest_xray --out data/kermany
    python -m vaegan.prepare --images films --dicom.labels films.csv --salt salt.txt --out data/ours

A run that is killed goes on where it was with the same command.
"""

import sys
from dataclasses import replace

import pyarrow as pa

from cluster.cli import run_command
from cluster.remote import absolute
from vaegan.preparation.config import PrepareConfig
from vaegan.preparation.summary import summary
from vaegan.shards import MANIFEST, Manifest


def command(config: PrepareConfig) -> None:
    """Prepare, and print the summary."""
    from vaegan.preparation.pipeline import prepare  # only here: processes that decode load this file, and not all that

    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps what a large table took, for good
    there = (config.out / MANIFEST).exists()
    manifest = _in_ray_tasks(config) if config.ray and not there else prepare(config)
    print(summary(manifest, config.out))
    if there:
        print("  It was there already, prepared with the same settings from the same images: nothing was done.")


def _in_ray_tasks(config: PrepareConfig) -> Manifest:
    from cluster.session import connect  # only here: Ray takes seconds to load, and most runs need none of it
    from vaegan.preparation.pipeline import prepare
    from vaegan.preparation.tasks import in_ray_tasks

    with connect():
        return prepare(_from_anywhere(config), in_ray_tasks)


def _from_anywhere(config: PrepareConfig) -> PrepareConfig:
    """The same with absolute paths: tasks run in a folder of Ray's."""
    labels = config.dicom.labels
    return replace(
        config,
        out=config.out.absolute(),
        images=config.images and absolute(config.images),
        merge=tuple(map(absolute, config.merge)),
        dicom=replace(config.dicom, labels=labels and labels.absolute()),
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(PrepareConfig, command, prog="python -m vaegan.prepare", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
